"""Options and arguments that several commands share."""

import re
from typing import Annotated, Any, Final

import typer

COMPLETED_MAX: Final = 50
# The states of a run, as the gateway names them. Their enum is slow to import.
STATES: Final = ("queued", "running", "parked", "succeeded", "failed", "cancelled")
# Some shells evaluate completions, so only plain words are offered, and never a text that anyone may have written.
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_STAGE_MODEL: Final = re.compile(r"(?:.*,)?(?:extraction|synthesis)=")


def complete_run_id(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a run id from the newest runs."""
    found = _ask(context, "/runs", {"limit": COMPLETED_MAX, "q": incomplete} if incomplete else {})
    runs = [(str(run["id"]), str(run["status"])) for run in found.get("runs", ())]
    return [(run_id, status) for run_id, status in _plain(runs, incomplete) if status in STATES]


def complete_model(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a model's name, also behind `extraction=` and `synthesis=`."""
    stage = match[0] if (match := _STAGE_MODEL.match(incomplete)) else ""
    models = [(str(model["id"]), "") for model in _ask(context, "/models", {}).get("models", ())]
    return [(f"{stage}{name}", "") for name, _ in _plain(models, incomplete.removeprefix(stage))]


def complete_tool(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a tool's name."""
    return _plain([(str(tool["name"]), "") for tool in _ask(context, "/tools", {}).get("tools", ())], incomplete)


def complete_status(incomplete: str) -> list[tuple[str, str]]:
    """Complete the last of the states, separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [(f"{before}{comma}{state}", "") for state in STATES if state.startswith(last)]


def _plain(words: list[tuple[str, str]], incomplete: str) -> list[tuple[str, str]]:
    return [(word, help_) for word, help_ in words if word.startswith(incomplete) and _PLAIN.fullmatch(word)]


def _ask(context: typer.Context, path: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return a gateway's answer; empty if none comes within a second. The user is at a prompt, where errors would garble."""
    from stagebus.cli.profile import find_target
    from stagebus.client import api_requests

    try:
        import httpx

        target = find_target(context.params.get("url"), context.params.get("profile"))
        with httpx.Client(
            **(api_requests.client_options(target.url, target.api_key, None, target.user) | {"timeout": 1.0})
        ) as http:
            found = http.get(path, params=params).json()
    except Exception:  # noqa: BLE001 - see above
        return {}
    return found if isinstance(found, dict) else {}


Url = Annotated[str | None, typer.Option(help="the gateway's URL; default: STAGEBUS_URL, then the profile")]
Profile = Annotated[str | None, typer.Option(help="a profile of config.toml; default: STAGEBUS_PROFILE")]
User = Annotated[str | None, typer.Option(help="make it for this user; default: STAGEBUS_USER, then the profile")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object per line")]
RunId = Annotated[str, typer.Argument(help="the run's id", autocompletion=complete_run_id)]
CallId = Annotated[str, typer.Argument(help="the call's id, as shown by `stagebus show`")]
Wait = Annotated[bool, typer.Option("--wait", help="in a pipe: keep waiting when a person has to decide")]
Model = Annotated[
    str | None,
    typer.Option(
        help="the model, or extraction=NAME,synthesis=NAME; default: the operator's choice",
        autocompletion=complete_model,
    ),
]
System = Annotated[str | None, typer.Option(help="a system prompt")]
Tools = Annotated[
    list[str] | None,
    typer.Option("--tool", help="offer this tool; repeatable; default: all tools", autocompletion=complete_tool),
]
NoTools = Annotated[bool, typer.Option("--no-tools", help="offer no tools")]


def model_fields(model: str | None, system: str | None, tools: list[str] | None, *, no_tools: bool) -> dict[str, Any]:
    """Return the fields of a run that these options set; None for those that are not set.

    Raises:
        typer.BadParameter: the options contradict each other.
    """
    from stagebus.shared.domain.requests import parse_models

    if no_tools and tools:
        raise typer.BadParameter("--tool and --no-tools cannot be combined")
    return {
        "model": None if model is None else parse_models(model),
        "system_prompt": system,
        "tools": [] if no_tools else tools or None,
    }
