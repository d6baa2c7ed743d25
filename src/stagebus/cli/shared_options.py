"""Options and arguments that several commands share."""

from typing import Annotated, Final

import typer

COMPLETED_MAX: Final = 50


def complete_run_id(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a run id for the shell from the newest runs; empty if no gateway answers within a second."""
    from stagebus.cli.profile import find_target
    from stagebus.client import api_requests

    try:
        import httpx

        target = find_target(context.params.get("url"), context.params.get("profile"))
        # No retry and no long wait: the user is at a prompt.
        with httpx.Client(**(api_requests.client_options(target.url, target.api_key, None) | {"timeout": 1.0})) as http:
            found = http.get("/runs", params={"limit": COMPLETED_MAX, "q": incomplete} if incomplete else {}).json()
        runs = [(run["id"], run["status"]) for run in found["runs"] if run["id"].startswith(incomplete)]
    except Exception:  # noqa: BLE001 - an error message would garble the shell's prompt
        return []
    # Some shells evaluate completions, so return plain words only and never a prompt, which anyone may have written.
    return [(run_id, status) for run_id, status in runs if run_id.isalnum() and status.isalpha()]


Url = Annotated[str | None, typer.Option(help="the gateway's URL; default: STAGEBUS_URL, then the profile")]
Profile = Annotated[str | None, typer.Option(help="a profile of config.toml; default: STAGEBUS_PROFILE")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object per line")]
RunId = Annotated[str, typer.Argument(help="the run's id", autocompletion=complete_run_id)]
CallId = Annotated[str, typer.Argument(help="the call's id, as shown by `stagebus show`")]
Wait = Annotated[bool, typer.Option("--wait", help="in a pipe: keep waiting when a person has to decide")]
