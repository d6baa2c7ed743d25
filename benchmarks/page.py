"""Writes docs/performance.md from the raw results, with a bar chart for each figure that has a rival."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks import figures, lab
from benchmarks.figures import Figure

DOCS: Final = lab.ROOT / "docs"
PLOTS: Final = DOCS / "performance"

_ROW_PX: Final = 26
_LABEL_PX: Final = 170
_BAR_PX: Final = 330
_COLOURS: Final = ("#2563eb", "#94a3b8")

_HEAD: Final = """\
# Performance

`make bench` makes this page. Every figure is compared with what one would use instead, measured in the same run on the same
machine. Raw results are in `benchmarks/results/full/`. `make bench QUICK=1` measures a smaller size in under three minutes and
leaves this page unchanged; CI runs it to check that every figure can be measured, without limits on time.

The comparisons rest on CPU time as the scheduler counts it, and on ratios. Publisher, Redis, server and load generator share the
cores, so latencies depend on what else the machine was doing; the load average is listed below. Relays and replays, those of the
rivals included, run at real-time priority if the system permits it.
"""

_NOTES: Final = """\
## How much one gateway carries, and when to add another

A bare uvloop server that writes the same bytes to 1,000 connections and does nothing else uses 6-8 s of CPU per million writes
if it writes to all connections together, and 13-14 s if events come one at a time, 2,000 per second: the cost of the system call
`write` and of an iteration of the event loop. In the same session the gateway used 11-13 s for 1,000 clients on one run, and
27-34 s for 1,000 runs with one client each, where every event has to be read from Redis and parsed (2 busy cores, CPU time of the
processes, measured in turn).

The limit of a gateway process, which uses one core, is therefore events and not streams (8 to 10 KiB each). The rows "a gateway
at 80 % of a core" give the number of events per second: publishers speed up step by step, and the cost of an event at the last
pace that this machine sustains is extrapolated to 80 %. An event costs more the less happens at the same time, so plan with the
row of one client per run: with a model that streams 30 events per second, 15,000 events per second are 500 watched runs. Latency
grows before a core is full. If a gateway uses more than 0.6 of a core for long, or its event-loop lag has a p99 over 20 ms
([operations](operations.md#when-the-event-loop-is-late)), start another one. `stagebus gateway --workers N` starts N processes on
one port, restarts those that die and drains all of them at the first signal; more processes than cores do not help. Each process
has its own `/metrics`, and the kernel chooses which one a scrape reaches: to monitor each, start them on ports of their own behind
a proxy.

## The tail of a relay, and what grows

At 2,000 events per second over 1,000 runs an event reaches its client after 0.4 ms (p99 0.7-0.8 ms) while ten other jobs compete
for the two cores, if all participating processes have real-time priority. At normal priority the p99 is 6 ms; nchan without Redis
or a log has 5. The tail is thus the scheduler's: a process that wakes while every core is busy waits for the next tick, 4 ms. Of
the 0.4 ms, 0.3 pass between the publisher's timestamp and the gateway's read; the gateway itself holds an event for 0.08 ms
(p99 0.16). Garbage collection does not interfere: one collection of 5 ms happens after some thousand streams were opened.

With 3,000 runs instead of 10 an event costs the gateway 1.0 to 1.15 times as much; with 5,000, occasionally 1.4 times, when other
jobs compete for the processor's cache. The numbers of wake-ups and system calls do not grow: 2.4-2.6 events per wake-up and one
`write` per event in both cases. The time of each grows: `write` from 10 to 12-15 us, because the kernel's data of a connection that
was last used a second ago has left the cache, and for the same reason access to a stream's own objects by 1-5 us.

A page of 500 events, the unit of a replay, costs the gateway 0.5 ms of CPU: 0.2 to parse Redis's reply, 0.12 to build the frames,
the rest to read and write; and Redis 0.2 ms. Pages of 250, 1,000 and 1,500 events cost the same per event.

## Other protocols

A live event costs the gateway 1.5 to 1.65 times as much in a view as natively if each run has a client of its own: 43 s of CPU per
million events natively, 65 to 72 s in the views. The difference is one JSON decode, the fold and one formatted message. With 1,000
clients on one run the fold is shared, and what is left is the longer frame: 1.1 times. The text of a token is 190 bytes natively and 280
as an event of the Responses API. A stream takes 8 KiB natively and 11 to 14 KiB in a view, including a fold that it does not share; a
client more on the same run takes as much as a native one. Replaying costs more: a late client of a view has every event folded, 6 to 10
us each, where the native stream copies bytes.
Durable Streams have no fold: 1.35 times the native cost with a client for each run, 1.2 times with all of them on one, and 10 KiB a
stream, measured later beside the native stream.

## The limit end to end

Provider, two workers, Redis, gateway and 500 browsers share the two cores. 5,000 tokens per second, each on its own, use 1.3 to 1.6
cores: the workers 0.17-0.20 ms of CPU per token, Redis 0.05, the gateway 0.03, provider and browsers 0.04. p50 is 3 to 6 ms and p99
33 to 66 ms, depending on the host: the time is spent waiting for a core. With 250 runs, which use 0.95 cores, p50 is 1.3 ms and p99
6.5 ms.
"""


def write(results: dict[str, Any]) -> Path:
    """Writes the page and its plots; returns the page's path."""
    rows = list(figures.of(results))
    PLOTS.mkdir(parents=True, exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    plots = []
    for number, row in enumerate(rows):
        if row.rivals and row.unit:
            name = f"{number:02d}.svg"
            (PLOTS / name).write_text(plot(row))
            plots.append(f"![{row.what}](performance/{name})")
    page = DOCS / "performance.md"
    page.write_text(
        "\n".join([_HEAD, table(rows), *_conditions(results), _NOTES, "## Plots\n", "\n\n".join(plots), ""])
    )
    return page


def table(rows: Iterable[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    lines = ["| measurement | ours | target | alternatives |", "|---|---|---|---|"]
    for row in rows:
        rivals = "; ".join(f"{name} {_number(value)} ({row.ratio(value):.1f}x)" for name, value in row.rivals.items())
        target = "" if row.target is None else f"{'≥' if row.is_more_better else '≤'} {_number(row.target)}"
        met = {True: ", met", False: ", not met", None: ""}[row.is_met]
        lines.append(f"| {row.what} | **{_number(row.ours)}** {row.unit} | {target}{met} | {rivals} |")
    return "\n".join(lines) + "\n"


def plot(row: Figure) -> str:
    """Returns one figure as an SVG bar chart, ours first."""
    bars = [("Stagebus", row.ours), *row.rivals.items()]
    most = max(value for _, value in bars) or 1
    parts = []
    for number, (name, value) in enumerate(bars):
        y = 30 + number * _ROW_PX
        width = max(1, value / most * _BAR_PX)
        colour = _COLOURS[number > 0]
        parts += [
            f'<text x="{_LABEL_PX - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LABEL_PX}" y="{y}" width="{width:.0f}" height="{_ROW_PX - 8}" rx="2" fill="{colour}"/>',
            f'<text x="{_LABEL_PX + width + 6:.0f}" y="{y + 14}">{_number(value)} {escape(row.unit)}</text>',
        ]
    height = 38 + len(bars) * _ROW_PX
    better = "more is better" if row.is_more_better else "less is better"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="640" height="{height}" fill="#fff"/>'
        f'<text x="8" y="18" font-weight="bold">{escape(row.what)} ({better})</text>{"".join(parts)}</svg>\n'
    )


def skipped(results: dict[str, Any]) -> list[str]:
    """Returns the reasons why rivals were skipped."""
    rows = (row for result in results.values() for row in result.values() if isinstance(row, dict))
    return sorted({row["skipped"] for row in rows if "skipped" in row})


def _conditions(results: dict[str, Any]) -> list[str]:
    machines = [result["machine"] for result in results.values()]
    if not machines:
        return []
    last = machines[-1]
    packages = ", ".join(f"{name} {version}" for name, version in last["packages"].items())
    loads = [machine["load_1m"] for machine in machines]
    lines = [
        "## Conditions\n",
        f"- {last['cpu']}, {last['cores']} cores, Linux {last['kernel']}",
        f"- load average over one minute at the end of each measurement: {min(loads):.1f} to {max(loads):.1f}, including the measured processes",
        f"- Python {last['python']}, Valkey {last['valkey']} (append-only file, fsync every second); {packages}",
        f"- rivals: `benchmarks/rivals/`; {last['nchan'] or 'no nchan'}; nchan's CPU includes handling the publisher's requests, because its publishers use HTTP",
        "- arq's workers poll every 0.5 s, so with many waiting workers one polls sooner; a worker without free slots does not poll",
        "- an arq worker reads 5 times as many jobs as it has slots, oldest first, including those that other workers hold: with many workers of few slots, some slots stay empty",
    ]
    if many := results.get("relay_many_runs"):
        way = "at real-time priority" if many["stagebus"].get("is_undisturbed") else "at normal priority"
        lines.append(f"- relays, replays and growth: processes ran {way}")
        own, published = many["stagebus"]["generator_cpu_s_per_million"], many["stagebus"]["published"]
        publisher = published["cpu_s"] / published["events"] * 1e6
        lines.append(
            f"- CPU of the load generator, which runs in its own processes: {_number(own)} s per million events"
        )
        lines[-1] += f" received by {many['stagebus']['clients']} clients, {_number(publisher)} s per million published"
    return [*lines, *(f"- skipped: {why}" for why in skipped(results)), ""]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
