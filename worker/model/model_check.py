"""`stagebus models check`: tests each model of the providers file and reports its abilities.

    model    provider  api        answers  usage  reasons  tools   parallel  limit
    gpt-4.1  openai    chat       0.41 s   yes    no       native  yes       max_completion_tokens
    gpt-5.6  openai    responses  0.92 s   yes    yes      native  yes       max_output_tokens
    qwen3    ollama    chat       no: the model's provider cannot be reached

It runs on a worker's machine and in its environment, because it needs the keys. Below the table it lists where
a model behaves differently from the file.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final

from stagebus.shared.config.provider_schema import Abilities
from stagebus.shared.config.providers import ModelRoute, Providers
from stagebus.shared.config.settings import load_settings
from stagebus.shared.config.startup_checks import warn_of_misspelt_variables
from stagebus.shared.domain.model_items import Api
from stagebus.shared.errors import ModelError, ModelRejected, StagebusError, UnknownModel
from stagebus.shared.observability.logging import configure, log_uncaught_exceptions
from stagebus.shared.observability.redaction import printable
from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer
from stagebus.worker.model.model_client import ModelClient, ModelRequest

CONCURRENT_CHECKS_MAX: Final = 4
HELLO_PROMPT: Final = "Say hello in one word."
HELLO_TOKENS_MAX: Final = 200
TWO_CALLS_PROMPT: Final = "What is the weather in Paris and in Tokyo? Call the tool once for each of the two cities."
WEATHER_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COLUMNS: Final = ("model", "provider", "api", "answers", "usage", "reasons", "tools", "parallel", "limit")
# In the order in which they are tried if a model rejects its own one.
APIS: Final[tuple[Api, ...]] = ("chat", "responses", "messages")
LIMITS: Final[Mapping[Api, str]] = {"responses": "max_output_tokens", "messages": "max_tokens"}


@dataclass
class ModelReport:
    """The result of checking one model.

    Attributes:
        is_rejected: the error is a rejection, so that another API may be accepted.
        reasons: whether it reasoned before the calls.
        calls: the number of tool calls that it made where two were asked for.
        accepted: the abilities with which it answered.
    """

    route: ModelRoute
    error: str = ""
    is_rejected: bool = False
    first_token_s: float = 0.0
    usage: bool = False
    reasons: bool = False
    calls: int = 0
    accepted: Abilities = field(default_factory=Abilities)

    def row(self) -> tuple[str, ...]:
        """Returns the cells of the table."""
        api = self.accepted.api or self.route.api
        head = (self.route.name, self.route.provider, api)
        if self.error:
            return (*head, f"no: {self.error}")
        tools = "native" if self.calls else "no calls"
        first = f"{self.first_token_s:.2f} s"
        limit = LIMITS.get(api, self.accepted.max_tokens_parameter)
        return (*head, first, _yes(self.usage), _yes(self.reasons), tools, _yes(self.calls > 1), limit)

    def corrections(self) -> Iterator[str]:
        """Yields the changes that the file needs."""
        stated = self.route.abilities
        if self.error:
            return
        if self.accepted.api != self.route.api:
            lacks = "rejects" if self.is_rejected else "calls no tool by"
            yield f"api = {_toml(self.accepted.api)}, as it {lacks} {_toml(self.route.api)}"
        for name in ("max_tokens_parameter", "stream_options"):
            in_file, accepted = getattr(stated, name), getattr(self.accepted, name)
            if in_file != accepted:
                yield f"{name} = {_toml(accepted)}, as it rejects {_toml(in_file)}"
        if stated.reasoning is not None and stated.reasoning != self.reasons:
            yield f"reasoning = {_toml(self.reasons)}, as it {'reasoned' if self.reasons else 'did not reason'}"
        if stated.tools == "native" and not self.calls:
            yield 'tools = "prompted" or "none", as it called no tool'
        if stated.tools == "native" and stated.parallel_tool_calls and self.calls == 1:
            yield "parallel_tool_calls = false, as it made one call where two were asked for"


async def check_model(model: ModelClient, route: ModelRoute) -> ModelReport:
    """Asks a model by its API. If it rejects it or calls no tool, asks by the others, too; returns the best report."""
    report = await _check_api(model, route, route.api)
    if not report.is_rejected and (report.error or report.calls or route.abilities.tools != "native"):
        return report
    for api in APIS:
        if api != route.api:
            other = await _check_api(model, route, api)
            if not other.error and (report.error or other.calls):
                other.is_rejected = report.is_rejected
                return other
    return report


async def _check_api(model: ModelClient, route: ModelRoute, api: Api) -> ModelReport:
    """Asks a model for one word, then for two calls."""
    report = ModelReport(route)
    report.accepted = route.abilities.model_copy(update={"api": api})
    try:
        await _say_hello(model, report)
        try:
            asked = _request(route, report.accepted.model_copy(update={"tools": "native"}), TWO_CALLS_PROMPT)
            merged, _ = await _ask(model, replace(asked, tools=[WEATHER_TOOL]))
            report.calls = len(merged.tool_calls)
            report.reasons = _reasons(merged)
        except ModelRejected:
            pass  # it does not support tools
    except ModelError as exc:
        report.error, report.is_rejected = str(exc), isinstance(exc, ModelRejected)
    return report


def _reasons(merged: MergedAnswer) -> bool:
    return bool(merged.reasoning or (merged.tokens is not None and merged.tokens.reasoning_tokens))


async def _say_hello(model: ModelClient, report: ModelReport) -> None:
    """Sends a request as the file states. If that is rejected, tries the other parameters of chat completions."""
    stated = report.accepted
    failure: ModelRejected | None = None
    options = sorted(
        product(("max_tokens", "max_completion_tokens"), (True, False)),
        key=lambda options: (options[0] != stated.max_tokens_parameter) + (options[1] != stated.stream_options),
    )
    for parameter, stream_options in options if stated.api == "chat" else options[:1]:
        abilities = stated.model_copy(update={"max_tokens_parameter": parameter, "stream_options": stream_options})
        asked = _request(report.route, abilities, HELLO_PROMPT)
        try:
            merged, first_token_s = await _ask(model, replace(asked, max_tokens=HELLO_TOKENS_MAX))
        except ModelRejected as exc:
            failure = failure or exc
        else:
            report.accepted, report.first_token_s, report.usage = abilities, first_token_s, merged.usage is not None
            report.reasons = _reasons(merged)
            return
    assert failure is not None, "the loop ends here only after a rejection"
    raise failure


def _request(route: ModelRoute, abilities: Abilities, prompt: str) -> ModelRequest:
    # A stated API is not changed after a refusal, which the report has to show.
    asked = replace(route, abilities=abilities, is_api_stated=True)
    return ModelRequest(model=route.name, route=asked, messages=[{"role": "user", "content": prompt}])


async def _ask(model: ModelClient, request: ModelRequest) -> tuple[MergedAnswer, float]:
    """Returns the answer and the seconds to its first chunk. Calls in the text do not count: that is prompted mode."""
    merger = DeltaMerger()
    started = time.monotonic()
    first_s: float | None = None
    async with aclosing(model.stream(request)) as chunks:
        async for chunk in chunks:
            first_s = time.monotonic() - started if first_s is None else first_s
            merger.add(chunk)
    return merger.result(), first_s or 0.0


async def check_models(model: ModelClient, routes: Sequence[ModelRoute]) -> list[ModelReport]:
    """Checks the models concurrently, with a limit for the providers' sake, and closes the client."""
    slots = asyncio.Semaphore(CONCURRENT_CHECKS_MAX)

    async def check_one(route: ModelRoute) -> ModelReport:
        async with slots:
            return await check_model(model, route)

    try:
        return await asyncio.gather(*(check_one(route) for route in routes))
    finally:
        await model.aclose()


def find_routes(providers: Providers, names: Iterable[str]) -> list[ModelRoute]:
    """Returns the routes of the named models, or of all models in the file and the default model.

    Raises:
        UnknownModel: no provider serves one of them.
    """
    default = [providers.default_model] if providers.default_model else []
    chosen = list(names) or [*providers.names(), *default]
    routes = [route for name in chosen for route in providers.routes(name)]
    return list({route.name: route for route in routes}.values())


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Formats the rows below the column titles."""
    lines = [COLUMNS, *rows]
    # An error is the last cell of its row and may be long, so it does not count for the width.
    widths = [
        max(len(row[at]) for row in lines if at < len(row) - (len(row) < len(COLUMNS))) for at in range(len(COLUMNS))
    ]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in lines)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _yes(value: bool) -> str:  # noqa: FBT001 - a cell
    return "yes" if value else "no"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def main() -> None:
    """Checks the models that the command line names, or all. Exits with 1 if one fails or differs from the file."""
    parser = argparse.ArgumentParser(
        prog="stagebus models check", description="Test each model and report its abilities."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a model; without names, all models of the providers file"
    )
    names = parser.parse_args().names
    settings = load_settings()
    configure(settings.log_level)
    log_uncaught_exceptions()
    warn_of_misspelt_variables()
    try:
        providers = Providers.from_settings(settings)
        routes = find_routes(providers, names)
        if not routes:
            raise SystemExit("stagebus: the providers file has only names with a *; name the models to check")
        reports = asyncio.run(check_models(ModelClient(settings, providers), routes))
    except UnknownModel as exc:
        parser.error(printable(str(exc)))
    except StagebusError as exc:
        raise SystemExit(printable(f"stagebus: {exc}", keep="\n")) from None
    print(printable(format_table(report.row() for report in reports), keep="\n"))  # noqa: T201 - the command's output
    corrections = [f"{report.route.name}: {correction}" for report in reports for correction in report.corrections()]
    if corrections:
        print("\nThe providers file should say:", *corrections, sep="\n  ")  # noqa: T201
    raise SystemExit(1 if corrections or any(report.error for report in reports) else 0)


if __name__ == "__main__":
    main()
