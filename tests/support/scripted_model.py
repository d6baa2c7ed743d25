"""A model client whose answers the test writes down."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import ModelUnavailable
from stagebus.worker.model.model_client import ModelClient, ModelRequest

Chunk = dict[str, Any]
# One answer: its chunks in order. An exception among them is raised in its place.
Answer = Sequence[Chunk | Exception]

# At this address nothing listens: a test that leaves the script cannot reach a provider.
BASE_URL = "http://127.0.0.1:1/v1"


def providers_of(models: Mapping[str, Sequence[Any]]) -> Mapping[str, Any]:
    """Builds the content of a providers file from the models of each provider."""
    return {"providers": {name: {"base_url": BASE_URL, "models": list(served)} for name, served in models.items()}}


class ScriptedModel(ModelClient):
    """Gives its answers in turn and records the requests.

    Args:
        answers: one for each request.
        default: the answer to all further requests; without it they fail the test.
        providers: the content of a providers file, for requests that have a route.

    Attributes:
        down: providers or models that fail before their first chunk.
        may_answer: cleared, it holds every answer back.
        is_asked: set by the first request.
        is_closed: whether the last answer was closed or read to its end.
    """

    def __init__(
        self,
        *answers: Answer,
        default: Answer | None = None,
        providers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(Settings(), Providers(ProvidersFile.model_validate(providers or providers_of({"p": ["m"]}))))
        self.answers: list[Answer] = list(answers)
        self.default = default
        self.down: set[str] = set()
        self.requests: list[ModelRequest] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_asked = asyncio.Event()
        self.is_closed = False

    @property
    def asked_providers(self) -> list[str]:
        """The provider of each request."""
        return [request.route.provider for request in self.requests if request.route is not None]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The body of each request, as its provider would get it."""
        return [request.body(request.route) for request in self.requests if request.route is not None]

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        self.is_asked.set()
        if request.route is not None and self.down & {request.route.provider, request.route.name}:
            raise ModelUnavailable("it is down")
        self.is_closed = False
        try:
            await self.may_answer.wait()
            for step in self._next_answer():
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            self.is_closed = True

    def _next_answer(self) -> Iterable[Chunk | Exception]:
        if self.answers:
            return self.answers.pop(0)
        assert self.default is not None, "the script has no answer to this request"
        return self.default


class HeldModel:
    """Makes a scripted model stop after the first chunk of one of its answers, until it is cancelled."""

    def __init__(self, model: ScriptedModel, request: int = 1) -> None:
        self._said = asyncio.Event()
        stream = model.stream

        async def held(asked: ModelRequest) -> AsyncGenerator[Chunk, None]:
            async for chunk in stream(asked):
                yield chunk
                if len(model.requests) == request:
                    self._said.set()
                    await asyncio.Event().wait()

        model.stream = held  # type: ignore[method-assign]

    async def until_said(self) -> None:
        """Waits until that chunk was given."""
        await self._said.wait()
