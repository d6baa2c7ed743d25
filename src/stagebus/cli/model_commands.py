"""`stagebus models`: what a gateway offers, and what the models really do."""

from typing import Annotated, Any, Final

import typer

from stagebus.cli.run_commands import connect
from stagebus.cli.shared_options import Json, Profile, Url
from stagebus.shared.local.exec_module import exec_module

models_app = typer.Typer(invoke_without_command=True, help="List the models that a run may name; check tries them.")

_UNSAID: Final = "-"


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

    import orjson

    from stagebus.client import api_requests

    with connect(url, profile) as bus:
        listed = bus.call(api_requests.MODELS)
    for model in listed["models"]:
        typer.echo(orjson.dumps(model) if as_json else _row(model))
    if not as_json:
        for pattern in [*listed["patterns"], *(["*"] if listed["any_model"] else [])]:
            typer.echo(f"{pattern}  any name of this form")


@models_app.command("check")
def check_models(
    names: Annotated[list[str] | None, typer.Argument(help="models; all of the providers file where left out")] = None,
) -> None:
    """Ask models what they can do. It needs a worker's environment: its providers file and its keys.

    Exit code 0: each answers, and does what the providers file says of it.
    """
    exec_module("stagebus.worker.model.model_check", *(names or []))


def _row(model: dict[str, Any]) -> str:
    abilities = model["abilities"]
    notes = [f"tools {abilities['tools']}"]
    if abilities["tools"] == "native" and not abilities["parallel_tool_calls"]:
        notes.append("one call at a time")
    if model["fallbacks"]:
        notes.append(f"then {', '.join(model['fallbacks'])}")
    if model["is_default"]:
        notes.append("default")
    return f"{model['id']}  {model['provider'] or _UNSAID}  {'; '.join(notes)}"
