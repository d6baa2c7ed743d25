"""`stagebus models check`: ask each model of the providers file, and say what it can do.

    model    provider  answers  usage  tools   parallel  limit
    gpt-4.1  openai    0.41 s   yes    native  yes       max_completion_tokens
    qwen3    ollama    no: the model's provider cannot be reached

It runs on a worker's machine and in its environment, since it needs the keys. What a model does
otherwise than the file says stands below the table.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.config.settings import load_settings
from stagebus.shared.errors import ModelError, ModelRejected, StagebusError
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.model_client import ModelClient, ModelRequest

AT_ONCE: Final = 4
HELLO: Final = "Say hello in one word."
HELLO_TOKENS: Final = 200
TWO_CALLS: Final = "What is the weather in Paris and in Tokyo? Call the tool once for each of the two cities."
WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HEADS: Final = ("model", "provider", "answers", "usage", "tools", "parallel", "limit")


@dataclass
class ModelReport:
    """What became of asking one model."""

    route: ModelRoute
    error: str = ""
    first_token_s: float = 0.0
    usage: bool = False
    calls: int = 0
    took: Abilities = field(default_factory=Abilities)  # with what it answered

    def row(self) -> tuple[str, ...]:
        """The table's cells."""
        head = (self.route.name, self.route.provider)
        if self.error:
            return (*head, f"no: {self.error}")
        tools = "native" if self.calls else "no calls"
        first = f"{self.first_token_s:.2f} s"
        return (*head, first, _yes(self.usage), tools, _yes(self.calls > 1), self.took.max_tokens_parameter)

    def contradictions(self) -> Iterator[str]:
        """Yield what the file should say otherwise."""
        said = self.route.abilities
        if self.error:
            return
        for name in ("max_tokens_parameter", "stream_options"):
            told, takes = getattr(said, name), getattr(self.took, name)
            if told != takes:
                yield f"{name} = {_toml(takes)}, as it rejects {_toml(told)}"
        if said.tools == "native" and not self.calls:
            yield 'tools = "prompted" or "none", as it called no tool'
        if said.tools == "native" and said.parallel_tool_calls and self.calls == 1:
            yield "parallel_tool_calls = false, as it made one call where two were asked for"


async def check(model: ModelClient, route: ModelRoute) -> ModelReport:
    """Ask a model for a word, then for two calls."""
    finding = ModelReport(route)
    try:
        await _say_hello(model, finding)
        try:
            asked = _request(replace(route, abilities=finding.took.model_copy(update={"tools": "native"})), TWO_CALLS)
            merged, _ = await _ask(model, replace(asked, tools=[WEATHER]))
            finding.calls = len(merged.tool_calls)
        except ModelRejected:
            pass  # it knows no tools
    except ModelError as exc:
        finding.error = str(exc)
    return finding


async def _say_hello(model: ModelClient, finding: ModelReport) -> None:
    """Ask as the file says; where that is rejected, in the other ways that there are."""
    said = finding.route.abilities
    failure: ModelRejected | None = None
    for parameter, stream_options in sorted(
        product(("max_tokens", "max_completion_tokens"), (True, False)),
        key=lambda way: (way[0] != said.max_tokens_parameter) + (way[1] != said.stream_options),
    ):
        took = said.model_copy(update={"max_tokens_parameter": parameter, "stream_options": stream_options})
        asked = _request(replace(finding.route, abilities=took), HELLO)
        try:
            merged, first_token_s = await _ask(model, replace(asked, max_tokens=HELLO_TOKENS))
        except ModelRejected as exc:
            failure = failure or exc
        else:
            finding.took, finding.first_token_s, finding.usage = took, first_token_s, merged.usage is not None
            return
    assert failure is not None, "no way worked"
    raise failure


def _request(route: ModelRoute, prompt: str) -> ModelRequest:
    return ModelRequest(model=route.name, route=route, messages=[{"role": "user", "content": prompt}])


async def _ask(model: ModelClient, request: ModelRequest) -> tuple[MergedAnswer, float]:
    """The answer, and seconds to its first chunk. Calls in its text are none: prompted mode reads those."""
    merger = DeltaMerger()
    started = time.monotonic()
    first_s: float | None = None
    async with aclosing(model.stream(request)) as chunks:
        async for chunk in chunks:
            first_s = time.monotonic() - started if first_s is None else first_s
            merger.add(chunk)
    return merger.result(), first_s or 0.0


async def check_all(model: ModelClient, routes: Sequence[ModelRoute]) -> list[ModelReport]:
    """Check several at once, but not so many that a provider minds."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def check_one(route: ModelRoute) -> ModelReport:
        async with turn:
            return await check(model, route)

    try:
        return await asyncio.gather(*(check_one(route) for route in routes))
    finally:
        await model.aclose()


def routes_of(providers: Providers, names: Iterable[str]) -> list[ModelRoute]:
    """Who serves each name; without names, each that stands in the file, and the default.

    Raises:
        UnknownModel: nobody serves one of them.
    """
    default = [providers.default_model] if providers.default_model else []
    chosen = list(names) or [*providers.names(), *default]
    routes = [route for name in chosen for route in providers.routes(name)]
    return list({route.name: route for route in routes}.values())


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows below their heads."""
    lines = [HEADS, *rows]
    # A failure is a row's last cell and may be long.
    widths = [max(len(row[at]) for row in lines if at < len(row) - (len(row) < len(HEADS))) for at in range(len(HEADS))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in lines)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _yes(value: bool) -> str:  # noqa: FBT001 - a cell
    return "yes" if value else "no"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def main() -> None:
    """Check the models that the command line names, or all; exit code 1 where one does not do as the file says."""
    parser = argparse.ArgumentParser(prog="stagebus models check", description="Ask each model what it can do.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model; all of the providers file where left out")
    settings = load_settings()
    try:
        providers = Providers.from_settings(settings)
        routes = routes_of(providers, parser.parse_args().names)
        if not routes:
            raise SystemExit("stagebus: the providers file has names with a * only; say which models to check")
        findings = asyncio.run(check_all(ModelClient(settings, providers), routes))
    except StagebusError as exc:
        raise SystemExit(f"stagebus: {exc}") from None
    print(table(finding.row() for finding in findings))  # noqa: T201 - the command's answer
    wishes = [f"{finding.route.name}: {wish}" for finding in findings for wish in finding.contradictions()]
    if wishes:
        print("\nThe providers file should say:", *wishes, sep="\n  ")  # noqa: T201
    raise SystemExit(1 if wishes or any(finding.error for finding in findings) else 0)


if __name__ == "__main__":
    main()
