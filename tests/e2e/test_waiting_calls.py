"""Calls that wait for a result, over the whole system: killed workers and gateways, early results, two devices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from stagebus.client import AsyncStagebus
from tests.support.fault_tools import TOOLS
from tests.support.result_givers import DEFINITION
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import System
from tests.support.waiting import until, until_equal

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

ORDER_S = 0.5  # how long a deferred tool runs
SECRET = "a secret of the system under test"


@pytest.fixture(scope="module")
def tools_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "tools.log"
    path.touch()
    return path


@pytest.fixture
def noted(tools_log: Path) -> Callable[[], list[str]]:
    """Returns a function that lists the tool calls since the test began."""
    before = len(tools_log.read_text().splitlines())
    return lambda: tools_log.read_text().splitlines()[before:]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory, tools_log: Path) -> AsyncIterator[System]:
    """Two gateways and a worker that executes one run at a time. Each test leaves them running."""
    env = {
        "STAGEBUS_TOOLS": TOOLS, "FAULT_TOOLS_LOG": str(tools_log), "FAULT_TOOLS_ORDER_S": str(ORDER_S),
        "STAGEBUS_WORKER_CONCURRENCY": "1", "STAGEBUS_SECRET": SECRET, "STAGEBUS_PUBLIC_URL": "http://bus.example",
    }  # fmt: skip
    async with System(tmp_path_factory.mktemp("system"), gateways=2, env=env) as system:
        yield system


def calling(name: str, n: int = 1) -> dict[str, Any]:
    tool: Any = DEFINITION if name == "fetch" else name
    return {"user_prompt": f'call {name} {{"n": {n}}}', "model": "demo:delay_ms=0", "tools": [tool]}


async def until_parked(system: System, run_id: str) -> dict[str, Any]:
    """Waits until the run is parked and returns its waiting call."""

    async def status() -> str:
        return str((await get_run(system.url, run_id))["status"])

    await until_equal(status, "parked", timeout_s=20)
    (call,) = (await get_run(system.url, run_id))["pending_calls"]
    return dict(call)


async def give(url: str, run_id: str, call_id: str, content: str) -> int:
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        response = await http.post(f"/runs/{run_id}/calls/{call_id}/result", json={"content": content})
    return response.status_code


async def restart_worker(system: System) -> None:
    (worker,) = system.workers
    await worker.kill()
    worker.start()
    await worker.ready("is ready for")


async def finish(system: System, run_id: str) -> StrictClient:
    """Follows the run to its end, and checks what holds for every waiting call."""
    client = await StrictClient(system.urls, run_id).follow()
    assert client.names()[-1] == "done"
    for event in ("tool_call", "call_deferred", "tool_result"):
        assert client.names().count(event) == 1, f"{event} once"
    return client


def result_of(client: StrictClient) -> str:
    (content,) = [received.data["content"] for received in client.events if received.event == "tool_result"]
    return str(content)


async def test_parked_run_holds_no_slot_and_survives_killed_processes(system: System) -> None:
    run_id = await post_run(system.url, calling("fetch"))
    call = await until_parked(system, run_id)
    assert (call["name"], call["kind"], orjson.loads(call["arguments"])) == ("fetch", "client", {"n": 1})
    other = await StrictClient(system.urls, await post_run(system.url, {"user_prompt": "hi"})).follow()
    assert other.names()[-1] == "done", "the only slot is free"

    await restart_worker(system)
    await system.gateways[0].kill()
    assert await give(system.urls[1], run_id, call["call_id"], "the file") == 202
    system.gateways[0].args[-1] = str(httpx.URL(system.urls[0]).port)
    system.gateways[0].start()
    await system.gateways[0].ready()
    client = await finish(system, run_id)

    assert result_of(client) == "the file"
    assert "the file" in client.text("synthesis")
    assert (await get_run(system.url, run_id))["tries"] == 0
    assert await give(system.url, run_id, call["call_id"], "the file") == 202
    assert await give(system.url, run_id, call["call_id"], "another") == 409


@pytest.mark.parametrize(
    ("tool", "starts", "comes"),
    [
        ("order", 1, "while the worker is dead"),
        ("order", 1, "after the run is parked"),
        ("render", 2, "after the run is parked"),
    ],
)
async def test_worker_dies_after_the_tool_started_something(
    system: System, noted: Callable[[], list[str]], tool: str, starts: int, comes: str
) -> None:
    """The result of what it started may still come, and counts; a tool that must not start twice does not."""
    run_id = await post_run(system.url, calling(tool))
    await until(lambda: len(noted()) == 1, timeout_s=20)
    (worker,) = system.workers
    await worker.kill()
    _, _, token, url = noted()[0].split(" ")
    if comes == "while the worker is dead":
        async with httpx.AsyncClient() as http:
            path = urlsplit(url)._replace(scheme="", netloc="").geturl()
            assert (await http.post(system.url + path, json={"content": "early"})).status_code == 202
    worker.start()
    await worker.ready("is ready for")
    if comes == "after the run is parked":
        call = await until_parked(system, run_id)
        assert {line.split(" ")[2] for line in noted()} == {token}, "every attempt has the same token"
        assert len(noted()) == starts
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=system.urls[1], headers=headers) as http:
            path = f"/runs/{run_id}/calls/{call['call_id']}/result"
            assert (await http.post(path, json={"content": "late"})).status_code == 202
    client = await StrictClient(system.urls, run_id).follow()

    assert client.names()[-1] == "done"
    assert result_of(client) == ("early" if comes == "while the worker is dead" else "late")
    assert len(noted()) == (starts if comes == "after the run is parked" else 1)
    assert not [received for received in client.events if token in str(received.data)]


async def test_result_that_comes_before_the_tool_returns_counts(system: System, noted: Callable[[], list[str]]) -> None:
    run_id = await post_run(system.url, calling("order", 7))
    await until(lambda: len(noted()) == 1, timeout_s=20)
    path = urlsplit(noted()[0].split(" ")[3])._replace(scheme="", netloc="").geturl()
    async with httpx.AsyncClient(base_url=system.url) as http:
        statuses = [(await http.post(path, json={"content": text})).status_code for text in ("early", "early", "late")]
    client = await finish(system, run_id)

    assert (statuses, result_of(client)) == ([202, 202, 409], "early")
    assert len(noted()) == 1


async def test_two_devices_run_a_call_once(system: System) -> None:
    ran = []

    async def fetch(n: int) -> dict[str, int]:
        ran.append(n)
        await asyncio.sleep(0.1)
        return {"fetched": n}

    async with AsyncStagebus(system.urls[0]) as one, AsyncStagebus(system.urls[1]) as two:
        run = await one.runs.create(**calling("fetch", 3))
        same = two.runs.resume(run.id)
        texts = await asyncio.gather(run.text({"fetch": fetch}), same.text({"fetch": fetch}))

    assert ran == [3]
    assert '{"fetched": 3}' in texts[0]
    assert texts[0] == texts[1]


async def test_client_that_comes_back_answers_the_call(system: System) -> None:
    """As after a reload: the first one has seen the call and is gone."""
    async with AsyncStagebus(system.url) as bus:
        run = await bus.runs.create(**calling("fetch", 5))
        async for received in run:
            if received.event == "call_deferred":
                break
    async with AsyncStagebus(system.urls[1]) as bus:
        text = await bus.runs.resume(run.id).text({"fetch": lambda n: f"page {n}"})

    assert "page 5" in text


async def test_client_of_another_protocol_runs_a_function(system: System) -> None:
    """With OpenAI's SDK: the response ends with the call, and its output continues the run as the next response."""
    function: Any = {"type": "function", **DEFINITION["function"]}
    async with AsyncOpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0) as openai:
        asked: Any = {"model": "demo:delay_ms=0", "tools": [function], "timeout": 30}
        async with openai.responses.stream(**asked, input='call fetch {"n": 7}') as stream:
            types = [event.type async for event in stream]
            first = await stream.get_final_response()
        (call,) = [item for item in first.output if item.type == "function_call"]
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "seven"}
        async with openai.responses.stream(**asked, previous_response_id=first.id, input=[output]) as stream:
            rest = [event.type async for event in stream]
            second = await stream.get_final_response()

    assert (first.status, call.name, orjson.loads(call.arguments)) == ("completed", "fetch", {"n": 7})
    assert (second.id, second.status) == (f"{first.id}_2", "completed")
    assert "seven" in second.output_text
    assert types[-1] == rest[-1] == "response.completed"


def logged_tokens(system: System, tools_log: Path) -> list[str]:
    tokens = {line.split(" ")[2] for line in tools_log.read_text().splitlines()}
    assert tokens
    logs = "".join(process.log_path.read_text() for process in (*system.workers, *system.gateways))
    return [token for token in tokens if token in logs]


async def test_token_is_in_no_log_of_a_process(system: System, tools_log: Path) -> None:
    assert logged_tokens(system, tools_log) == []
