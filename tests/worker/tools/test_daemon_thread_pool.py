import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

from stagebus.worker.tools.daemon_thread_pool import DaemonThreadPool


def test_calls_run_side_by_side_up_to_the_limit():
    threads = DaemonThreadPool(3)
    meeting = threading.Barrier(3)
    futures = [threads.submit(lambda: meeting.wait(5) and threading.current_thread().name) for _ in range(3)]

    wait(futures, timeout=5)
    assert all(future.done() for future in futures)
    names = {threads.submit(lambda: threading.current_thread().name).result(5) for _ in range(20)}
    assert names <= {"tool-1", "tool-2", "tool-3"}
    threads.shutdown()


def test_further_calls_wait_and_can_be_cancelled():
    threads = DaemonThreadPool(1)
    gate = threading.Event()
    first = threads.submit(gate.wait, 5)
    second, third = threads.submit(str, 2), threads.submit(str, 3)

    assert second.cancel()
    gate.set()
    assert (first.result(5), third.result(5)) == (True, "3")
    threads.shutdown()


def test_errors_belong_to_the_caller():
    threads = DaemonThreadPool(1)

    with pytest.raises(SystemExit):
        threads.submit(sys.exit, 3).result(5)
    assert threads.submit(str, 1).result(5) == "1"
    threads.shutdown()
    with pytest.raises(RuntimeError):
        threads.submit(str, 1)


def test_call_that_hangs_does_not_keep_its_process():
    source = (
        "import threading; from stagebus.worker.tools.daemon_thread_pool import DaemonThreadPool\n"
        "t = DaemonThreadPool(2); started = threading.Event()\n"
        "t.submit(lambda: (started.set(), threading.Event().wait())); started.wait(); t.shutdown()"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=Path(__file__).parents[3], timeout=20, check=False)

    assert done.returncode == 0
