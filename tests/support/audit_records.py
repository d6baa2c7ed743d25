"""The audit log of a test, apart from all other lines."""

import logging

import pytest

from stagebus.shared.observability.logging import AUDIT


def audit_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Returns the records of the audit log so far."""
    return [record for record in caplog.records if record.name == AUDIT]
