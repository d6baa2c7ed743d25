"""The span of one request to a model, by the conventions for generative AI. Sans-IO.

Spec: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.events import StageCompleted
from stagebus.shared.domain.stage_results import ModelStageResult
from stagebus.shared.observability import spans
from stagebus.shared.observability.spans import Span, Value
from stagebus.worker.model.model_client import ModelRequest

_METRIC_ATTRIBUTES: Final = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")


class ModelSpan:
    """The span of a request, and what its answer adds."""

    def __init__(self, span: Span, attributes: Mapping[str, Value]) -> None:
        """`attributes` are those of the conventions' metrics."""
        self._span = span
        self._attributes = attributes
        self._began_at = time.monotonic()

    def ended(self, error_type: str | None) -> None:
        """Measures the request's duration."""
        seconds = time.monotonic() - self._began_at
        spans.measure("gen_ai.client.operation.duration", seconds, {**self._attributes, "error.type": error_type})

    @property
    def traceparent(self) -> str:
        """Returns the span's context, which a repeated request links to."""
        return self._span.traceparent

    def began(self) -> None:
        """Notes the first chunk of the answer."""
        self._span.set({"gen_ai.response.time_to_first_chunk": time.monotonic() - self._began_at})

    def completed(self, stage: StageCompleted) -> None:
        """Notes the answer."""
        if not self._span.is_recorded:
            return
        result = ModelStageResult.model_validate(stage.result)
        self._span.set({"gen_ai.response.finish_reasons": [result.finish_reason] if result.finish_reason else None})
        if (usage := stage.usage) is not None:
            for kind, tokens in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
                spans.measure("gen_ai.client.token.usage", tokens, {**self._attributes, "gen_ai.token.type": kind})
            self._span.set(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                    "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                }
            )
        if self._span.has_content:
            self._span.set_content({"gen_ai.output.messages": _json([_answer(result)])})


@contextmanager
def model_span(route: ModelRoute, request: ModelRequest, *, repeats: str) -> Iterator[ModelSpan]:
    """Context manager: the span of a request.

    Args:
        repeats: the context of the request before it in the same stage, if it failed; else empty.
    """
    links = [repeats] if repeats else []
    attributes = _attributes(route, request)
    with spans.span(f"chat {route.model_id}", "client", attributes, links=links) as span:
        if span.has_content:
            span.set_content({"gen_ai.input.messages": _json([_message(message) for message in request.messages])})
        opened = ModelSpan(span, {name: attributes[name] for name in _METRIC_ATTRIBUTES})
        error_type: str | None = None
        try:
            yield opened
        except Exception as exc:
            error_type = spans.error_type_of(exc)
            raise
        finally:
            opened.ended(error_type)


def _attributes(route: ModelRoute, request: ModelRequest) -> dict[str, Value]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": route.provider,
        "gen_ai.request.model": route.model_id,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.stop_sequences": request.stop,
        "gen_ai.output.type": "json" if (request.response_format or {}).get("type", "text") != "text" else "text",
    }


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message of a chat in the conventions' form."""
    role, content = message["role"], message.get("content")
    if role == "tool":
        return {"role": role, "parts": [_result_part(message["tool_call_id"], content)]}
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
    parts = [{"type": "text", "content": text} for text in texts if text]
    calls = [call["function"] | {"id": call["id"]} for call in message.get("tool_calls") or ()]
    return {"role": role, "parts": [*parts, *(_call_part(call) for call in calls)]}


def _answer(result: ModelStageResult) -> dict[str, Any]:
    parts = [{"type": "text", "content": result.text}] if result.text else []
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in result.tool_calls]
    return {
        "role": "assistant",
        "parts": [*parts, *(_call_part(call) for call in calls)],
        "finish_reason": result.finish_reason,
    }


def _call_part(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_call", "id": call["id"], "name": call["name"], "arguments": call["arguments"]}


def _result_part(call_id: str, content: Any) -> dict[str, Any]:
    return {"type": "tool_call_response", "id": call_id, "response": content}


def _json(messages: Sequence[dict[str, Any]]) -> str:
    """Returns the messages as JSON; from the oldest on, messages are left out until the text is short enough."""
    kept, size = [], 2
    for message in reversed(messages):
        encoded = orjson.dumps(message).decode()
        size += len(encoded) + 1
        if size > spans.CONTENT_MAX_CHARS:
            break
        kept.append(encoded)
    return f"[{','.join(reversed(kept))}]"
