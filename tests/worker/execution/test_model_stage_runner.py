"""The backoff before a model stage is retried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.config.settings import Settings
from stagebus.worker.execution.model_stage_runner import backoff

SETTINGS = Settings(model_backoff_s=0.5, model_backoff_max_s=30)
retries = st.integers(1, 100_000)
jitters = st.floats(0, 1)
wishes = st.none() | st.floats(0, 1e9)


@given(retries, wishes, jitters)
def test_backoff_never_exceeds_its_maximum(retry: int, retry_after_s: float | None, jitter: float) -> None:
    """Regardless of Retry-After, because a run has its own time limit."""
    assert 0.25 <= backoff(SETTINGS, retry, retry_after_s, jitter) <= 30


@given(retries, st.floats(0, 30), jitters)
def test_backoff_respects_retry_after_up_to_its_maximum(retry: int, retry_after_s: float, jitter: float) -> None:
    assert backoff(SETTINGS, retry, retry_after_s, jitter) >= retry_after_s


@pytest.mark.parametrize(("retry", "longest"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (100, 30)])
def test_backoff_doubles_and_half_of_it_is_jitter(retry: int, longest: float) -> None:
    """Runs that were refused together do not retry together."""
    assert backoff(SETTINGS, retry, None, 1.0) == longest
    assert backoff(SETTINGS, retry, None, 0.0) == longest / 2
    assert backoff(SETTINGS, retry, None, 0.5) == longest * 0.75


def test_first_backoff_is_cut_to_the_maximum() -> None:
    assert backoff(Settings(model_backoff_s=60, model_backoff_max_s=2), 1, None, 1.0) == 2
