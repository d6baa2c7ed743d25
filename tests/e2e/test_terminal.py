"""`stagebus run`, `tail`, `ls` and `show` at a pseudo-terminal: Ctrl-C, questions of the model, window width, colours."""

import asyncio
import sys

import pytest

from tests.support.pseudo_terminal import CTRL_C, CTRL_D, PseudoTerminal
from tests.support.strict_client import StrictClient, cancel_run, get_run, post_run
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="session")

SLOW = ["run", "What is the weather in Paris and in Tokyo?", "--model", "demo:delay_ms=100"]
CTRL_C_ASKS = "Return to go on:"
QUESTION = {
    "user_prompt": 'call ask_user {"question": "Which one?"}',
    "tools": ["ask_user"],
    "model": "demo:delay_ms=0",
}


def terminal(system: System, *args: str, **options) -> PseudoTerminal:
    return PseudoTerminal([sys.executable, "-m", "stagebus.cli", *args, "--url", system.url], **options)


def run_id_of(shown: PseudoTerminal) -> str:
    return shown.text.split("run 01", 1)[1].split()[0].join(["01", ""])


async def test_ctrl_c_asks_and_can_cancel_the_run(healthy: System) -> None:
    async with terminal(healthy, *SLOW) as shown:
        await shown.until("This is the demo model")
        shown.type(CTRL_C)
        await shown.until(CTRL_C_ASKS)
        shown.type("c\n")
        code = await shown.exit_code()

    assert code == 3
    assert shown.text.rstrip().endswith("\ncancelled")
    assert (await get_run(healthy.url, run_id_of(shown)))["status"] == "cancelled"


async def test_return_after_ctrl_c_continues_the_output(healthy: System) -> None:
    async with terminal(healthy, *SLOW[:-1], "demo:delay_ms=15") as shown:
        await shown.until("This is")
        shown.type(CTRL_C)
        await shown.until(CTRL_C_ASKS)
        shown.type("\n")
        code = await shown.exit_code()
    client = await StrictClient(healthy.urls, run_id_of(shown)).follow()

    assert code == 0
    assert client.text("synthesis") in shown.text
    text = shown.text.replace("^C", "")
    for part in text.split("\n"):
        if "Ctrl-C" in part:
            text = text.replace(f"\n{part}\n", "")
    assert client.text("extraction") in text


@pytest.mark.parametrize("keys", [CTRL_C, CTRL_D])
async def test_second_ctrl_c_detaches_after_the_last_shown_event(healthy: System, keys: str) -> None:
    async with terminal(healthy, *SLOW) as shown:
        await shown.until("This is the")
        shown.type(CTRL_C)
        await shown.until(CTRL_C_ASKS)
        client = StrictClient(healthy.urls, run_id_of(shown))
        following = asyncio.create_task(client.follow())
        await client.until(lambda c: c.names().count("tool_completion_chunk") > 2)
        came = len(client.events)
        await client.until(lambda c: len(c.events) > came + 3)
        shown.type(keys)
        code = await shown.exit_code()
    assert (await get_run(healthy.url, client.run_id))["status"] == "running"
    await cancel_run(healthy.url, client.run_id)
    await following
    last_id = shown.text.split(f"detached; the run continues: stagebus tail {client.run_id} --from ")[1].split()[0]

    assert code == 130
    client.events = [event for event in client.events if event.sequence <= int(last_id.split("-")[1])]
    assert shown.text[shown.text.index("This is the") :].split("^C")[0] == client.text("extraction")


async def test_question_of_the_model_is_answered_at_the_terminal(healthy: System) -> None:
    async with terminal(healthy, "run", QUESTION["user_prompt"], "--tool", "ask_user") as shown:
        await shown.until("the model asks: Which one?")
        await shown.until("your answer, or Return for later:")
        shown.type("the blue one\n")
        code = await shown.exit_code()

    assert code == 0
    assert "is answered: the blue one" in shown.text
    assert "the blue one" in shown.text.split("ask_user: ", 1)[1]


async def test_question_answered_elsewhere_is_withdrawn(healthy: System) -> None:
    run_id = await post_run(healthy.url, QUESTION)
    async with terminal(healthy, "tail", run_id) as shown:
        await shown.until("your answer, or Return for later:")
        (pending,) = (await get_run(healthy.url, run_id))["pending_approvals"]
        async with terminal(healthy, "answer", run_id, pending["call_id"], "red") as other:
            assert await other.exit_code() == 0
        code = await shown.exit_code()

    assert code == 0
    assert "is answered: red" in shown.text


async def test_question_left_for_later_is_asked_again_by_tail(healthy: System) -> None:
    run_id = await post_run(healthy.url, QUESTION)
    async with terminal(healthy, "tail", run_id) as shown:
        await shown.until("your answer, or Return for later:")
        shown.type("\n")
        await shown.until(f"later: stagebus answer {run_id} ")
        shown.type(CTRL_C)
        await shown.until(CTRL_C_ASKS)
        shown.type(CTRL_C)
        assert await shown.exit_code() == 130
    async with terminal(healthy, "tail", run_id) as shown:
        await shown.until("your answer, or Return for later:")
        shown.type("green\n")
        assert await shown.exit_code() == 0


async def test_output_fits_a_narrow_window_and_respects_no_color(healthy: System) -> None:
    async with terminal(healthy, *SLOW[:-1], "demo:delay_ms=15", env={"NO_COLOR": "1"}, columns=30) as shown:
        await shown.until("This is the")
        shown.resize(20)
        code = await shown.exit_code()
    client = await StrictClient(healthy.urls, run_id_of(shown)).follow()

    assert code == 0
    assert client.text("synthesis") in shown.text
    assert "\x1b[3" not in shown.raw
    assert "\x1b[1m" not in shown.raw
    assert shown.raw.count("\x1b[?25l") == shown.raw.count("\x1b[?25h"), "the terminal's cursor is visible again"


async def test_ls_truncates_rows_to_the_window(healthy: System) -> None:
    run_id = await post_run(healthy.url, {"user_prompt": "日本語の天気 " * 20, "model": "demo:delay_ms=0"})
    await StrictClient(healthy.urls, run_id).follow()
    async with terminal(healthy, "ls", "--limit", "3", columns=90) as shown:
        assert await shown.exit_code() == 0
    async with terminal(healthy, "show", run_id) as record:
        assert await record.exit_code() == 0

    (row,) = (line for line in shown.text.splitlines() if run_id in line)
    assert row.rstrip().endswith("…")
    assert sum(2 if ord(c) > 0x2E80 else 1 for c in row) <= 90
    assert "status   succeeded" in record.text
    assert "stage    extraction  completed" in record.text
