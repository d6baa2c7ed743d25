"""The `stagebus` command.

    stagebus up                     everything on this machine, for a first look
    stagebus gateway | worker       one process of a system
    stagebus run "…"                make a run and follow it; tail, ls, show and cancel go with it
    stagebus approve | deny | answer    decide what a run waits for
    stagebus models [check]         what a run may name, and what the models can do
    stagebus keys                   API keys: create, list, revoke

What takes long to import is imported by the command that needs it: `--help` and a shell's
completion come at once. Exit codes are in `exits.py` and docs/cli.md.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stagebus.cli.key_commands import keys_app
from stagebus.cli.model_commands import models_app
from stagebus.cli.run_commands import runs_app
from stagebus.shared.local.exec_module import exec_module

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _say_version(is_asked: bool) -> None:  # noqa: FBT001 - what typer hands over
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("stagebus"))
        raise typer.Exit


@app.callback()
def stagebus(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="say which version this is", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Durable background runs of LLM toolchains, streamed to clients that can always resume."""


Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes any free one")]
Insecure = Annotated[bool, typer.Option("--insecure", help="let others reach a gateway that asks nobody who he is")]


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
    import asyncio

    from stagebus.shared.config.settings import load_settings
    from stagebus.shared.local import supervisor

    settings = load_settings()
    if insecure:
        settings = settings.model_copy(update={"insecure": True})
    options = supervisor.UpOptions(host, port, data_dir or settings.data_dir, is_local=local)
    asyncio.run(supervisor.up(options, settings))


@app.command()
def gateway(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, help="processes on the port; one uses one core")] = 1,
    *,
    insecure: Insecure = False,
) -> None:
    """Serve the HTTP API, the streams and the page; any number of these may run."""
    options = ["--host", host, "--port", str(port), "--workers", str(workers)]
    exec_module("stagebus.gateway", *options, *(["--insecure"] if insecure else []))


@app.command()
def worker() -> None:
    """Work on runs; any number of these may run, on any number of machines."""
    exec_module("stagebus.worker")


@app.command()
def demo_model(host: Host = "127.0.0.1", port: Port = 0) -> None:
    """Serve the demo model and its weather, for a system without a provider."""
    exec_module("stagebus.worker.demo.demo_model", "--host", host, "--port", str(port))


app.add_typer(runs_app)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")


def main() -> None:
    """Run the command; what goes wrong on purpose is one line on stderr and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is no reason to lose a run's text.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except Exception as exc:
        from stagebus.cli.exit_codes import exit_of

        code = exit_of(exc)
        if code is None:
            raise
        typer.echo(f"stagebus: {exc}", err=True)
        raise SystemExit(code) from None


if __name__ == "__main__":
    main()
