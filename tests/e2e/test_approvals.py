"""Approvals over the whole system: parked runs, decisions, questions of the model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from stagebus.shared.domain import decisions
from stagebus.shared.storage import keys
from tests.support.fault_tools import TOOLS
from tests.support.pseudo_terminal import PseudoTerminal
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System
from tests.support.waiting import until_equal

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

APPROVE, DENY = {"decision": "approve"}, {"decision": "deny", "reason": "too much"}


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], list[str]]:
    path = tmp_path_factory.mktemp("tools") / "tools.log"
    os.environ["FAULT_TOOLS_LOG"] = str(path)
    return lambda: path.read_text().splitlines() if path.exists() else []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory, paid: Callable[[], list[str]]) -> AsyncIterator[System]:
    """A system with two gateways and a worker that executes one run at a time."""
    env = {"STAGEBUS_TOOLS": TOOLS, "STAGEBUS_APPROVALS": "pay", "STAGEBUS_WORKER_CONCURRENCY": "1"}
    async with System(tmp_path_factory.mktemp("system"), gateways=2, env=env) as system:
        yield system


def paying(n: int) -> dict[str, Any]:
    return {"user_prompt": f'call pay {{"n": {n}, "seconds": 0}}', "model": "demo:delay_ms=0"}


async def until_parked(system: System, run_id: str) -> dict[str, Any]:
    """Waits until the run is parked and returns it."""
    run: dict[str, Any] = {}

    async def status() -> str:
        run.update(await get_run(system.url, run_id))
        return str(run["status"])

    await until_equal(status, "parked", timeout_s=20)
    return run


async def decide(url: str, run_id: str, body: dict[str, Any]) -> httpx.Response:
    """Decides on the only call for which the run asks, or asked, approval."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        page = await http.get(f"/runs/{run_id}/events", headers={"Accept": "application/json"})
        (call_id,) = {e["data"]["call_id"] for e in page.json()["events"] if e["event"].endswith("_required")}
        return await http.post(f"/runs/{run_id}/approvals/{call_id}", json=body)


async def restart_all(system: System) -> None:
    """Kills every process, including Redis, and starts them again."""
    for process in [*system.gateways, *system.workers]:
        await process.kill()
    system.valkey.terminate()  # by SIGKILL
    system.valkey.start()
    for process, url in zip(system.gateways, system.urls, strict=True):
        process.args[-1] = str(httpx.URL(url).port)
    for process in [*system.gateways, *system.workers]:
        process.start()
    for process in system.gateways:
        await process.ready()
    await system.workers[0].ready("is ready for")


async def test_parked_runs_survive_restarts_and_hold_no_worker_slot(
    system: System, paid: Callable[[], list[str]]
) -> None:
    run_ids = [await post_run(system.url, paying(n)) for n in range(5)]
    for run_id in run_ids:
        await until_parked(system, run_id)
    assert (await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()).names()[
        -1
    ] == "done"

    client = StrictClient(system.urls, run_ids[0])
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: "approval_required" in c.names())
    await restart_all(system)
    assert paid() == []
    (pending,) = (await until_parked(system, run_ids[0]))["pending_approvals"]
    assert (pending["name"], pending["arguments"]) == ("pay", '{"n": 0, "seconds": 0}')
    bodies = [APPROVE, {**APPROVE, "arguments": {"n": 100, "seconds": 0}}, DENY, APPROVE, APPROVE]
    for run_id, body in zip(run_ids, bodies, strict=True):
        assert (await decide(system.urls[1], run_id, body)).status_code == 202
    await following
    others = [await StrictClient(system.urls, run_id).follow() for run_id in run_ids[1:]]

    assert client.names().count("approval_required") == client.names().count("approval_decided") == 1
    assert "paid 0" in client.text("synthesis")
    assert "paid 100" in others[0].text("synthesis")
    assert "too much" in others[1].text("synthesis")
    assert sorted(paid()) == ["pay 0", "pay 100", "pay 3", "pay 4"], "each approved call ran once, and no denied one"
    assert [(await get_run(system.url, run_id))["tries"] for run_id in run_ids] == [0] * 5


async def test_decision_can_be_repeated_but_not_contradicted(system: System) -> None:
    run_id = await post_run(system.url, paying(6))
    await until_parked(system, run_id)
    answers = [await decide(url, run_id, APPROVE) for url in system.urls]
    await StrictClient(system.urls, run_id).follow()
    answers.append(await decide(system.url, run_id, APPROVE))

    assert {answer.status_code for answer in answers} <= {200, 202}
    contradiction = await decide(system.url, run_id, DENY)
    assert (contradiction.status_code, contradiction.json()["code"]) == (409, "approval_conflict")


async def test_question_of_the_model_is_answered(system: System) -> None:
    body = {
        "user_prompt": 'call ask_user {"question": "Which one?"}',
        "tools": ["ask_user"],
        "model": "demo:delay_ms=0",
    }
    run_id = await post_run(system.url, body)
    (pending,) = (await until_parked(system, run_id))["pending_approvals"]
    assert (pending["name"], pending["question"]) == ("ask_user", "Which one?")
    await decide(system.url, run_id, {"decision": "answer", "text": "the blue one"})
    client = await StrictClient(system.urls, run_id).follow()

    assert "the blue one" in client.text("synthesis")


async def test_terminal_asks_for_approval_and_edits_the_arguments(system: System) -> None:
    run_id = await post_run(system.url, paying(10))
    args = [sys.executable, "-m", "stagebus.cli", "tail", run_id, "--url", system.url]
    async with PseudoTerminal(args, env={"VISUAL": "sed -i s/10/11/"}) as terminal:
        await terminal.until("Return for later:")
        assert "pay waits for approval: call " in terminal.text
        assert '{ "n": 10, "seconds": 0 }' in terminal.text
        terminal.type("abort\n")
        await terminal.until("nothing was decided")
        await terminal.until("Return for later:", 2)
        terminal.type("edit\n")
        await terminal.until("Return for later:", 3)
        assert '{ "n": 11, "seconds": 0 }' in terminal.text
        terminal.type("yes\n")
        code = await terminal.exit_code()

    assert code == 0
    assert " is approved: " in terminal.text
    assert "paid 11" in terminal.text


async def test_cancelled_parked_run_leaves_no_entry_in_the_queue(system: System) -> None:
    run_id = await post_run(system.url, paying(7))
    await until_parked(system, run_id)
    async with httpx.AsyncClient(base_url=system.url) as http:
        assert (await http.post(f"/runs/{run_id}/cancel")).status_code == 200
    names = (await StrictClient(system.urls, run_id).follow()).names()

    assert names[-1] == "cancel"
    assert (await decide(system.url, run_id, APPROVE)).json()["code"] == "run_ended"
    await until_equal(lambda: system.redis.zscore(keys.QUEUE, run_id), None)


async def test_poll_finds_a_decision_without_a_wake_up(system: System) -> None:
    run_id = await post_run(system.url, paying(8))
    (pending,) = (await until_parked(system, run_id))["pending_approvals"]
    stored = orjson.dumps({pending["call_id"]: decisions.encode(decisions.Decision(decision="approve"))})
    await system.redis.hset(keys.run(run_id), "decisions", stored)
    await system.redis.zadd(keys.QUEUE, {run_id: 0})

    assert "paid 8" in (await StrictClient(system.urls, run_id).follow()).text("synthesis")


async def test_sweep_requeues_a_parked_run_that_is_not_in_the_queue(system: System) -> None:
    """Without a decision the run parks again, and does not ask twice."""
    run_id = await post_run(system.url, paying(9))
    await until_parked(system, run_id)
    await system.redis.zrem(keys.QUEUE, run_id)
    client = StrictClient(system.urls, run_id)
    following = asyncio.create_task(client.follow())
    await client.until(lambda c: c.names().count("run_started") == 2)
    await until_parked(system, run_id)
    await decide(system.url, run_id, APPROVE)
    await following

    assert client.names().count("approval_required") == 1
    assert "paid 9" in client.text("synthesis")
