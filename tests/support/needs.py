"""What a test's tool that is not there means."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(missing: str) -> NoReturn:
    """Nothing on a laptop, a failure in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{missing} is missing")
    pytest.skip(f"{missing} is missing")
