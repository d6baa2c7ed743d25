"""The audit log: one line for each action on a run, a key or a session.

    {"time": …, "level": "INFO", "logger": "stagebus.audit", "message": "run.cancel", "subject": "key:3f9c0a5d77e1",
     "tenant": "acme", "run": "01M8…", "request_id": "…"}

This logger writes at every `STAGEBUS_LOG_LEVEL`. Its lines contain ids, but no prompts, keys or tickets.
"""

import logging
from typing import Any

from stagebus.shared.observability.logging import AUDIT, FIELDS

_logger = logging.getLogger(AUDIT)


def audit(action: str, *, subject: str, tenant: str, **facts: Any) -> None:
    """Logs an action and its subject, without empty facts. The log formatter adds the id of the request."""
    fields = {"subject": subject, "tenant": tenant, **{name: value for name, value in facts.items() if value}}
    _logger.info(action, extra={FIELDS: fields})
