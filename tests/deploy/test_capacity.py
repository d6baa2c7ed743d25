"""docs/capacity.md says what the measured figures come to."""

from dataclasses import replace

from benchmarks import capacity
from benchmarks.capacity import Load, plan, read_figures
from tests.support.system import ROOT

FIGURES = read_figures((ROOT / "docs" / "performance.md").read_text())


def test_capacity_page_is_current() -> None:
    page = (ROOT / "docs" / "capacity.md").read_text()

    assert page == capacity.page(FIGURES), "python -m benchmarks.capacity"


def test_plan_grows_with_its_load_and_its_costs() -> None:
    small, large = plan(Load(10_000), FIGURES), plan(Load(100_000), FIGURES)
    dearer = plan(Load(100_000), replace(FIGURES, redis_ms_per_token=2 * FIGURES.redis_ms_per_token))

    assert 8 < large.workers / small.workers < 11
    assert 1.9 < dearer.redis / large.redis < 2.1
    assert dearer.systems == 2
    assert plan(Load(1), FIGURES).gateways == 2, "one may restart"


def test_simulated_peak_of_a_small_system_is_far_above_its_mean() -> None:
    peaks = [capacity.peak_of(mean, 40) / mean for mean in (10, 100, 1000, 100_000)]

    assert peaks[0] > 1.5
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 1.05
