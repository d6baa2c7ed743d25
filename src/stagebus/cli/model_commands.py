"""`stagebus models`: lists the models that a gateway offers, and checks what they can do."""

from typing import Annotated, Any, Final

import typer

from stagebus.cli.output import echo, echo_json
from stagebus.cli.run_commands import connect
from stagebus.cli.server_extra import require_server
from stagebus.cli.shared_options import Json, Profile, Url
from stagebus.shared.local.exec_module import exec_module

models_app = typer.Typer(invoke_without_command=True, help="List the models that a run may name; `check` tries them.")

_UNKNOWN: Final = "-"


@models_app.callback()
def list_models(
    context: typer.Context,
    *,
    url: Url = None,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """List the models that a run may name."""
    if context.invoked_subcommand is not None:
        return

    from stagebus.client import api_requests

    with connect(url, profile) as bus:
        listed = bus.send(api_requests.MODELS)
    for model in listed["models"]:
        echo_json(model) if as_json else echo(_row(model))
    if not as_json:
        for pattern in [*listed["patterns"], *(["*"] if listed["any_model"] else [])]:
            echo(f"{pattern}  any name that matches")


@models_app.command("check")
def check_models(
    names: Annotated[list[str] | None, typer.Argument(help="models; default: all of the providers file")] = None,
) -> None:
    """Test what models can do. Needs a worker's environment, its providers file and keys, or a running `stagebus up`.

    Exits with 0 if every model answers and has the abilities that the providers file claims.
    """
    require_server("models check")
    from stagebus.cli.running_up import adopt_running_model

    adopt_running_model()
    exec_module("stagebus.worker.model.model_check", *(names or []))


def _row(model: dict[str, Any]) -> str:
    abilities = model["abilities"]
    notes = [f"tools {abilities['tools']}"]
    if abilities["tools"] == "native" and not abilities["parallel_tool_calls"]:
        notes.append("one call at a time")
    # A gateway of an older version does not send these.
    if (api := abilities.get("api") or "chat") != "chat":
        notes.append(f"api {api}")
    notes += [ability for ability in ("reasoning", "images", "caching") if abilities.get(ability)]
    if model["fallbacks"]:
        notes.append(f"then {', '.join(model['fallbacks'])}")
    if model["is_default"]:
        notes.append("default")
    return f"{model['id']}  {model['provider'] or _UNKNOWN}  {'; '.join(notes)}"
