"""The metrics of a worker that executes runs, and the port that serves them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelUnavailable
from stagebus.shared.local.process_errors import PortTaken
from stagebus.shared.store import run_store
from stagebus.worker.execution.runner import Runner
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.worker_metrics import WorkerMetrics
from tests.support.runs_by_hand import queued
from tests.support.system import ROOT, free_port

PROVIDERS = {"providers": {"p": {"base_url": "http://127.0.0.1:1/v1", "models": ["listed", "any/*"]}}}
REQUEST = {"model": "any/thing", "messages": [{"role": "user", "content": "hi"}], "timeout_s": 60}
CALLS = [
    {"index": i, "id": name, "function": {"name": name, "arguments": "{}"}}
    for i, name in enumerate(["get_weather", "x"])
]
BY_MODEL = "model=any/* provider=p"


class CallingModel(ModelClient):
    """Is down once, then calls one existing and one unknown tool, then answers."""

    def __init__(self) -> None:
        super().__init__(Settings(), Providers(ProvidersFile.model_validate(PROVIDERS)))
        self._is_down = True
        self.is_asked, self.lets_go = asyncio.Event(), asyncio.Event()
        self.lets_go.set()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[dict[str, Any], None]:
        self.is_asked.set()
        await self.lets_go.wait()
        if self._is_down:
            self._is_down = False
            raise ModelUnavailable("it is down")
        is_last = request.messages[-1]["role"] == "tool"
        delta = {"content": "done"} if is_last else {"tool_calls": CALLS}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture
def model() -> CallingModel:
    return CallingModel()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"model_backoff_s": 0.01, "worker_metrics_port": 1})


def samples(text: str) -> dict[str, float]:
    """Returns Stagebus's own metrics by name and labels."""
    return {
        " ".join([s.name.removeprefix("stagebus_"), *(f"{k}={v}" for k, v in sorted(s.labels.items()))]): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith("stagebus_")
    }


async def test_metrics_labels_are_names_of_the_operator(
    redis: Redis, settings: Settings, runner: Runner, metrics: WorkerMetrics
) -> None:
    run_id = await queued(redis, settings, REQUEST)
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    found = samples(metrics.render().decode())

    assert {name: value for name, value in found.items() if "_total" in name and "sweep" not in name} == {
        "runs_ended_total status=succeeded": 1,
        "leases_lost_total": 0,
        f"model_requests_total {BY_MODEL}": 3,
        f"model_errors_total code=model_unavailable {BY_MODEL}": 1,
        f"model_retries_total {BY_MODEL}": 1,
        f"model_tokens_total kind=prompt {BY_MODEL}": 10,
        f"model_tokens_total kind=completion {BY_MODEL}": 4,
        "tool_calls_total outcome=error tool=get_weather": 1,
        "tool_calls_total outcome=error tool=unknown": 1,
    }
    assert [found[f"stage_seconds_count stage={stage}"] for stage in ("extraction", "tools", "synthesis")] == [1, 1, 1]
    assert found[f"model_first_token_seconds_count {BY_MODEL}"] == 2
    assert found["append_seconds_count"] == found["append_events_count"] > 0
    last_id = (await run_store.get_run(redis, run_id)).last_id
    assert found["append_events_sum"] == last_id.sequence - 1, "all events except the gateway's own"


async def test_metrics_count_the_held_runs(
    redis: Redis, settings: Settings, runner: Runner, model: CallingModel, metrics: WorkerMetrics
) -> None:
    def held() -> float:
        return samples(metrics.render().decode())["runs_held"]

    model.lets_go.clear()
    running = asyncio.create_task(runner.run(await queued(redis, settings, REQUEST), "token"))
    await asyncio.wait_for(model.is_asked.wait(), 10)
    assert held() == 1
    model.lets_go.set()
    await asyncio.wait_for(running, 10)

    assert held() == 0


async def test_metrics_port_serves_scrapes_until_it_is_closed(metrics: WorkerMetrics) -> None:
    port = free_port()
    close = metrics.serve("127.0.0.1", port)
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{port}/metrics")
        with pytest.raises(PortTaken, match=f"STAGEBUS_WORKER_METRICS_PORT: cannot listen on 127.0.0.1, port {port}"):
            WorkerMetrics().serve("127.0.0.1", port)
        await asyncio.to_thread(close)
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/metrics")

    assert "stagebus_runs_held 0.0" in answer.text


def test_operations_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    families = text_string_to_metric_families(WorkerMetrics().render().decode())
    names = [family.name.removeprefix("stagebus_") for family in families if family.name.startswith("stagebus_")]
    ours = [name for name in names if not name.endswith("_created")]

    assert len(ours) > 10
    assert not [name for name in ours if f"`{name}`" not in page and f"`{name}_total`" not in page]
