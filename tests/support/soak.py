"""Soak test: sends many runs through one worker and one gateway and checks that their memory does not grow.

    python -m tests.support.soak --runs 10000        (make soak RUNS=10000)

Prints the resident memory of both after the first tenth and after the last run. Fails if the second is more than 10 %
above the first.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import httpx

from tests.support.strict_client import StrictClient
from tests.support.system import Process, System

PARALLEL = 20
GROWTH_MAX = 1.10
BODY = {"user_prompt": "What is the weather in Paris?", "model": "demo:delay_ms=0"}


def resident_kib(process: Process) -> int:
    """Returns the resident memory (VmRSS) in KiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


async def soak(runs: int) -> bool:
    """Makes the runs; returns whether the memory of both processes stayed within the limit."""
    env = {"STAGEBUS_RETENTION_S": "30"}
    async with System(Path(tempfile.mkdtemp(prefix="soak-")), env=env) as system:
        processes = {"gateway": system.gateways[0], "worker": system.workers[0]}
        await _make(system, runs // 10)
        before = {name: resident_kib(process) for name, process in processes.items()}
        await _make(system, runs - runs // 10)
        after = {name: resident_kib(process) for name, process in processes.items()}
    for name in processes:
        print(f"{name}: {before[name]} KiB after {runs // 10} runs, {after[name]} KiB after {runs}")
    return all(after[name] <= GROWTH_MAX * before[name] for name in processes)


async def _make(system: System, count: int) -> None:
    remaining = iter(range(count))

    async def lane() -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            for _ in remaining:
                run_id = (await http.post(f"{system.url}/runs", json=BODY)).json()["id"]
                client = await StrictClient(system.urls, run_id).follow()
                assert client.names()[-1] == "done", client.events[-1]

    await asyncio.gather(*(lane() for _ in range(PARALLEL)))


def main() -> None:
    """Runs the soak test; exits with 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    sys.exit(0 if asyncio.run(soak(parser.parse_args().runs)) else 1)


if __name__ == "__main__":
    main()
