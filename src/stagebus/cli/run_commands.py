"""Commands that create, follow, list, cancel, export and delete runs and decide on their calls, through a gateway."""

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from stagebus.cli.durations import parse_duration
from stagebus.cli.formatting import excerpt
from stagebus.cli.output import echo, echo_json
from stagebus.cli.shared_options import (
    CallId,
    Json,
    Model,
    NoTools,
    Profile,
    RunId,
    System,
    Tools,
    Url,
    User,
    Wait,
    complete_model,
    complete_status,
    model_fields,
)

if TYPE_CHECKING:
    from stagebus.client import Stagebus

LIST_MAX: Final = 100
WAIT_S: Final = 30  # as long as the gateway holds an answer

runs_app = typer.Typer()


def connect(url: str | None, profile: str | None, user: str | None = None) -> "Stagebus":
    """Return a client for the gateway that options, environment and configuration file name."""
    from stagebus.cli.profile import find_target
    from stagebus.client import Stagebus

    target = find_target(url, profile, user)
    return Stagebus(target.url, api_key=target.api_key, user=target.user)


def read_pages(read: Callable[[str | None], dict[str, Any]], name: str, limit: int) -> list[dict[str, Any]]:
    """Return the first items of a list in pages.

    Args:
        read: returns the page after a cursor, with its items under `name`. A page may be short, since the gateway searches
            a bounded number of records for it.
    """
    found: list[dict[str, Any]] = []
    before: str | None = None
    while len(found) < limit:
        page = read(before)
        found += page[name]
        before = page["next"]
        if before is None:
            break
    return found[:limit]


def read_stdin() -> str:
    """Read stdin as text.

    Raises:
        typer.BadParameter: it is closed, or is not UTF-8.
    """
    if sys.stdin is None:
        raise typer.BadParameter("stdin is closed; give the text as an argument instead of -")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise typer.BadParameter(f"stdin is not UTF-8 text: byte {exc.start} is 0x{exc.object[exc.start]:02x}") from exc


def _check_positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter("must be a number above 0")
    return value


@runs_app.command()
def run(  # noqa: PLR0913 - each is an option of the command
    prompt: Annotated[str, typer.Argument(help="the prompt; - reads it from stdin")],
    model: Model = None,
    system: System = None,
    tools: Tools = None,
    *,
    no_tools: NoTools = False,
    synthesis: Annotated[bool, typer.Option(help="let the model write an answer from the tool results")] = True,
    max_rounds: Annotated[
        int | None, typer.Option(min=1, help="limit of rounds in which the model may call tools")
    ] = None,
    max_total_tokens: Annotated[
        int | None, typer.Option(min=1, help="end the run once all stages together have used more tokens")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="the run's time limit in seconds", callback=_check_positive)
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="attach metadata; repeatable")] = None,
    user: User = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="print the run's id and do not follow it")] = False,
    wait: Wait = False,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Create a run and follow it. Ctrl-C asks whether to detach from the run or cancel it."""
    given = {
        **model_fields(model, system, tools, no_tools=no_tools),
        "user_prompt": read_stdin() if prompt == "-" else prompt,
        "synthesis": None if synthesis else False,
        "max_rounds": max_rounds,
        "max_total_tokens": max_total_tokens,
        "timeout_s": timeout,
        "metadata": parse_metadata(metadata or ()) or None,
    }
    fields: Any = {name: value for name, value in given.items() if value is not None}
    if detach:
        with connect(url, profile, user) as bus:
            echo(bus.runs.create(**fields).id)
        return
    from stagebus.cli.profile import find_target
    from stagebus.cli.run_watcher import RunWatcher

    watcher = RunWatcher(find_target(url, profile, user), as_json=as_json, waits=wait)
    raise typer.Exit(watcher.run(lambda bus: bus.runs.create(**fields)))


@runs_app.command()
def tail(
    run_id: RunId,
    from_id: Annotated[str, typer.Option("--from", metavar="EVENT_ID", help="start after this event")] = "",
    *,
    wait: Wait = False,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Follow a run from its start, or from after a given event."""
    from stagebus.cli.profile import find_target
    from stagebus.cli.run_watcher import RunWatcher
    from stagebus.client import AsyncRun, AsyncStagebus

    async def find(bus: AsyncStagebus) -> AsyncRun:
        return bus.runs.resume(run_id, from_id)

    raise typer.Exit(RunWatcher(find_target(url, profile), as_json=as_json, waits=wait).run(find))


@runs_app.command("list", hidden=True)
@runs_app.command("ls")
def ls(
    limit: Annotated[int, typer.Option(min=1, max=LIST_MAX, help="number of runs")] = 20,
    *,
    status: Annotated[
        str, typer.Option(help="only runs in these states, such as queued,running", autocompletion=complete_status)
    ] = "",
    model: Annotated[str, typer.Option(help="only runs of this model", autocompletion=complete_model)] = "",
    search: Annotated[
        str, typer.Option("--search", "-q", help="only runs with this text in id, prompt or metadata")
    ] = "",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="only runs with this metadata; repeatable")
    ] = None,
    user: Annotated[str, typer.Option(help="only runs of this user")] = "",
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    from stagebus.cli.run_tables import show_list

    wanted = {"status": status, "model": model, "q": search, "metadata": parse_metadata(metadata or ()), "user": user}
    filters: Any = {name: value for name, value in wanted.items() if value}
    with connect(url, profile) as bus:
        found = read_pages(lambda before: bus.runs.list(limit, before, **filters), "runs", limit)
    show_list(found, as_json=as_json)


@runs_app.command()
def show(
    run_id: RunId,
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="first wait until the run has ended or waits for a person")
    ] = False,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Show a run: its record, stages, pending calls, usage and answer."""
    from stagebus.cli.run_tables import show_run

    with connect(url, profile) as bus:
        run = bus.runs.get(run_id)
        while wait and run["finished_at"] is None and not run["pending_approvals"]:
            run = bus.runs.get(run_id, wait_s=WAIT_S)
    show_run(run, as_json=as_json)


@runs_app.command()
def explain(run_id: RunId, *, url: Url = None, profile: Profile = None, as_json: Json = False) -> None:
    """Explain where a run is: what has happened to it, what it waits for, and what would move it."""
    from stagebus.shared.runtime.story_text import story_lines

    with connect(url, profile) as bus:
        explained = bus.runs.resume(run_id).explain()
    if as_json:
        echo_json(explained)
        return
    for line in story_lines(explained):
        echo(line)


@runs_app.command()
def cancel(
    run_id: RunId,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="why; shown with the run")] = None,
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Cancel a run, whatever its state."""
    from stagebus.cli.exit_codes import EXIT_CODE_BY_STATUS

    with connect(url, profile) as bus:
        run = bus.runs.resume(run_id)
        run.cancel(reason)
        status = run.get()["status"]
    # A running run ends a moment later, when its worker sees the request.
    is_ended = status in EXIT_CODE_BY_STATUS and status != "parked"
    echo(f"{run_id} {status if is_ended else 'is being cancelled'}")


@runs_app.command()
def export(
    run_id: RunId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="write to this file; default: stdout")
    ] = None,
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Export a run as one JSON document: its record, its request and all its events."""
    from stagebus.cli.export_file import write_document

    with connect(url, profile) as bus:
        write_document(bus.runs.resume(run_id).export(), output)


@runs_app.command()
def delete(run_id: RunId, *, url: Url = None, profile: Profile = None) -> None:
    """Delete a run and all that is stored of it. A run that has not ended is cancelled first."""
    with connect(url, profile) as bus:
        bus.runs.resume(run_id).delete()
    echo(f"{run_id} is deleted")


@runs_app.command()
def approve(
    run_id: RunId,
    call_id: CallId,
    arguments: Annotated[str | None, typer.Option(metavar="JSON", help="replace the model's arguments")] = None,
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Approve a tool call that waits for a person."""
    from stagebus.cli.approval_arguments import parse_arguments

    given = None if arguments is None else parse_arguments(arguments)
    with connect(url, profile) as bus:
        bus.runs.resume(run_id).approve(call_id, given)
    echo(f"{call_id} is approved")


@runs_app.command()
def deny(
    run_id: RunId,
    call_id: CallId,
    reason: Annotated[str | None, typer.Option(help="a reason for the model")] = None,
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Deny a tool call that waits for a person."""
    with connect(url, profile) as bus:
        bus.runs.resume(run_id).deny(call_id, reason)
    echo(f"{call_id} is denied")


@runs_app.command()
def answer(
    run_id: RunId,
    call_id: CallId,
    text: Annotated[str, typer.Argument(help="the answer; - reads it from stdin")],
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Answer a question of the model."""
    with connect(url, profile) as bus:
        bus.runs.resume(run_id).answer(call_id, read_stdin() if text == "-" else text)
    echo(f"{call_id} is answered")


@runs_app.command()
def result(
    run_id: RunId,
    call_id: CallId,
    text: Annotated[str, typer.Argument(help="the result; - reads it from stdin")],
    *,
    is_error: Annotated[bool, typer.Option("--error", help="the call failed, and the text says why")] = False,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Give the result of a call that waits for one."""
    with connect(url, profile) as bus:
        bus.runs.resume(run_id).give_result(call_id, read_stdin() if text == "-" else text, is_error=is_error)
    echo(f"{call_id} has its result")


@runs_app.command()
def share(
    run_id: RunId,
    expires: Annotated[str, typer.Option(help="a duration such as 12h or 7d; default: a day")] = "",
    revoke: Annotated[str, typer.Option(metavar="LINK_ID", help="end this link's access instead")] = "",
    *,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Create a link with which anyone can read a run, without a key."""
    ttl_s = parse_duration(expires)
    with connect(url, profile) as bus:
        run = bus.runs.resume(run_id)
        if revoke:
            run.revoke_ticket(revoke)
            echo(f"link {revoke} is revoked")
            return
        link = run.ticket(share=True, ttl_s=None if ttl_s is None else round(ttl_s))
    if as_json:
        echo_json({"id": link.id, "page": link.page, "events": link.events, "expires_at": link.expires_at})
        return
    echo(link.page)
    echo(f"whoever has this link can read the run until {link.expires_at}", err=True)
    echo(f"to end its access: stagebus share {run_id} --revoke {link.id}", err=True)


@runs_app.command()
def tools(*, url: Url = None, profile: Profile = None, as_json: Json = False) -> None:
    """List the tools that a run may name."""
    with connect(url, profile) as bus:
        listed = bus.tools()
    for tool in listed:
        if as_json:
            echo_json(tool)
            continue
        mark = " (waits for approval)" if tool.get("requires_approval") else ""
        echo(f"{tool['name']}{mark}  {excerpt(tool['description'].partition(chr(10))[0])}")


def parse_metadata(pairs: Iterable[str]) -> dict[str, str]:
    """Parse `key=value` pairs; a value may contain equal signs."""
    split = [pair.partition("=") for pair in pairs]
    if wrong := [key for key, sign, _ in split if not sign or not key]:
        raise typer.BadParameter(f"--metadata takes KEY=VALUE, unlike {wrong[0]!r}")
    return {key: value for key, _, value in split}
