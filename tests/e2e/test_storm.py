"""A minute of the storm that `make chaos` makes."""

from pathlib import Path

import pytest

from tests.support.chaos import storm

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    # Clients that are cancelled in the middle of a connection leave its socket to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_storm_loses_doubles_reorders_and_strands_nothing(tmp_path: Path) -> None:
    ledger = await storm(60, seed=2026, parallel_runs=25, folder=tmp_path)

    assert ledger.is_clean, str(ledger)
    assert ledger.runs > 40
    assert len(ledger.faults) > 5, "it was a storm"
