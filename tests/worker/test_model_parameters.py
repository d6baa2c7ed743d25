"""The run's parameters on their way to the model."""

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import START
from stagebus.shared.log import log_reader
from stagebus.worker.execution.runner import Runner
from tests.support.runs_by_hand import queued
from tests.support.scripted_model import ScriptedModel, providers_of

PROVIDERS = providers_of(
    {
        "p": [
            "m",
            {"name": "down", "fallbacks": ["simple"]},
            {"name": "simple", "leave_out": ["seed", "verbosity"]},
            *({"name": api, "api": api} for api in ("responses", "messages")),
        ]
    }
)
REQUEST: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "tools": [],
    "timeout_s": 60,
    "top_p": [0.5, None],
    "stop": [["END"], None],
    "seed": [7, None],
    "reasoning_effort": ["low", "high"],
    "verbosity": ["low", "high"],
    "service_tier": ["flex", None],
}
HELLO = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}


@pytest.fixture
def model() -> ScriptedModel:
    model = ScriptedModel([HELLO], providers=PROVIDERS)
    model.down = {"down"}
    return model


async def events_of(redis: Redis, settings: Settings, runner: Runner, model: str) -> list[tuple[str, dict[str, Any]]]:
    run_id = await queued(redis, settings, {**REQUEST, "model": model})
    await asyncio.wait_for(runner.run(run_id, "token"), 10)
    page = await log_reader.read_page(redis, run_id, START, 1000)
    return [(event.event.decode(), json.loads(event.data)) for event in page.events]


async def test_provider_gets_the_parameters_of_the_stage(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    events = await events_of(redis, settings, runner, "m")

    names = ("top_p", "stop", "seed", "reasoning_effort", "verbosity", "service_tier")
    assert {name: model.bodies[0][name] for name in names} == {name: REQUEST[name][0] for name in names}
    assert not any("ignored" in data for _, data in events)


async def test_parameters_that_the_model_does_not_take_are_left_out_and_named(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    events = await events_of(redis, settings, runner, "simple")

    assert not {"seed", "verbosity"} & model.bodies[0].keys()
    assert [data["ignored"] for name, data in events if name == "stage_started"] == [["seed", "verbosity"]]


@pytest.mark.parametrize(
    ("api", "ignored", "sent"),
    [
        (
            "responses",
            ["stop", "seed"],
            {"top_p": 0.5, "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}, "service_tier": "flex"},
        ),
        (
            "messages",
            ["seed", "verbosity", "service_tier"],
            {"top_p": 0.5, "stop_sequences": ["END"], "output_config": {"effort": "low"}},
        ),
    ],
)
async def test_parameters_go_to_each_api_under_its_names(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel, api: str, ignored: list[str], sent: Any
) -> None:
    events = await events_of(redis, settings, runner, api)
    plain = {"model", "input", "messages", "stream", "store", "include", "prompt_cache_key", "max_tokens"}

    assert {name: value for name, value in model.bodies[0].items() if name not in plain} == sent
    assert [data["ignored"] for name, data in events if name == "stage_started"] == [ignored]


async def test_parameters_that_only_the_fallback_does_not_take_are_named_with_the_fallback(
    redis: Redis, settings: Settings, runner: Runner, model: ScriptedModel
) -> None:
    events = await events_of(redis, settings, runner, "down")

    told = [(name, data["model"], data["ignored"]) for name, data in events if "ignored" in data]
    assert told == [("retry_scheduled", "simple", ["seed", "verbosity"])]
    assert events[-1][0] == "done"
