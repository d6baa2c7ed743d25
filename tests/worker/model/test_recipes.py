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
from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.requests import RunRequest
from stagebus.shared.domain.stage_results import ToolOutcome, ToolStageResult
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


RESPONSES = {
    "model", "input", "instructions", "stream", "store", "include", "tools", "tool_choice", "parallel_tool_calls",
    "max_output_tokens", "temperature", "prompt_cache_key",
}  # fmt: skip
MESSAGES = {"model", "messages", "system", "max_tokens", "stream", "tools", "tool_choice", "temperature"}
SEALED = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed"}
RAW = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Let me look."}],
}
THINKING = {"type": "thinking", "thinking": "Let me look.", "signature": "sealed"}


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
    api: str = "chat"
    reasoning: Body = field(default_factory=lambda: SEALED)  # of a response
    version: str = "anthropic-version: 2023-06-01"  # the header of a message


def responses_events(manner: Manner, *, is_call: bool) -> list[Body]:
    """Returns a response that reasons and calls, or answers with text."""
    call_item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather", "arguments": PARIS}
    said = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "18 °C", "annotations": []}]}
    items = [manner.reasoning, call_item] if is_call else [said]
    done = [{"type": "response.output_item.done", "output_index": at, "item": item} for at, item in enumerate(items)]
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    return [*done, {"type": "response.completed", "response": {"status": "completed", "usage": usage}}]


def messages_events(*, is_call: bool) -> list[Body]:
    """Returns a message that thinks and calls, or answers with text."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    blocks = [THINKING, use] if is_call else [{"type": "text", "text": "18 °C"}]
    start = {"type": "message_start", "message": {"model": "theirs", "usage": {"input_tokens": 3}}}
    parts = [
        part
        for at, block in enumerate(blocks)
        for part in (
            {"type": "content_block_start", "index": at, "content_block": block},
            {"type": "content_block_stop", "index": at},
        )
    ]
    end = {"delta": {"stop_reason": "tool_use" if is_call else "end_turn"}, "usage": {"output_tokens": 4}}
    return [start, *parts, {"type": "message_delta", **end}, {"type": "message_stop"}]


def refusal_of_response(manner: Manner, body: Body) -> str:
    """Returns why a provider with the Responses API would refuse the conversation."""
    (asked, *rest) = body["input"]
    if (
        body.get("store") is not False
        or body.get("include") != ["reasoning.encrypted_content"]
        or asked["role"] != "user"
    ):
        return "the conversation would be stored"
    given = [
        manner.reasoning,
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": PARIS},
    ]
    given.append({"type": "function_call_output", "call_id": "call_1", "output": "18 °C"})
    return "" if rest in ([], given) else f"other items come back: {rest}"


def refusal_of_messages(manner: Manner, head: str, body: Body) -> str:
    """Returns why a provider with the Messages API would refuse the conversation."""
    if manner.version not in head.lower() and body.get("anthropic_version") != manner.version:
        return "no version"
    marks = str(body).count("cache_control")
    if "max_tokens" not in body or not 1 <= marks <= 4 or "tools" not in body:
        return f"max_tokens, tools or cache marks are missing: {marks}"
    (_, *rest) = body["messages"]
    if not rest:
        return ""
    (assistant, user) = rest
    (thought, use), (result,) = assistant["content"], user["content"]
    is_given_back = (thought, use["id"], use["input"]) == (THINKING, result["tool_use_id"], {"city": "Paris"})
    return "" if is_given_back else f"other blocks come back: {rest}"


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
    "openai": Manner("/v1/responses", RESPONSES, api="responses"),
    "azure": Manner("/openai/v1/responses", RESPONSES, api="responses", auth=f"api-key: {KEY}"),
    "azure-dated": Manner(
        "/openai/deployments/DEPLOYMENT/chat/completions?api-version=2024-10-21", OLDER, auth=f"api-key: {KEY}",
        before=b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[]}\n\n',
    ),
    "anthropic": Manner("/v1/messages", MESSAGES | {"thinking"}, api="messages", auth=f"x-api-key: {KEY}"),
    "bedrock": Manner("/anthropic/v1/messages", MESSAGES, api="messages", auth=f"x-api-key: {KEY}"),
    "vertex": Manner(
        "/v1/projects/PROJECT/locations/europe-west1/publishers/anthropic/models/claude-haiku-4-5@20251001:streamRawPredict",
        MESSAGES - {"model"} | {"anthropic_version"}, api="messages", version="vertex-2023-10-16",
    ),
    "xai": Manner("/v1/responses", RESPONSES, api="responses", before=b": keepalive\n\n"),
    "lmstudio": Manner("/v1/responses", RESPONSES, api="responses", reasoning=RAW, auth=None),
    "vllm-gpt-oss": Manner("/v1/responses", RESPONSES, api="responses", reasoning=RAW, auth=None),
    "openrouter-claude": Manner("/api/v1/messages", MESSAGES, api="messages", before=b": OPENROUTER PROCESSING\n\n"),
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


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n"


def answer(manner: Manner, head: str, body: Body) -> bytes:
    """Answers as the provider, or refuses."""
    wrong = refusal(manner, head, body)
    if wrong:
        text = orjson.dumps({"error": {"message": wrong}})
        return b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            len(text), text,
        )  # fmt: skip
    if manner.api != "chat":
        is_call = not any(kind in str(body) for kind in ("function_call_output", "tool_result"))
        is_response = manner.api == "responses"
        typed = responses_events(manner, is_call=is_call) if is_response else messages_events(is_call=is_call)
        return HEAD + manner.before + b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in typed)
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
    return HEAD + manner.before + events + b"data: [DONE]\n\n"


def refusal_of_head(manner: Manner, head: str) -> str:
    """Returns why the provider would answer 401 or 404, or an empty string."""
    names = ("authorization", "api-key", "x-api-key")
    key = next((line for line in head.lower().splitlines() if line.startswith(names)), None)
    if not head.startswith(f"POST {manner.path} "):
        return f"no such address: {head.splitlines()[0]}"
    return "" if key == manner.auth else f"the key is not where it belongs: {key}"


def refusal(manner: Manner, head: str, body: Body) -> str:
    """Returns why the provider would answer 400, 401 or 404, or an empty string."""
    if wrong := refusal_of_head(manner, head):
        return wrong
    if unknown := body.keys() - manner.fields:
        return f"unknown parameters {unknown}"
    if body.get("model") in ("gpt-5", "claude-sonnet-5") and "temperature" in body:
        return "temperature is not supported with this model"
    if manner.api != "chat":
        is_response = manner.api == "responses"
        return refusal_of_response(manner, body) if is_response else refusal_of_messages(manner, head, body)
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
        tool_choice="auto" if tools else None, parallel_tool_calls=True if tools else None, declared_tools=TOOLS,
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

    assert (made.name, orjson.loads(made.arguments)) == ("get_weather", orjson.loads(PARIS))
    assert model_result(synthesis).text == "18 °C"
    assert model_result(synthesis).provider == provider
    assert extraction.usage is not None
    assert extraction.usage.model_dump(exclude_none=True, exclude={"cost"}) == USAGE


def test_providers_page_names_every_key_and_its_example_is_valid() -> None:
    (first,) = re.findall(r"```toml\n(.+?)```", PAGE.split("## Which model")[0], re.DOTALL)
    keys = {*ProviderEntry.model_fields, *ModelEntry.model_fields, *Abilities.model_fields}

    assert Providers(ProvidersFile.model_validate(tomllib.loads(first))).routes("fast")[1].model_id == "qwen3"
    assert {key for key in keys if f"`{key}`" not in PAGE} == set()
