"""The `stagebus` command.

    stagebus up                     everything on this machine, for a first look
    stagebus gateway | worker       one process of a system
    stagebus run "…"                make a run and follow it; tail, ls and cancel go with it
    stagebus models [check]         what a run may name, and what the models can do
    stagebus keys                   API keys: create, list, revoke

Exit codes of `run` and `tail`: 0 done, 1 error, 2 cancelled or wrongly called, 130 detached by Ctrl-C.
"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import orjson
import typer

from shared.become import become
from shared.client import Client
from shared.errors import StagebusError
from shared.key_commands import keys_app
from shared.model_commands import models_app
from shared.requests import parse_models
from shared.runs import TERMINAL
from shared.settings import load_settings
from shared.terminal import excerpt
from shared.watch import Watch

URL_DEFAULT: Final = "http://127.0.0.1:8000"
LIST_MAX: Final = 100

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Durable background runs of LLM toolchains, streamed to clients that can always resume.",
)

app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")

Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes any free one")]
Insecure = Annotated[bool, typer.Option("--insecure", help="let others reach a gateway that asks nobody who he is")]
Url = Annotated[str, typer.Option(envvar="STAGEBUS_URL", help="where a gateway is")]
RunId = Annotated[str, typer.Argument(help="the run's id")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a line")]


@app.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="where the embedded Valkey keeps its data; STAGEBUS_DATA_DIR, else .stagebus")
    ] = None,
    *,
    insecure: Insecure = False,
    local: Annotated[bool, typer.Option("--local", help="answer from a small real model on this machine")] = False,
) -> None:
    """Start everything on this machine and print the page's address.

    Brings its own Valkey unless STAGEBUS_REDIS_URL is set, and a demo model unless
    OPENAI_BASE_URL or STAGEBUS_PROVIDERS is set. Ctrl-C stops it; runs go on at the next start.
    """
    from shared import supervisor

    settings = load_settings()
    if insecure:
        settings = settings.model_copy(update={"insecure": True})
    options = supervisor.UpOptions(host, port, data_dir or settings.data_dir, is_local=local)
    asyncio.run(supervisor.up(options, settings))


@app.command()
def gateway(host: Host = "127.0.0.1", port: Port = 8000, *, insecure: Insecure = False) -> None:
    """Serve the HTTP API, the streams and the page; any number of these may run."""
    become("gateway", "--host", host, "--port", str(port), *(["--insecure"] if insecure else []))


@app.command()
def worker() -> None:
    """Work on runs; any number of these may run, on any number of machines."""
    become("worker")


@app.command()
def demo_model(host: Host = "127.0.0.1", port: Port = 0) -> None:
    """Serve the demo model and its weather, for a system without a provider."""
    become("worker.model.demo", "--host", host, "--port", str(port))


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="what to ask; - reads it from stdin")],
    model: Annotated[
        str | None, typer.Option(help="the model, or extraction=NAME,synthesis=NAME; else the operator's choice")
    ] = None,
    system: Annotated[str | None, typer.Option(help="a system prompt")] = None,
    *,
    synthesis: Annotated[bool, typer.Option(help="let the model write an answer from the tools' results")] = True,
    url: Url = URL_DEFAULT,
    as_json: Json = False,
) -> None:
    """Make a run and follow it. Ctrl-C ends only the following."""
    body: dict[str, Any] = {"user_prompt": sys.stdin.read() if prompt == "-" else prompt, "synthesis": synthesis}
    body |= {} if model is None else {"model": parse_models(model)}
    body |= {} if system is None else {"system_prompt": system}

    async def create(client: Client) -> str:
        return str((await client.create_run(body))["id"])

    raise typer.Exit(Watch(url, as_json=as_json).run(create))


@app.command()
def tail(
    run_id: RunId,
    from_id: Annotated[str, typer.Option("--from", metavar="EVENT_ID", help="go on after this event")] = "",
    *,
    url: Url = URL_DEFAULT,
    as_json: Json = False,
) -> None:
    """Follow a run, from its start or from an event's id on."""

    async def find(_: Client) -> str:
        return run_id

    raise typer.Exit(Watch(url, as_json=as_json).run(find, from_id))


@app.command()
def ls(
    limit: Annotated[int, typer.Option(min=1, max=LIST_MAX, help="how many")] = 20,
    *,
    status: Annotated[str, typer.Option(help="only those in these states: queued,running")] = "",
    model: Annotated[str, typer.Option(help="only those of this model")] = "",
    search: Annotated[str, typer.Option("-q", help="only those with this in id, prompt or metadata")] = "",
    url: Url = URL_DEFAULT,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    filters = {name: value for name, value in {"status": status, "model": model, "q": search}.items() if value}

    async def show() -> None:
        async with Client(url) as client:
            for summary in await client.list_runs(limit, **filters):
                typer.echo(orjson.dumps(summary) if as_json else _row(summary))

    asyncio.run(show())


@app.command()
def cancel(run_id: RunId, *, url: Url = URL_DEFAULT) -> None:
    """Cancel a run, in whatever state it is."""

    async def ask() -> None:
        async with Client(url) as client:
            status = (await client.cancel_run(run_id))["status"]
            # A worker ends its run by itself, a moment later.
            typer.echo(f"{run_id} {status if status in TERMINAL else 'is being cancelled'}")

    asyncio.run(ask())


def main() -> None:
    """Run the command; what goes wrong on purpose is one line on stderr and exit code 1."""
    try:
        app()
    except (StagebusError, httpx.InvalidURL) as exc:
        typer.echo(f"stagebus: {exc}", err=True)
        raise SystemExit(1) from None


def _row(summary: dict[str, Any]) -> str:
    return f"{summary['id']}  {summary['status']:<9}  {summary['created_at']}  {excerpt(summary['prompt'])}"


if __name__ == "__main__":
    main()
