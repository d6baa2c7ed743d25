"""Every measurement, each in a process of its own, then the page. Some names alone: only those."""

import subprocess
import sys
import time

from benchmarks import figures, lab, page

PROGRAMS = (
    "relay_many_runs",
    "relay_one_run",
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
PROGRAM_S = 900


def main(names: list[str]) -> int:
    """Measure and write; 1 where a measurement failed or gave no figure, never where one was slow."""
    failed = []
    for name in names or PROGRAMS:
        started = time.monotonic()
        (lab.RESULTS / f"{name}.json").unlink(missing_ok=True)  # no figure of an earlier run stands in for this one's
        ended = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"],
            cwd=lab.ROOT,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=PROGRAM_S,
        )
        failed += [name] * (ended.returncode != 0)
        print(f"{name}: {'failed' if ended.returncode else 'done'} in {time.monotonic() - started:.0f} s", flush=True)
    results = page.read_results()
    for name in names or PROGRAMS:
        if name not in failed and not list(figures.of({name: results.get(name, {})})):
            print(f"{name}: gave no figure", flush=True)
            failed.append(name)
    print(f"\n{page.table(figures.of(results))}\n{page.write(results).relative_to(lab.ROOT)} is written")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
