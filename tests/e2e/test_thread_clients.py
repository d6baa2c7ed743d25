"""Conversations with the Python client and at the terminal, over the whole system."""

import asyncio
import sys
from itertools import count

import pytest

from stagebus.client import AsyncStagebus, Conflict, NotFound, RunCancelled, Stagebus
from tests.support.pseudo_terminal import CTRL_C, CTRL_D, PseudoTerminal
from tests.support.system import System
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUICK, SLOW = "demo:delay_ms=0,tokens=20", "demo:delay_ms=30,tokens=300"
NUMBERS = count()


def new_thread_id() -> str:
    return f"talk {next(NUMBERS)}/é"


async def test_each_answer_follows_what_was_said_before(healthy: System) -> None:
    async with AsyncStagebus(healthy.url) as bus:
        thread = bus.threads.open(new_thread_id())
        first = await thread.send("Hello", model=QUICK, tools=[])
        text = await first.text()
        second = await thread.send("And again", model=QUICK, tools=[])
        await second.text()
        names = [event.event async for event in thread.events(until_idle=True)]
        record = await thread.get()
        sent = await thread.markdown()

    assert [turn.text for turn in thread.state.branch] == [text, (await _text(healthy, second.id))]
    assert names.count("turn") == names.count("done") == 2
    assert [turn["messages"][0]["content"] for turn in record["branch"]["turns"]] == ["Hello", "And again"]
    assert record["branch"]["turns"][0]["result"][-1]["content"] == text
    assert text in sent
    assert thread.cursor == f"{second.id}.{second.cursor}"


async def _text(system: System, run_id: str) -> str:
    async with AsyncStagebus(system.url) as bus:
        return await bus.runs.resume(run_id).text()


async def test_edit_and_regenerate_begin_branches_and_stop_keeps_the_text(healthy: System) -> None:
    async with AsyncStagebus(healthy.url) as bus:
        thread = bus.threads.open(new_thread_id())
        first = await thread.send("One", model=QUICK, tools=[])
        await first.result()
        edited = await thread.edit(first.id, "Two", model=QUICK, tools=[])
        await edited.result()
        again = await thread.regenerate(edited.id, model=SLOW, tools=[])
        async for _ in again:
            if again.state.text:
                break
        with pytest.raises(Conflict) as busy:
            await thread.send("Three", model=QUICK)
        await thread.stop("enough")
        with pytest.raises(RunCancelled) as stopped:
            await again.result()
        record = await thread.get()

    assert busy.value.code == "thread_busy"
    assert len(record["branches"]) == 3
    assert [turn["messages"][0]["content"] for turn in record["branch"]["turns"]] == ["Two"]
    assert record["branch"]["turns"][-1]["result"][-1]["partial"] is True
    assert record["branch"]["turns"][-1]["result"][-1]["content"] == stopped.value.text


async def test_deleted_thread_ends_its_streams(healthy: System) -> None:
    async with AsyncStagebus(healthy.url) as bus:
        thread = bus.threads.open(new_thread_id())
        await (await thread.send("Hello", model=QUICK, tools=[])).result()
        await thread.update(title="A talk", metadata={"team": "a"})
        listed = (await bus.threads.list(q="A talk"))["threads"]
        following = asyncio.create_task(_follow(thread))
        await thread.delete()
        with pytest.raises(NotFound):
            await following
        with pytest.raises(NotFound):
            await thread.get()

    assert thread.id in [one["id"] for one in listed]


async def test_stream_until_idle_ends_after_a_deleted_last_turn(healthy: System) -> None:
    async with AsyncStagebus(healthy.url) as bus:
        thread = bus.threads.open(new_thread_id())
        await (await thread.send("Hello", model=QUICK, tools=[])).result()
        last = await thread.send("And again", model=QUICK, tools=[])
        await last.result()
        await last.delete()
        async with asyncio.timeout(20):
            names = [event.event async for event in thread.events(until_idle=True)]

    assert names.count("turn_deleted") == 1


async def _follow(thread) -> None:
    async for _ in thread:
        pass


async def test_synchronous_client_talks_and_follows(healthy: System) -> None:
    def talk() -> list[str]:
        with Stagebus(healthy.url) as bus:
            thread = bus.threads.open(new_thread_id())
            thread.send("Hello", model=QUICK, tools=[]).result()
            for _ in thread.events(until_idle=True):
                pass
            return [turn.text for turn in thread.state.branch]

    (answer,) = await asyncio.to_thread(talk)

    assert answer


def chat(system: System, *args: str) -> PseudoTerminal:
    return PseudoTerminal([sys.executable, "-m", "stagebus.cli", "chat", *args, "--no-tools", "--url", system.url])


async def at_prompt(shown: PseudoTerminal) -> None:
    await until(lambda: shown.text.endswith("\n> "))


async def test_chat_at_the_terminal_keeps_history_and_ctrl_c_stops_an_answer(healthy: System) -> None:
    thread_id = f"terminal-{next(NUMBERS)}"
    async with chat(healthy, thread_id, "--model", SLOW) as shown:
        for message, command in (("Hello", "Hello"), ("Something else", "/edit Something else")):
            await at_prompt(shown)
            shown.type(f"{command}\n")
            await shown.until(f'You wrote: "{message}"')
            shown.type(CTRL_C)
        await at_prompt(shown)
        shown.type(CTRL_D)
        code = await shown.exit_code()
    async with AsyncStagebus(healthy.url) as bus:
        record = await bus.threads.get(thread_id)

    assert code == 0
    assert record["branch"]["turns"][0]["messages"][0]["content"] == "Something else"
    assert len(record["branches"]) == 2


async def test_chat_in_a_pipe_answers_each_line(healthy: System) -> None:
    thread_id = f"pipe-{next(NUMBERS)}"
    args = ["-m", "stagebus.cli", "chat", thread_id, "--no-tools", "--model", QUICK, "--url", healthy.url]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(b"One\nTwo \\\nlines\n"), 30)
    async with AsyncStagebus(healthy.url) as bus:
        turns = (await bus.threads.get(thread_id))["branch"]["turns"]

    assert process.returncode == 0
    assert [turn["messages"][0]["content"] for turn in turns] == ["One", "Two \nlines"]
    assert all(turn["result"][-1]["content"].strip() in out.decode() for turn in turns)
