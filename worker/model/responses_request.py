"""Writes the body of a request to the Responses API; sans-IO.

    messages                            input
    system, developer (at the start)    instructions
    user, assistant                     {"role", "content"}
    an assistant's tool_calls           {"type": "function_call", "call_id", "name", "arguments"}, one item each
    tool                                {"type": "function_call_output", "call_id", "output"}

The provider stores nothing (`store` is false), so each request has the whole conversation, with the model's encrypted
reasoning where it was.
Spec: https://platform.openai.com/docs/api-reference/responses/create
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from stagebus.shared.config.providers import ModelRoute
from stagebus.worker.model.items_back import (
    Json,
    Turn,
    conversation_key,
    functions_of,
    merge_bodies,
    parts_of,
    place_calls,
    text_of_content,
    turns_of,
)

CALL: Final = "function_call"
INCLUDE: Final = ("reasoning.encrypted_content",)
# OpenAI refuses a smaller limit.
OUTPUT_TOKENS_MIN: Final = 16
_INSTRUCTION_ROLES: Final = ("system", "developer")
# The place of each parameter in the body.
_PARAMETERS: Final[Mapping[str, Sequence[str]]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "reasoning_effort": ("reasoning", "effort"),
    "verbosity": ("text", "verbosity"),
    "service_tier": ("service_tier",),
}


def responses_request_body(fields: Mapping[str, Any], route: ModelRoute) -> Json:
    """Returns the body of a streaming request.

    Args:
        fields: a chat completion's fields; messages may have `ORIGIN_KEY`. Fields that are None are left out.
    """
    turns = turns_of(fields["messages"], route, "responses")
    instructions, rest = _split_instructions(turns)
    body: Json = {
        "model": route.model_id,
        "input": [item for turn in rest for item in _input_items(turn)],
        "stream": True,
        "store": False,
        "include": list(INCLUDE),
    }
    if instructions:
        body["instructions"] = instructions
    body |= _tool_fields(fields, route)
    body |= _parameters(fields)
    if route.abilities.caching is not False:
        body["prompt_cache_key"] = conversation_key(route.model_id, instructions, body["input"][:1])
    for name in route.abilities.leave_out:
        body.pop(name, None)
    return merge_bodies(route.extra_body, body)


def _parameters(fields: Mapping[str, Any]) -> Json:
    """Returns the run's parameters. Those that the API does not have are not sent."""
    found: Json = {}
    if (limit := fields.get("max_tokens")) is not None:
        found["max_output_tokens"] = max(limit, OUTPUT_TOKENS_MIN)
    for name, (*outer, last) in _PARAMETERS.items():
        if (value := fields.get(name)) is not None:
            place = found
            for key in outer:
                place = place.setdefault(key, {})
            place[last] = value
    if (answer_format := fields.get("response_format")) is not None:
        found.setdefault("text", {})["format"] = _text_format(answer_format)
    return found


def _text_format(answer_format: Json) -> Json:
    """Returns a `response_format` in its flat form."""
    return {"type": answer_format["type"], **answer_format.get("json_schema", {})}


def _tool_fields(fields: Mapping[str, Any], route: ModelRoute) -> Json:
    functions, choice = functions_of(fields, route.abilities)
    if not functions:
        return {}
    # Without `strict` OpenAI would set it, and reject schemas with optional parameters.
    found: Json = {"tools": [{"type": "function", "strict": False, **function} for function in functions]}
    if choice is not None:
        found["tool_choice"] = {"type": "function", **choice["function"]} if isinstance(choice, dict) else choice
    if route.abilities.parallel_tool_calls and (parallel := fields.get("parallel_tool_calls")) is not None:
        found["parallel_tool_calls"] = parallel
    return found


def _split_instructions(turns: Sequence[Turn]) -> tuple[str, Sequence[Turn]]:
    """Returns the instructions at the start of the conversation as one text, and the turns after them."""
    count = next((at for at, turn in enumerate(turns) if turn.message["role"] not in _INSTRUCTION_ROLES), len(turns))
    texts = [text_of_content(turn.message.get("content")) for turn in turns[:count]]
    return "\n\n".join(text for text in texts if text), turns[count:]


def _input_items(turn: Turn) -> Iterator[Json]:
    message = turn.message
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = content if isinstance(content, str) else list(_parts(content, "input_text"))
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}
    elif role == "assistant":
        yield from _assistant_items(turn)
    elif isinstance(content, str):
        yield {"role": role, "content": content}
    else:
        yield {"role": role, "content": list(_parts(content, "input_text"))}


def _assistant_items(turn: Turn) -> Iterator[Json]:
    message = turn.message
    calls = [
        {
            "type": CALL,
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in message.get("tool_calls") or []
    ]
    if turn.items:
        yield from place_calls(turn.items, CALL, calls)
        return
    content = message.get("content")
    if isinstance(content, str) and content:
        yield {"role": "assistant", "content": content}
    elif isinstance(content, list):
        yield {"role": "assistant", "content": list(_parts(content, "output_text"))}
    if message.get("refusal"):
        yield {"role": "assistant", "content": [{"type": "refusal", "refusal": message["refusal"]}]}
    yield from calls


def _parts(content: object, text_type: str) -> Iterator[Json]:
    for part in parts_of(content):
        match part.get("type"):
            case "text":
                yield {"type": text_type, "text": part["text"]}
            case "image_url":
                image = part["image_url"]
                yield {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"}
            case "file":
                yield {
                    "type": "input_file",
                    **{name: value for name, value in part["file"].items() if value is not None},
                }
            case _:
                yield part
