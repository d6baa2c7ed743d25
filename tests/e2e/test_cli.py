"""`stagebus run`, `tail`, `ls`, `cancel` and `models` with pipes instead of a terminal, against a live system."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parent.parent.parent
WEATHER = "What is the weather in Paris and in Tokyo?"
SLOW = {"user_prompt": WEATHER, "model": "demo:delay_ms=300"}


async def start(system: System, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stagebus.cli", *args, "--url", system.url, cwd=ROOT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


async def stagebus(system: System, *args: str) -> tuple[int, str, str]:
    """Runs a command; returns its exit code, stdout and stderr."""
    process = await start(system, *args)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_run_prints_text_to_stdout_and_progress_to_stderr(healthy: System) -> None:
    code, out, err = await stagebus(healthy, "run", WEATHER)
    run_id = err.split()[1]
    client = await StrictClient(healthy.urls, run_id).follow()

    assert code == 0
    assert out == f"{client.text('extraction')}\n{client.text('synthesis')}\n"
    assert err.count("\nget_weather {") == 2
    assert err.count("\nget_weather: {") == 2
    assert re.fullmatch(r"done in \d+\.\d s: 2 calls, \d+ tokens", err.splitlines()[-1])
    assert "\x1b" not in out + err


async def test_run_without_synthesis_has_no_events_of_that_stage(healthy: System) -> None:
    code, out, err = await stagebus(healthy, "run", WEATHER, "--no-synthesis", "--model", "demo:delay_ms=0", "--json")
    events = [json.loads(line) for line in out.splitlines()]

    assert code == 0
    assert [event["id"].split("-")[1] for event in events] == [str(n) for n in range(1, len(events) + 1)]
    assert events[-1]["event"] == "done"
    assert not any(event["data"]["stage_id"] == "synthesis" for event in events)
    assert err.startswith("run 01")


async def test_system_prompt_and_model_reach_the_run(healthy: System) -> None:
    _, _, err = await stagebus(healthy, "run", "hi", "--system", "Be brief.", "--model", "demo:delay_ms=0")
    run = await get_run(healthy.url, err.split()[1])

    assert run["model"] == "demo:delay_ms=0"
    record = await healthy.redis.hget(f"sb:run:{{{run['id']}}}", "request")
    assert json.loads(record)["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_tail_continues_after_an_event_id(healthy: System) -> None:
    run_id = await post_run(healthy.url, {"user_prompt": WEATHER, "model": "demo:delay_ms=0"})
    client = await StrictClient(healthy.urls, run_id).follow()
    code, out, _ = await stagebus(healthy, "tail", run_id, "--from", client.events[4].id, "--json")

    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == [event.id for event in client.events[5:]]


async def test_failed_run_gives_exit_code_1(healthy: System) -> None:
    code, _, err = await stagebus(healthy, "run", "hi", "--model", "demo:status=400")

    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")


async def test_answer_that_was_cut_off_gives_exit_code_8(healthy: System) -> None:
    request = {"user_prompt": "hi", "model": "demo:delay_ms=0", "tools": [], "synthesis": False, "max_tokens": 2}
    run_id = await post_run(healthy.url, request)
    code, _, err = await stagebus(healthy, "tail", run_id)

    assert code == 8
    assert "cut off at the token limit" in err
    assert (await get_run(healthy.url, run_id))["result"]["finish_reason"] == "length"


async def test_cancel_ends_the_run_and_tail_exits_with_3(healthy: System) -> None:
    run_id = await post_run(healthy.url, SLOW)
    tailing = await start(healthy, "tail", run_id)
    assert tailing.stdout is not None
    await tailing.stdout.read(1)
    code, out, _ = await stagebus(healthy, "cancel", run_id)
    _, err = await tailing.communicate()

    assert code == 0
    assert out in (f"{run_id} is being cancelled\n", f"{run_id} cancelled\n")
    assert tailing.returncode == 3
    assert err.decode().splitlines()[-1] == "cancelled"
    assert (await stagebus(healthy, "cancel", run_id))[1] == f"{run_id} cancelled\n"


async def test_ctrl_c_detaches_and_prints_how_to_continue(healthy: System, tmp_path: Path) -> None:
    process = await start(healthy, "run", WEATHER, "--model", "demo:delay_ms=300")
    assert process.stdout is not None
    await process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    *_, run_id, _, last_id = err.decode().split()

    assert process.returncode == 130
    assert "detached; the run continues: stagebus tail" in err.decode()
    assert (await get_run(healthy.url, run_id))["status"] == "running"
    rest = await start(healthy, "tail", run_id, "--from", last_id, "--json")
    assert rest.stdout is not None
    assert json.loads(await rest.stdout.readline())["id"].endswith(f"-{int(last_id.split('-')[1]) + 1}")
    rest.kill()
    await rest.communicate()
    waiting = await start(healthy, "show", run_id, "--wait", "--json")
    await stagebus(healthy, "cancel", run_id)
    assert json.loads((await waiting.communicate())[0])["status"] == "cancelled"
    document = tmp_path / "run.json"
    assert (await stagebus(healthy, "export", run_id, "--output", str(document)))[0] == 0
    assert json.loads(document.read_text())["events"][-1]["event"] == "cancel"
    assert (await stagebus(healthy, "delete", run_id))[:2] == (0, f"{run_id} is deleted\n")
    assert (await stagebus(healthy, "show", run_id))[0] == 4


async def test_closed_pipe_prints_no_traceback(healthy: System) -> None:
    """As in `stagebus run … | head -1`."""
    process = await start(healthy, "run", WEATHER, "--model", "demo:delay_ms=20", "--json")
    assert process.stdout is not None
    await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        assert process.stderr is not None
        err = (await process.stderr.read()).decode()
        await process.wait()

    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Exception" not in err


async def test_ls_lists_the_newest_run_first(healthy: System) -> None:
    run_id = await post_run(healthy.url, {"user_prompt": "How\nare you?", "model": "demo:delay_ms=0"})
    await StrictClient(healthy.urls, run_id).follow()
    _, out, _ = await stagebus(healthy, "ls", "--limit", "1")
    _, as_json, _ = await stagebus(healthy, "ls", "--limit", "1", "--json")

    assert out.split()[:2] == [run_id, "succeeded"]
    assert out.endswith("  How are you?\n")
    assert json.loads(as_json)["id"] == run_id


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("tail", "01J00000000000000000000000"), 4, "there is no run"),
        (("tail", "01J00000000000000000000000", "--from", "junk"), 2, "the cursor must be an event id"),
        (("cancel", "nope"), 4, "there is no run"),
        (("run", ""), 2, "PROMPT"),
        (("run",), 2, "Missing argument"),
        (("walk",), 2, "No such command"),
    ],
)
async def test_user_errors_have_a_message_and_an_exit_code(
    healthy: System, args: tuple[str, ...], code: int, said: str
) -> None:
    exit_code, out, err = await stagebus(healthy, *args)

    assert exit_code == code
    assert said in err
    assert out == ""
    assert "Traceback" not in err


async def test_models_are_listed_and_can_be_set_for_each_stage(healthy: System) -> None:
    code, out, _ = await stagebus(healthy, "models")
    model = "extraction=demo:delay_ms=0,calls=1,synthesis=demo:delay_ms=0,tokens=3"
    ran, _, err = await stagebus(healthy, "run", WEATHER, "--model", model)
    run = await get_run(healthy.url, err.split()[1])

    assert (code, ran) == (0, 0)
    assert out.splitlines()[0].split()[:4] == ["demo:delay_ms=2", "default", "tools", "native;"]
    assert out.splitlines()[-1].startswith("*  any name")
    assert run["model"] == model
    assert [stage["model"] for stage in run["stages"]] == ["demo:delay_ms=0,calls=1", None, "demo:delay_ms=0,tokens=3"]
    assert run["stages"][0]["provider"] == "default"
