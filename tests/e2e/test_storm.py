"""Chaos test: 10 s of `make chaos`."""

from pathlib import Path

import pytest

from tests.support.chaos import FAULTS, storm

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    # Clients that are cancelled while they connect leave the socket to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_chaos_loses_doubles_and_reorders_no_event(tmp_path: Path) -> None:
    ledger = await storm(10, seed=2026, parallel_runs=15, folder=tmp_path)

    assert ledger.is_clean, str(ledger)
    assert ledger.runs > 10
    assert set(ledger.faults) == set(FAULTS)
