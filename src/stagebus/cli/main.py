"""The `stagebus` command.

    stagebus up                         run the whole system on this machine
    stagebus gateway | worker           run one process of a system
    stagebus run "…"                    create a run and follow it
    stagebus chat                       talk to a model, in a thread that keeps the conversation
    stagebus threads ls | show | …      list, show, change and delete threads
    stagebus tail | ls | show           follow, list and show runs
    stagebus explain                    tell where a run is and what would move it
    stagebus export                     write a run with all its events to a file
    stagebus cancel | delete            stop a run, or remove all that is stored of it
    stagebus approve | deny | answer    decide on a call that waits for a person
    stagebus result                     give the result of a call that waits for one
    stagebus share                      create or revoke a link to a run
    stagebus tools                      list the tools that a run may name
    stagebus models [check]             list the models that a run may name, check their abilities
    stagebus keys                       create, list and revoke API keys
    stagebus webhooks                   list and resend webhooks, send a test

The commands that run processes, `keys`, `webhooks` and `models check` need `stagebus[server]`. Each command
imports its slow dependencies itself, so that `--help` and shell completion are fast. Exit codes
are in `exit_codes.py` and docs/cli.md.
"""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from stagebus.cli.key_commands import keys_app
from stagebus.cli.model_commands import models_app
from stagebus.cli.output import echo
from stagebus.cli.run_commands import runs_app
from stagebus.cli.server_extra import require_server
from stagebus.cli.thread_commands import chat_app, threads_app
from stagebus.cli.webhook_commands import webhooks_app
from stagebus.shared.local.exec_module import exec_module
from stagebus.shared.observability.redaction import printable
from stagebus.shared.runtime.misspelling import CLIENT_VARIABLES, find_misspelt

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_requested: bool) -> None:  # noqa: FBT001 - typer passes it by position
    if is_requested:
        from importlib.metadata import version

        echo(version("stagebus"))
        raise typer.Exit


@app.callback()
def stagebus(
    *,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Durable background runs of LLM toolchains, streamed to clients that can always resume."""
    # Gateway and worker check the names of settings, which are slow to import.
    for warning in find_misspelt(os.environ, CLIENT_VARIABLES):
        echo(f"stagebus: {warning}", err=True)


Host = Annotated[str, typer.Option(help="address to listen on")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 chooses a free one")]
Insecure = Annotated[bool, typer.Option("--insecure", help="allow access from other machines without authentication")]


@app.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="the embedded Valkey's data folder; default: STAGEBUS_DATA_DIR, then .stagebus")
    ] = None,
    *,
    insecure: Insecure = False,
    local: Annotated[bool, typer.Option("--local", help="use a small real model that runs on this machine")] = False,
) -> None:
    """Start the whole system on this machine and print the web page's address.

    Starts its own Valkey unless STAGEBUS_REDIS_URL is set, and a demo model unless
    OPENAI_BASE_URL or STAGEBUS_PROVIDERS is set. Ctrl-C stops it; unfinished runs continue at the next start.
    """
    require_server("up")
    import asyncio

    from stagebus.shared.config.settings import load_settings
    from stagebus.shared.local import supervisor
    from stagebus.shared.observability.logging import configure, log_uncaught_exceptions

    settings = load_settings()
    configure(settings.log_level)
    log_uncaught_exceptions()
    if insecure:
        settings = settings.model_copy(update={"insecure": True})
    options = supervisor.UpOptions(host, port, data_dir or settings.data_dir, is_local=local)
    asyncio.run(supervisor.up(options, settings))


@app.command()
def gateway(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[
        int, typer.Option(min=1, help="number of processes that share the port; each uses one core")
    ] = 1,
    *,
    insecure: Insecure = False,
) -> None:
    """Serve the HTTP API, the event streams and the web page. Any number of gateways may run."""
    require_server("gateway")
    options = ["--host", host, "--port", str(port), "--workers", str(workers)]
    exec_module("stagebus.gateway", *options, *(["--insecure"] if insecure else []))


@app.command()
def worker() -> None:
    """Execute runs. Any number of workers may run, on any number of machines."""
    require_server("worker")
    exec_module("stagebus.worker")


@app.command()
def demo_model(host: Host = "127.0.0.1", port: Port = 0) -> None:
    """Serve the demo model and the demo weather service, for a system without a provider."""
    require_server("demo-model")
    exec_module("stagebus.worker.demo.demo_model", "--host", host, "--port", str(port))


app.add_typer(runs_app)
app.add_typer(chat_app)
app.add_typer(threads_app, name="threads")
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
app.add_typer(webhooks_app, name="webhooks")


def main() -> None:
    """Run the command. An expected error becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the caller may have closed it
            # Replace characters that the terminal's encoding lacks, instead of losing a run's text to an exception.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = app(standalone_mode=False)  # the exit code of typer.Exit, if the command raised it
    except Exception as exc:  # noqa: BLE001 - no input may end in a traceback
        code = _report(exc)
    raise SystemExit(code)


def _report(exc: Exception) -> int:
    """Print an error as one line, and the traceback of an unexpected one at the log level DEBUG. Return the exit code."""
    import traceback

    if hasattr(exc, "show") and hasattr(exc, "exit_code"):  # typer's error for a wrong call, which prints the usage
        usage = io.StringIO()
        exc.show(usage)
        with suppress(OSError):
            typer.echo(printable(usage.getvalue().rstrip(), keep="\n"), err=True)
        return int(exc.exit_code)

    from stagebus.cli.error_messages import message_of
    from stagebus.cli.exit_codes import ExitCode, exit_code_of

    code, text = exit_code_of(exc), message_of(exc)
    if isinstance(exc, typer.Abort):  # Ctrl-C
        code, text = ExitCode.DETACHED, "interrupted"
    elif code is None:
        text = f"unexpected {type(exc).__name__}: {text} (STAGEBUS_LOG_LEVEL=DEBUG shows where)"
        if os.environ.get("STAGEBUS_LOG_LEVEL") == "DEBUG":
            text += "\n" + "".join(traceback.format_exception(exc))
    with suppress(OSError):
        typer.echo(printable(f"stagebus: {text}", keep="\n"), err=True)
    return ExitCode.FAILED if code is None else code


if __name__ == "__main__":
    main()
