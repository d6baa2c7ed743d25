"""A model that refuses what Stagebus chose is asked in another way, at once and from then on."""

from typing import Any

import orjson
import pytest

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelRejected
from stagebus.worker.model.learned_requests import MODELS_MAX, LearnedRequests, ReportedError
from stagebus.worker.model.model_client import ModelClient, ModelRequest

USE_RESPONSES = (
    "Function tools with reasoning_effort are not supported for gpt-5.6 in /v1/chat/completions. "
    "Please use /v1/responses instead."
)
EVENT = {"type": "response.completed", "response": {"status": "completed", "output": []}}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: %b\n\n" % orjson.dumps(EVENT)


def refusal(message: str, param: str | None) -> bytes:
    body = orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}})
    return b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Server:
    """Refuses chat completions, and Responses with some fields."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, head: bytes, body: bytes) -> bytes:
        path, fields = head.split()[1].decode(), orjson.loads(body)
        self.asked.append((path, sorted(fields.keys() & {"include", "prompt_cache_key", "store"})))
        if path.endswith("/chat/completions"):
            return refusal(USE_RESPONSES, "reasoning_effort")
        return (
            refusal("Encrypted content is not supported with this model.", self.refused)
            if self.refused in fields
            else ANSWER
        )


async def ask(url: str, times: int = 2, **entry: Any) -> None:
    file = {"providers": {"p": {"base_url": f"{url}/v1", "models": ["m"], **entry}}}
    model = ModelClient(Settings(), Providers(ProvidersFile.model_validate(file)))
    try:
        for _ in range(times):
            request = ModelRequest(model="m", messages=[{"role": "user", "content": "Hello"}])
            assert [chunk async for chunk in model.stream(request)]
    finally:
        await model.aclose()


async def test_model_that_needs_responses_is_asked_so_from_then_on(byte_server) -> None:
    server = Server()
    await ask(await byte_server.serve(server))

    assert [path for path, _ in server.asked] == ["/v1/chat/completions", "/v1/responses", "/v1/responses"]


async def test_api_of_the_file_is_not_changed(byte_server) -> None:
    with pytest.raises(ModelRejected):
        await ask(await byte_server.serve(Server()), api="chat")


async def test_field_that_no_run_asked_for_is_left_out_once_it_is_refused(byte_server) -> None:
    server = Server("include")
    await ask(await byte_server.serve(server), api="responses")

    assert [fields for _, fields in server.asked] == [
        ["include", "prompt_cache_key", "store"], ["prompt_cache_key", "store"], ["prompt_cache_key", "store"],
    ]  # fmt: skip


async def test_refusal_that_names_nothing_of_ours_is_final(byte_server) -> None:
    server = Server("model")
    with pytest.raises(ModelRejected):
        await ask(await byte_server.serve(server), api="responses")

    assert len(server.asked) == 1


def test_learned_models_are_bounded() -> None:
    file = {"providers": {"p": {"base_url": "http://x/v1", "models": ["*"]}}}
    providers, learned = Providers(ProvidersFile.model_validate(file)), LearnedRequests()
    for number in range(MODELS_MAX + 1):
        assert learned.learn(providers.routes(f"m{number}")[0], 400, ReportedError(USE_RESPONSES))

    assert learned.api_of(providers.routes("m0")[0]) == "chat"
    assert learned.api_of(providers.routes(f"m{MODELS_MAX}")[0]) == "responses"


def test_model_whose_roles_must_alternate_is_asked_so_from_then_on() -> None:
    file = {"providers": {"p": {"base_url": "http://x/v1", "models": ["m", {"name": "n", "alternating_roles": True}]}}}
    providers, learned = Providers(ProvidersFile.model_validate(file)), LearnedRequests()
    body = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    joined = {"messages": [{"role": "user", "content": "a\n\nb"}]}
    refused = ReportedError("Conversation roles must alternate user/assistant")
    m, n = (providers.routes(name)[0] for name in "mn")

    assert learned.adapt(m, body) == body
    assert learned.adapt(n, body) == joined
    assert not learned.learn(n, 400, refused), "it was asked so already"
    assert learned.learn(m, 400, refused)
    assert not learned.learn(m, 400, refused), "a second refusal is final"
    assert learned.adapt(m, body) == joined
