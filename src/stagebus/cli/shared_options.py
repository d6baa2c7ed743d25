"""Options and arguments that several commands have."""

from typing import Annotated, Final

import typer

COMPLETED_MAX: Final = 50


def complete_run_id(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The newest runs whose ids begin so, for the shell; nothing where no gateway says any at once."""
    from stagebus.cli.profile import find_target
    from stagebus.client import api_requests

    try:
        import httpx

        target = find_target(context.params.get("url"), context.params.get("profile"))
        # No second try and no long wait: somebody sits before a prompt.
        with httpx.Client(**(api_requests.connection(target.url, target.api_key, None) | {"timeout": 1.0})) as http:
            found = http.get("/runs", params={"limit": COMPLETED_MAX, "q": incomplete} if incomplete else {}).json()
        runs = [(run["id"], run["status"]) for run in found["runs"] if run["id"].startswith(incomplete)]
    except Exception:  # noqa: BLE001 - whatever it is, a shell's prompt is no place to say so
        return []
    # Shells evaluate what completes: no prompt, which anybody may have written, and nothing but plain words.
    return [(run_id, status) for run_id, status in runs if run_id.isalnum() and status.isalpha()]


Url = Annotated[str | None, typer.Option(help="where a gateway is; else STAGEBUS_URL, else the profile's")]
Profile = Annotated[str | None, typer.Option(help="a profile of config.toml; else STAGEBUS_PROFILE")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a line")]
RunId = Annotated[str, typer.Argument(help="the run's id", autocompletion=complete_run_id)]
CallId = Annotated[str, typer.Argument(help="the call's id, as `stagebus show` says it")]
Wait = Annotated[bool, typer.Option("--wait", help="in a pipe: go on waiting where a person has to decide")]
