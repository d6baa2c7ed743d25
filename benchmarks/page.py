"""docs/performance.md out of the raw results, with a bar chart for each figure that has a rival."""

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

Made by `make bench`; every figure stands beside what a user would use instead, measured in
the same run on the same machine. Raw results are in `benchmarks/results/full/`. `make bench QUICK=1` does it smaller, in
under three minutes, and leaves this page alone; CI runs it, so that every figure can be had, with no limit on any time.

Claims rest on the CPU that processes used, as the scheduler counts it, and on ratios. Latencies
are of a machine whose cores the publisher, Redis, the server and the load generator share; they
take what else it was doing, and the load below says how much that was. Relays and replays, ours and
the rivals', come before all other work where the system permits that.
"""

_NOTES: Final = """\
## What one gateway carries, and when to add another

A bare uvloop server that writes the same bytes to 1,000 connections and does nothing else takes 6-8 s of CPU a million
writes where it writes to all of them at once, and 13-14 s where one event comes at a time, 2,000 a second: that is the
system's `write` and a turn of the event loop. The gateway took 11-13 s for 1,000 clients on one run beside it, and 27-34 s
for 1,000 runs with a client each, which have an event each to be read from Redis and taken apart (2 busy cores,
processes' CPU, measured in turn).

So a gateway process, which is one core, is full by events and not by streams, whose 8 to 10 KiB are no bound. The table's
rows "a gateway at 80 % of a core" say how many events a second that is: publishers go faster step by step, and what an
event costs at the last pace that this machine carries is reckoned up to 80 %. The less happens at once, the more an event
costs, so count on the row of one client on each run; at 30 events a second of a model that streams, 15,000 are 500 runs
that are watched. What is late grows before a core is full: where a gateway uses more than 0.6 of one for long, or its
event loop's lag has a p99 over 20 ms ([operations](operations.md#when-the-event-loop-is-late)), start another. On one
machine `stagebus gateway --workers N` starts N processes on one port, starts again those that die and drains all
of them at the first signal; more of them than cores bring nothing. Each counts for itself at `/metrics`, and the kernel
chooses whom a scrape reaches: where each has to be seen, start them one by one on ports of their own, behind a proxy.

## What makes the tail of a relay, and what grows

At 2,000 events a second over 1,000 runs an event is with its client after 0.4 ms, p99 0.7-0.8, while ten other jobs want the
same two cores, if all that takes part comes before them (real-time priority); as their equal it is 6 ms, and nchan without
Redis or a log has 5. So that tail is the scheduler's: who wakes while every core is busy waits for its next tick, 4 ms.
Of the 0.4 ms, 0.3 pass between the publisher's stamp and the gateway's read; the gateway itself holds an event for 0.08 ms,
p99 0.16. No garbage collection falls into it: one of 5 ms comes when some thousand streams have been opened.

With 3,000 runs in the place of 10 an event costs the gateway 1.0 to 1.15 times as much, with 5,000 now and then 1.4, where
other jobs want the processor's cache, too. Neither wake-ups nor system calls grow: 2.4-2.6 events a wake-up and one `write`
an event, with 10 as with 3,000. What grows is the time of each: `write` from 10 to 12-15 us, as the kernel's part of a
connection that was last used a second ago has left the cache, and for the same reason a stream's own objects, 1-5 us.

A page of 500 events, the stride of a replay, is 0.5 ms of the gateway's CPU: 0.2 to parse Redis's reply, 0.12 to make the
frames, the rest to read and write them; and 0.2 ms of Redis's. Pages of 250, 1,000 and 1,500 events cost the same an event.

## What bounds the way from end to end

Provider, two workers, Redis, gateway and 500 browsers share the two cores, and 5,000 tokens a second, each of which comes
alone, take 1.3 to 1.6 of them: the workers 0.17-0.20 ms of CPU a token, Redis 0.05, the gateway 0.03, provider and browsers
0.04. So p50 is 3 to 6 ms and p99 33 to 66, as the host lets them run: that is waiting for a core. With 250 runs, 0.95 of
the two cores, the same way takes 1.3 ms, p99 6.5.
"""


def write(results: dict[str, Any]) -> Path:
    """The page and its plots."""
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
    """The figures as a table."""
    lines = ["| what | ours | target | beside it |", "|---|---|---|---|"]
    for row in rows:
        rivals = "; ".join(f"{name} {_number(value)} ({row.ratio(value):.1f}x)" for name, value in row.rivals.items())
        target = "" if row.target is None else f"{'≥' if row.is_more_better else '≤'} {_number(row.target)}"
        met = {True: ", met", False: ", not met", None: ""}[row.is_met]
        lines.append(f"| {row.what} | **{_number(row.ours)}** {row.unit} | {target}{met} | {rivals} |")
    return "\n".join(lines) + "\n"


def plot(row: Figure) -> str:
    """One figure as bars; ours first."""
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
    """Why rivals were left out."""
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
        f"- load average over a minute, at the end of each measurement: {min(loads):.1f} to {max(loads):.1f}, its own processes included",
        f"- Python {last['python']}, Valkey {last['valkey']} (append-only file, fsync every second); {packages}",
        f"- rivals: `benchmarks/rivals/`; {last['nchan'] or 'no nchan'}; the CPU of nchan holds that of taking the publisher's requests, as its publishers speak HTTP",
        "- arq's worker asks for jobs every 0.5 s, so of many that wait one asks sooner; where a worker's slots are all taken it asks for none",
        "- it reads 5 times as many jobs as it has slots, from the oldest on, those that others hold among them: on many workers with few slots each, some stay empty",
    ]
    if many := results.get("relay_many_runs"):
        way = "before all other work" if many["stagebus"].get("is_undisturbed") else "as the equals of all other work"
        lines.append(f"- relays, replays and growth: processes ran {way}")
        own, published = many["stagebus"]["generator_cpu_s_per_million"], many["stagebus"]["published"]
        publisher = published["cpu_s"] / published["events"] * 1e6
        lines.append(f"- the load generator's own CPU, in processes of their own: {_number(own)} s a million events")
        lines[-1] += f" that come to {many['stagebus']['clients']} clients, {_number(publisher)} s a million published"
    return [*lines, *(f"- skipped: {why}" for why in skipped(results)), ""]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
