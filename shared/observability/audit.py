"""The audit: one line for each thing that somebody did to a run, a key or a session.

    {"time": …, "level": "INFO", "logger": "stagebus.audit", "message": "run.cancel", "subject": "key:3f9c0a5d77e1",
     "tenant": "acme", "run": "01M8…", "request_id": "…"}

Lines of this logger are written at every `STAGEBUS_LOG_LEVEL`. They hold ids, never prompts,
keys or tickets.
"""

import logging
from typing import Any

from stagebus.shared.observability.logging import AUDIT, FIELDS

_logger = logging.getLogger(AUDIT)


def audit(action: str, *, subject: str, tenant: str, **facts: Any) -> None:
    """Say who did what; facts that are empty are left out, and the request's id stands there by itself."""
    fields = {"subject": subject, "tenant": tenant, **{name: value for name, value in facts.items() if value}}
    _logger.info(action, extra={FIELDS: fields})
