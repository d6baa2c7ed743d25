"""The recipes on the providers page: each file is valid, and its requests are what that provider requires.

The provider is a local server that answers in the provider's format and refuses unknown fields as the provider does.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from stagebus.shared.config.provider_schema import Abilities, ModelEntry, ProviderEntry, ProvidersFile
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import StageCompleted, ToolOutcome, ToolStageResult
from stagebus.shared.domain.requests import RunRequest
from stagebus.worker.execution.pipeline import conversation, model_result
from stagebus.worker.model.model_client import ModelClient, ModelRequest
from stagebus.worker.stages.model_stage import model_stage

PAGE = (Path(__file__).parents[3] / "docs" / "providers.md").read_text()
RECIPES = {
    title: tomllib.loads(text)
    for title, text in re.findall(r"^### ([^\n]+)\n\n```toml\n(.+?)```", PAGE, re.MULTILINE | re.DOTALL)
}
KEY = "sk-recipe"
PARIS = '{"city": "Paris"}'
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
COMMON = {"model", "messages", "stream", "tools", "tool_choice", "parallel_tool_calls"}
OPENAI = COMMON | {"stream_options", "max_completion_tokens", "temperature"}
OLDER = COMMON | {"stream_options", "max_tokens", "temperature"}
SIGNATURE = {"google": {"thought_signature": "c2lnbmF0dXJl"}}

DETAILS = [
    {"type": "reasoning.text", "text": "Let me", "signature": None, "format": "x", "index": 0},
    {"type": "reasoning.text", "text": " look.", "signature": "c2ln", "index": 0},
    {"type": "reasoning.encrypted", "data": "ZGF0YQ==", "id": "call_abc123", "index": 1},
]

Deltas = list[dict[str, Any]]
Body = dict[str, Any]


def call(call_id: str | None = "call_abc123", pieces: int = 1, **beside: Any) -> Deltas:
    """Builds a call as OpenAI streams it, or whole. `beside` is put beside its function."""
    cut = len(PARIS) if pieces == 1 else 5
    first = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": PARIS[:cut]}, **beside}
    rest = [{"tool_calls": [{"index": 0, "function": {"arguments": PARIS[cut:]}}]}] if pieces > 1 else []
    return [{"role": "assistant", "content": None, "tool_calls": [first]}, *rest]


def indexed(deltas: Deltas) -> Deltas:
    deltas[0]["tool_calls"][0]["index"] = 0
    return deltas


@dataclass
class Manner:
    """The requests that a provider accepts, and its answers."""

    path: str
    fields: set[str]
    calls: Callable[[], Deltas] = lambda: indexed(call(pieces=2))
    auth: str | None = f"authorization: bearer {KEY}"
    before: bytes = b""  # in front of the first chunk
    usage_unasked: bool = False
    message_fields: set[str] = field(default_factory=set)  # beyond OpenAI's own
    check: Callable[[Body], bool] = lambda _: True  # of a request that gives calls back


def gives_signature_back(body: Body) -> bool:
    return body["messages"][1]["tool_calls"][0].get("extra_content") == SIGNATURE


def gives_reasoning_back(body: Body) -> bool:
    return body["messages"][1].get("reasoning_content") == "Let me look."


def gives_details_back(body: Body) -> bool:
    return body["messages"][1].get("reasoning_details") == [
        {"type": "reasoning.text", "text": "Let me look.", "signature": "c2ln", "format": "x", "index": 0},
        DETAILS[2],
    ]


def has_short_ids(body: Body) -> bool:
    made = body["messages"][1]["tool_calls"][0]["id"]
    return bool(re.fullmatch("[A-Za-z0-9]{9}", made)) and body["messages"][2]["tool_call_id"] == made


MANNERS = {
    "openai": Manner("/v1/chat/completions", OPENAI),
    "azure": Manner(
        "/openai/v1/chat/completions", OPENAI, auth=f"api-key: {KEY}",
        before=b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}\n\n',
    ),
    "azure-dated": Manner(
        "/openai/deployments/DEPLOYMENT/chat/completions?api-version=2024-10-21", OLDER, auth=f"api-key: {KEY}"
    ),
    "vllm": Manner("/v1/chat/completions", OLDER, auth=None),
    "llamacpp": Manner("/v1/chat/completions", OLDER, auth=None),
    "ollama": Manner("/v1/chat/completions", OLDER | {"options"}, lambda: indexed(call("call_1")), auth=None),
    "openrouter": Manner(
        "/api/v1/chat/completions", OLDER,
        lambda: [*({"reasoning": "Hm.", "reasoning_details": [detail]} for detail in DETAILS), *indexed(call(pieces=2))],
        before=b": OPENROUTER PROCESSING\n\n" * 3,
        message_fields={"reasoning_details"}, check=gives_details_back,
    ),
    "groq": Manner("/openai/v1/chat/completions", OPENAI, lambda: indexed(call())),
    "deepseek": Manner(
        "/chat/completions", OLDER,
        lambda: [{"role": "assistant", "content": None, "reasoning_content": "Let me look."}, *indexed(call(pieces=2))],
        message_fields={"reasoning_content"}, check=gives_reasoning_back,
    ),
    "dashscope": Manner("/compatible-mode/v1/chat/completions", OLDER | {"enable_thinking"}),
    "mistral": Manner(
        "/v1/chat/completions", COMMON | {"max_tokens", "temperature"}, lambda: call("gSIMJiOkT"),
        usage_unasked=True, check=has_short_ids,
    ),
    "gemini": Manner(
        "/v1beta/openai/chat/completions", OLDER, lambda: indexed(call("function-call-1", extra_content=SIGNATURE)),
        message_fields={"extra_content"}, check=gives_signature_back,
    ),
    "litellm": Manner("/v1/chat/completions", OLDER),
}  # fmt: skip


def answer(manner: Manner, head: str, body: Body) -> bytes:
    """Answers as the provider, or refuses."""
    wrong = refusal(manner, head, body)
    if wrong:
        text = orjson.dumps({"error": {"message": wrong}})
        return b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            len(text), text,
        )  # fmt: skip
    deltas: Deltas = manner.calls() if "tools" in body else [{"content": "18 "}, {"content": "°C"}]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append(
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if "tools" in body else "stop"}]}
    )
    if manner.usage_unasked:
        chunks[-1]["usage"] = USAGE
    elif body.get("stream_options"):
        chunks.append({"choices": [], "usage": USAGE})
    events = b"".join(b"data: %b\n\n" % orjson.dumps({"id": "c", "model": "theirs", **chunk}) for chunk in chunks)
    head_ = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n"
    return head_ + manner.before + events + b"data: [DONE]\n\n"


def refusal(manner: Manner, head: str, body: Body) -> str:
    """Returns why the provider would answer 400, 401 or 404, or an empty string."""
    key = next((line for line in head.lower().splitlines() if line.startswith(("authorization", "api-key"))), None)
    if not head.startswith(f"POST {manner.path} "):
        return f"no such address: {head.splitlines()[0]}"
    if key != manner.auth:
        return f"the key is not where it belongs: {key}"
    if unknown := body.keys() - manner.fields:
        return f"unknown parameters {unknown}"
    if body["model"] == "gpt-5" and "temperature" in body:
        return "temperature is not supported with this model"
    allowed = {"role", "content", "tool_calls", "tool_call_id", "id", "type", "function"} | manner.message_fields
    parts = [part for message in body["messages"] for part in (message, *message.get("tool_calls", []))]
    unknown = {name for part in parts for name in part} - allowed
    is_given_back = len(body["messages"]) == 1 or manner.check(body)
    return f"unknown fields of messages {unknown}" if unknown else "" if is_given_back else "other calls come back"


def moved(provider: dict[str, Any], url: str) -> dict[str, Any]:
    """Returns the recipe's entry with the local server as host and a literal key."""
    base_url = re.sub(r"^https?://[^/]+", url, provider["base_url"])
    return provider | {"base_url": base_url} | ({"key": KEY} if "key" in provider else {})


async def do_stage(model: ModelClient, route: ModelRoute, stage_id: str, messages: Any, tools: Any) -> StageCompleted:
    asked = ModelRequest(
        model=route.name, route=route, messages=messages, tools=tools, max_tokens=50, temperature=0.5,
        tool_choice="auto" if tools else None, parallel_tool_calls=True if tools else None,
    )  # fmt: skip
    *_, completed = [event async for event in model_stage(stage_id, model, asked, set())]
    assert isinstance(completed, StageCompleted)
    return completed


def names_of(provider: dict[str, Any]) -> list[str]:
    models = provider["models"] if isinstance(provider["models"], list) else [provider["models"]]
    names = [model if isinstance(model, str) else model["name"] for model in models]
    return [name.replace("*", "some-model") for name in names]


CASES = [
    (provider, name)
    for recipe in RECIPES.values()
    for provider, entry in recipe["providers"].items()
    for name in names_of(entry)
]


def test_every_recipe_has_its_provider_here() -> None:
    assert {provider for provider, _ in CASES} == MANNERS.keys()


@pytest.mark.parametrize(("provider", "name"), CASES)
async def test_recipe_makes_a_call_and_answers_from_its_result(byte_server, provider: str, name: str) -> None:
    (entry,) = [recipe["providers"][provider] for recipe in RECIPES.values() if provider in recipe["providers"]]
    url = await byte_server.serve(lambda head, body: answer(MANNERS[provider], head.decode(), orjson.loads(body)))
    file = ProvidersFile.model_validate({"providers": {provider: moved(entry, url)}})
    model, providers = ModelClient(Settings(), Providers(file)), Providers(file)
    run = RunRequest(model=name, messages=[{"role": "user", "content": "What is the weather?"}], timeout_s=60)

    (route,) = providers.routes(name)
    extraction = await do_stage(model, route, "extraction", run.messages, TOOLS)
    (made,) = model_result(extraction).tool_calls
    outcome = ToolOutcome(call_id=made.id, name=made.name, arguments=made.arguments, content="18 °C")
    tools = StageCompleted(stage_id="tools", result=ToolStageResult(outcomes=[outcome]).model_dump())
    told = conversation(run, {"extraction": extraction, "tools": tools})
    synthesis = await do_stage(model, route, "synthesis", told, None)
    await model.aclose()

    assert (made.name, made.arguments) == ("get_weather", PARIS)
    assert model_result(synthesis).text == "18 °C"
    assert model_result(synthesis).provider == provider
    assert extraction.usage is not None
    assert extraction.usage.model_dump(exclude_none=True) == USAGE


def test_providers_page_names_every_key_and_its_example_is_valid() -> None:
    (first,) = re.findall(r"```toml\n(.+?)```", PAGE.split("## Which model")[0], re.DOTALL)
    keys = {*ProviderEntry.model_fields, *ModelEntry.model_fields, *Abilities.model_fields}

    assert Providers(ProvidersFile.model_validate(tomllib.loads(first))).routes("fast")[1].model_id == "qwen3"
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()
