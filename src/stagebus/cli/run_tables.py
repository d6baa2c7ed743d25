"""Prints runs for `stagebus ls` and `stagebus show`: aligned and coloured at a terminal, plain lines in a pipe."""

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from stagebus.cli.approval_arguments import argument_lines
from stagebus.cli.error_messages import in_plain_words
from stagebus.cli.formatting import excerpt, money, seconds, tokens
from stagebus.cli.output import echo, echo_json
from stagebus.cli.renderer import make_console
from stagebus.shared.runtime.sanitize import reveal, sanitize

_WIDE_COLUMNS: Final = 110
_STYLE_BY_STATUS: Final = {
    "queued": "dim", "running": "cyan", "parked": "bold magenta", "succeeded": "green", "failed": "red",
    "cancelled": "yellow",
}  # fmt: skip


def show_list(runs: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print one line per run."""
    if as_json or not sys.stdout.isatty():
        for run in runs:
            echo_json(run) if as_json else echo(_row(run))
        return
    from rich.text import Text

    console = make_console(sys.stdout)
    is_wide = console.width >= _WIDE_COLUMNS
    for run in runs:
        # A narrow window cuts the prompt, never the id: people copy it.
        status = sanitize(run["status"])
        line = Text(f"{sanitize(run['id'])}  ").append(f"{status:<9}", _STYLE_BY_STATUS.get(status, ""))
        line.append(f"  {_clock(run['created_at']):>12}", "dim")
        if is_wide:
            line.append(f"  {_took(run):>10}  {tokens(run['usage']):>12}", "dim")
        line.append(f"  {excerpt(run['prompt'])}")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, soft_wrap=True)


def show_threads(threads: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print one line per thread."""
    for thread in threads:
        if as_json:
            echo_json(thread)
            continue
        state = "active" if thread["active_run_id"] else ""
        title = excerpt(thread["title"] or "")
        echo(f"{thread['id']}  {thread['updated_at']}  {thread['run_count']} runs  {state:<6}  {title}".rstrip())


def show_run(run: dict[str, Any], *, as_json: bool) -> None:
    """Print one run's record."""
    if as_json:
        echo_json(run)
        return
    console = make_console(sys.stdout) if sys.stdout.isatty() else None
    for name, text in _facts(run):
        line = sanitize(text)
        if console is None:
            echo(f"{name:<9}{line}", keep="\n")
        else:
            style = _STYLE_BY_STATUS.get(text, "") if name == "status" else "red" if name == "error" else ""
            console.print(f"{name:<9}", style="dim", end="", highlight=False)
            console.print(line, style=style or None, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if run["result"] is not None:
        mark = "\n(the run was stopped; this is the answer so far)" if run["result"].get("partial") else ""
        echo(f"{mark}\n{run['result']['text']}", keep="\n\t")


def _waiting(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for pending in run["pending_approvals"]:
        is_question = pending["question"] is not None
        name = "an answer" if is_question else reveal(pending["name"])
        yield "waits for", ""
        yield "", f"{name}: call {pending['call_id']}  (until {pending['expires_at']})"
        lines = pending["question"].split("\n") if is_question else argument_lines(pending["arguments"])
        yield from (("", line) for line in lines)
    for call in run.get("pending_calls", ()):
        yield "waits for", ""
        yield "", f"the result of {reveal(call['name'])}: call {call['call_id']}  (until {call['expires_at']})"
        yield from (("", line) for line in argument_lines(call["arguments"]))


def _facts(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run", run["id"]
    yield from _status(run)
    yield "model", run["model"]
    yield "created", run["created_at"]
    if took := _took(run):
        yield "took", took
    yield "prompt", excerpt(run["prompt"])
    yield from _labels(run)
    for stage in run["stages"]:
        model = " of ".join(name for name in (stage["model"], stage["provider"]) if name)
        yield (
            "stage",
            "  ".join(part for part in (stage["stage_id"], stage["status"], model, tokens(stage["usage"])) if part),
        )
    yield from _waiting(run)
    if run["usage"]:
        usage = run["usage"]
        yield "usage", f"{tokens(usage)}: {usage['prompt_tokens']} prompt, {usage['completion_tokens']} completion"
    if cost := money(run["usage"]):
        yield "cost", cost
    if run["tries"]:
        yield "tries", f"{run['tries']} after a worker crashed"
    if run["error"]:
        yield "error", f"{in_plain_words(run['error']['error'])} ({run['error']['code']})"
    yield "cursor", run["last_event_id"]


def _labels(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if run.get("user"):  # gateways of older versions do not have it
        yield "user", run["user"]
    for key, value in run["metadata"].items():
        yield "metadata", f"{key}={value}"


def _status(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "status", run["status"]
    if run["cancel_requested"] and run["finished_at"] is None:
        yield "", "cancel requested"
    if reason := run.get("cancel_reason"):
        yield "reason", excerpt(reason)


def _row(run: dict[str, Any]) -> str:
    return f"{run['id']}  {run['status']:<9}  {run['created_at']}  {excerpt(run['prompt'])}"


def _took(run: dict[str, Any]) -> str:
    if run["started_at"] is None or run["finished_at"] is None:
        return ""
    return seconds(1000 * (_time(run["finished_at"]) - _time(run["started_at"])).total_seconds())


def _clock(timestamp: str) -> str:
    """Format a timestamp in local time; without the date if it is today."""
    moment = _time(timestamp).astimezone()
    return moment.strftime("%H:%M:%S" if moment.date() == datetime.now().astimezone().date() else "%b %d %H:%M")


def _time(timestamp: str) -> datetime:
    return datetime.fromisoformat(timestamp)
