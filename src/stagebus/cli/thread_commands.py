"""The commands of conversations: `stagebus chat`, and `stagebus threads` to list, show, change and delete them."""

from typing import Annotated, Any, Final

import typer

from stagebus.cli.output import echo, echo_json
from stagebus.cli.run_commands import LIST_MAX, connect, parse_metadata, read_pages
from stagebus.cli.shared_options import Json, Model, NoTools, Profile, System, Tools, Url, model_fields

NEW_ID_BYTES: Final = 6

threads_app = typer.Typer(no_args_is_help=True, help="List, show, change and delete threads.")
chat_app = typer.Typer()

ThreadId = Annotated[str, typer.Argument(help="the thread's id")]


@chat_app.command()
def chat(
    thread_id: Annotated[str | None, typer.Argument(help="the thread to continue; default: a new one")] = None,
    model: Model = None,
    system: System = None,
    tools: Tools = None,
    *,
    no_tools: NoTools = False,
    on_active: Annotated[
        str, typer.Option(metavar="POLICY", help="while another run is active: reject, enqueue, interrupt or steer")
    ] = "enqueue",
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Talk to a model. Each line is a message; in a pipe, too. Ctrl-C stops an answer and keeps its text."""
    import secrets

    from stagebus.cli.chat import Chat
    from stagebus.cli.profile import find_target

    given = model_fields(model, system, tools, no_tools=no_tools)
    if on_active not in ("reject", "enqueue", "interrupt", "steer"):
        raise typer.BadParameter("--on-active takes reject, enqueue, interrupt or steer")
    fields = {name: value for name, value in given.items() if value is not None}
    name = thread_id or f"chat-{secrets.token_hex(NEW_ID_BYTES)}"
    raise typer.Exit(Chat(find_target(url, profile), name, fields, on_active=on_active).run())


@threads_app.command("list", hidden=True)
@threads_app.command("ls")
def list_threads(
    limit: Annotated[int, typer.Option(min=1, max=LIST_MAX, help="number of threads")] = 20,
    search: Annotated[
        str, typer.Option("--search", "-q", help="only threads with this text in id, title or metadata")
    ] = "",
    *,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """List threads, the last active one first."""
    from stagebus.cli.run_tables import show_threads

    filters: Any = {"q": search} if search else {}
    with connect(url, profile) as bus:
        found = read_pages(lambda before: bus.threads.list(limit, before, **filters), "threads", limit)
    show_threads(found, as_json=as_json)


@threads_app.command("show")
def show_thread(thread_id: ThreadId, *, url: Url = None, profile: Profile = None, as_json: Json = False) -> None:
    """Show the current branch of a thread as Markdown, or the thread as JSON."""
    with connect(url, profile) as bus:
        if as_json:
            echo_json(bus.threads.get(thread_id))
        else:
            echo(bus.threads.open(thread_id).markdown(), keep="\n\t")


@threads_app.command("update")
def update_thread(
    thread_id: ThreadId,
    title: Annotated[str | None, typer.Option(help="the title; an empty one removes it")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="metadata in place of the stored one; repeatable")
    ] = None,
    *,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Set a thread's title or metadata."""
    if title is None and metadata is None:
        raise typer.BadParameter("give --title, --metadata, or both")
    with connect(url, profile) as bus:
        bus.threads.open(thread_id).update(title=title, metadata=None if metadata is None else parse_metadata(metadata))


@threads_app.command("delete")
def delete_thread(thread_id: ThreadId, *, url: Url = None, profile: Profile = None) -> None:
    """Delete a thread with all its runs. An active run is cancelled first."""
    with connect(url, profile) as bus:
        bus.threads.open(thread_id).delete()
    echo(f"thread {thread_id} is deleted")
