"""Runs every measurement, each in its own process, then prints the figures. Arguments select measurements.

Where a result of every measurement at full size is there, docs/performance.md is made out of them. `QUICK=1` keeps
its results elsewhere and leaves the page as it is: its sizes show that everything works, and no more.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks import capacity, figures, lab, page

PROGRAMS = (
    "relay_many_runs",
    "relay_one_run",
    "relay_views",
    "gateway_capacity",
    "memory_per_stream",
    "replay",
    "append",
    "worker_chunk",
    "pickup",
    "held_runs",
    "fairness",
    "end_to_end",
    "growth",
)
PROGRAM_S = lab.sized(900, 120)


def main(names: list[str]) -> int:
    """Runs the measurements; returns 1 if one failed or gave no figure, never because one was slow."""
    failed = []
    for name in names or PROGRAMS:
        started = time.monotonic()
        (lab.RESULTS / f"{name}.json").unlink(
            missing_ok=True
        )  # a figure of an earlier run must not be taken for this one's
        why = _run(name) or _find_missing(name, lab.read_results())
        print(f"{name}: {why or 'done'} in {time.monotonic() - started:.0f} s", flush=True)
        failed += [name] * bool(why)
    results = lab.read_results()
    measured = {name: results[name] for name in names or PROGRAMS if name in results}
    print(f"\n{page.table(figures.of(measured))}")
    for why in page.skipped(measured):
        print(f"skipped: {why}")
    if not lab.IS_QUICK and set(PROGRAMS) <= set(results):
        print(f"{page.write(results).relative_to(lab.ROOT)} is written")
        capacity.write()
    return 1 if failed else 0


def _run(name: str) -> str:
    """Returns the failures; empty if there are none."""
    program = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}"], cwd=lab.ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return "failed" if program.wait(PROGRAM_S) else ""
    except subprocess.TimeoutExpired:
        return "took too long"
    finally:
        # Servers that it started, where it had no time to end them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _find_missing(name: str, results: dict[str, Any]) -> str:
    found = list(figures.of({name: results[name]}))
    if not found:
        return "gave no figure"
    return ", ".join(f"gave no number: {figure.what}" for figure in found if not figure.is_number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
