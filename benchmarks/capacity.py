"""Plans a system of a given size out of measured figures, and writes docs/capacity.md.

    python -m benchmarks.capacity                              the page
    python -m benchmarks.capacity --streams 50000 --active 0.2 one plan, printed

The figures are those of docs/performance.md, which the benchmarks write. How many runs stream at once is simulated: runs
begin at random and last at random, so that a small system has peaks far above its mean.
"""

import argparse
import random
import re
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from math import ceil, sqrt
from pathlib import Path
from typing import Final

from stagebus.shared.domain.partitions import TAGS

DOCS: Final = Path(__file__).parent.parent / "docs"
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
# The share of a core that a process is planned to use. Latency grows before a core is full.
GATEWAY_USE: Final = 0.6
WORKER_USE: Final = 0.7
REDIS_USE: Final = 0.7
# STAGEBUS_STREAMS_MAX.
GATEWAY_STREAMS_MAX: Final = 20_000
# The record, the stages and the other events of a run, beside its tokens; measured with parked runs.
RUN_BYTES: Final = 6_000
SIMULATED_MAX: Final = 2_000
SIMULATED_S: Final = 3_600


@dataclass(frozen=True)
class Figures:
    """Measured costs."""

    gateway_us_per_event: float
    gateway_kib_per_stream: float
    worker_ms_per_token: float
    redis_ms_per_token: float
    redis_bytes_per_token: float


@dataclass(frozen=True)
class Load:
    """The load that a system is to carry.

    Args:
        streams: open streams.
        active: the share of them whose run streams tokens at a moment; the others wait for tools, people or clients.
        tokens_per_s: of a run that streams.
        run_s: how long a run streams.
        retention_s: how long its log stays.
    """

    streams: int
    active: float = 0.1
    tokens_per_s: float = 30
    run_s: float = 40
    retention_s: float = 3_600


@dataclass(frozen=True)
class Plan:
    """The processes that carry a load; Redis in primaries, each with one core."""

    streaming_mean: int
    streaming_peak: int
    tokens_per_s: int
    gateways: int
    gateway_gib: float
    workers: int
    redis: int
    redis_gib: float
    systems: int


def read_figures(page: str) -> Figures:
    """Reads the figures from the text of docs/performance.md."""

    def row(what: str) -> float:
        match = re.search(rf"^\| {re.escape(what)} \| \*\*([\d.,]+)\*\*", page, re.MULTILINE)
        assert match, f"docs/performance.md has no row {what!r}"
        return float(match[1].replace(",", ""))

    said = re.search(r"the workers [\d.]+-([\d.]+) ms of CPU\s+per\s+token,\s+Redis ([\d.]+)", page)
    assert said, "docs/performance.md says what a token costs end to end"
    return Figures(
        # At 80 % of a core so many events: the inverse is the cost of one.
        0.8e6 / row("a gateway at 80% of a core, 1000 streams, a client on each run"),
        row("gateway memory an open stream"),
        float(said[1]),
        float(said[2]),
        row("append: Redis memory a token event"),
    )


def plan(load: Load, figures: Figures) -> Plan:
    """Returns the processes that carry a load at its peak."""
    mean = load.streams * load.active
    peak = peak_of(mean, load.run_s)
    tokens_per_s = peak * load.tokens_per_s
    gateways = max(
        tokens_per_s * figures.gateway_us_per_event / 1e6 / GATEWAY_USE, load.streams / GATEWAY_STREAMS_MAX, 2
    )
    redis = max(1, ceil(tokens_per_s * figures.redis_ms_per_token / 1000 / REDIS_USE))
    kept_runs = mean / load.run_s * load.retention_s + load.streams
    run_bytes = RUN_BYTES + load.run_s * load.tokens_per_s * figures.redis_bytes_per_token
    return Plan(
        streaming_mean=round(mean),
        streaming_peak=round(peak),
        tokens_per_s=round(tokens_per_s),
        gateways=ceil(gateways),
        gateway_gib=load.streams * figures.gateway_kib_per_stream / 2**20,
        workers=max(2, ceil(tokens_per_s * figures.worker_ms_per_token / 1000 / WORKER_USE)),
        redis=redis,
        redis_gib=kept_runs * run_bytes / 2**30,
        systems=ceil(redis / len(TAGS)),
    )


def peak_of(mean: float, run_s: float) -> float:
    """Returns the largest number of runs that stream at once within an hour.

    Small systems are simulated. For large ones the number is close to normally distributed, and its maximum of an hour is
    some four deviations above the mean.
    """
    if mean > SIMULATED_MAX:
        return mean + 4 * sqrt(mean)
    chance = random.Random(41)
    ends: list[float] = []
    now, most = -10 * run_s, 0
    while now < SIMULATED_S:
        now += chance.expovariate(mean / run_s)
        while ends and ends[0] <= now:
            heappop(ends)
        heappush(ends, now + chance.lognormvariate(0, 0.8) * run_s / 1.377)
        most = max(most, len(ends)) if now > 0 else 0
    return most


_HEAD: Final = """# Capacity

How many gateways, workers and Redis primaries a system needs. `python -m benchmarks.capacity` makes this page out of the measured
figures in [performance](performance.md) and a simulation of runs that begin and last at random; a test fails if it is out of date. It is
a plan on paper: only a load like that of its first row has been run as a whole, on two cores ([the limit end to end](performance.md#the-limit-end-to-end)).

Each process uses one core. The plan leaves room: gateways use {gateway:.0%} of their core at the peak of an hour, workers {worker:.0%},
Redis {redis:.0%}.
"""
_TABLE: Final = """
| open streams | stream tokens at once, mean and peak | tokens/s at the peak | gateways | their streams' memory | workers | Redis primaries | their memory |
|---|---|---|---|---|---|---|---|
"""
_NOTES: Final = """
The rows assume that one stream in {share} is of a run that streams tokens at that moment, {tokens} a second for {run} s, and a retention
of an hour. Yours will differ: `python -m benchmarks.capacity --streams 50000 --active 0.3 --retention-s 86400`.

- **Redis is the first limit.** A token on its own costs it {redis_ms} ms of CPU, so one primary carries {per_primary:,.0f} tokens a
  second, which is {runs_per_primary:,.0f} runs that stream. Faster models send several tokens in one append, which costs a seventh of that.
- **More than one primary is a cluster** ([operations](operations.md#cluster)): {partitions} partitions divide over its nodes, so at most
  {partitions} primaries. Its rows are reckoned from one server's figures, not measured. For a row that needs more, run several systems,
  with tenants divided among them.
- **Memory is retention.** A run of {run} s leaves {run_kib:,.0f} KiB. A day's retention needs 24 times the table's memory: keep runs shorter,
  or export and delete them.
- **Workers cost most.** They parse each provider's chunk, merge it and append it: {worker_ms} ms a token. Their slots
  (`STAGEBUS_WORKER_CONCURRENCY`) should exceed the runs that stream, since runs that wait for tools hold one, too.
- **Gateways are bound by events, not streams**: {gateway_us:.1f} us an event to one client; many clients of one run cost a quarter each.
- Parked runs cost memory alone ([operations](operations.md#many-parked-runs)).
"""


def page(figures: Figures) -> str:
    """Returns docs/capacity.md."""
    load = Load(1)
    rows = [_row(Load(streams), plan(Load(streams), figures)) for streams in SIZES]
    per_primary = REDIS_USE * 1000 / figures.redis_ms_per_token
    notes = _NOTES.format(
        share=round(1 / load.active), tokens=load.tokens_per_s, run=load.run_s, redis_ms=figures.redis_ms_per_token,
        per_primary=per_primary, runs_per_primary=per_primary / load.tokens_per_s, partitions=len(TAGS),
        run_kib=(RUN_BYTES + load.run_s * load.tokens_per_s * figures.redis_bytes_per_token) / 1024,
        worker_ms=figures.worker_ms_per_token, gateway_us=figures.gateway_us_per_event,
    )  # fmt: skip
    return (
        _HEAD.format(gateway=GATEWAY_USE, worker=WORKER_USE, redis=REDIS_USE) + _TABLE + "\n".join(rows) + "\n" + notes
    )


def write() -> None:
    """Writes docs/capacity.md from docs/performance.md."""
    (DOCS / "capacity.md").write_text(page(read_figures((DOCS / "performance.md").read_text())))


def _row(load: Load, made: Plan) -> str:
    redis = f"{made.redis:,}" + (f" ({made.systems} systems)" if made.systems > 1 else "")
    cells = [
        f"{load.streams:,}", f"{made.streaming_mean:,}, {made.streaming_peak:,}", f"{made.tokens_per_s:,}",
        f"{made.gateways:,}", f"{made.gateway_gib:.2g} GiB" if made.gateway_gib < 10 else f"{made.gateway_gib:,.0f} GiB",
        f"{made.workers:,}", redis, f"{made.redis_gib:,.1f} GiB",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints one plan if a load is given, else writes the page."""
    parser = argparse.ArgumentParser(description="Plans a system of a given size.")
    parser.add_argument("--streams", type=int)
    for name, default in asdict(Load(0)).items():
        if name != "streams":
            parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    given = vars(parser.parse_args())
    if given["streams"] is None:
        write()
        return
    figures = read_figures((DOCS / "performance.md").read_text())
    for name, value in asdict(plan(Load(**given), figures)).items():
        print(
            f"{name.replace('_', ' '):16} {value:,.1f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):16} {value:,}"
        )


if __name__ == "__main__":
    main()
