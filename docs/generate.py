"""`python -m docs.generate` writes the pages that are made from the code.

    docs/configuration.md    the settings
    docs/http-api.md         the endpoints, events and error codes
    README.md                the diagram of a run's states, between its markers

Run it in the repository's root (`make docs`). A test fails if a page is out of date.
"""

import inspect
import re
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from docs.http_api_page import LIMITS, http_api_page
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import TERMINAL, TRANSITIONS, RunStatus

CONFIGURATION: Final = Path("docs/configuration.md")
HTTP_API: Final = Path("docs/http-api.md")
README: Final = Path("README.md")
STATES_BEGIN: Final = "<!-- states: made by `make docs` -->"
STATES_END: Final = "<!-- states end -->"

_HEAD: Final = """\
# Configuration

Every process reads its settings at start from environment variables. An invalid value stops the process with a message
that names the variable; an empty value counts as not set. Use the same settings for all processes of one system; a
process ignores those that it does not need. `make docs` makes this page from `shared/config/settings.py`.

The commands of the server (`stagebus up`, `gateway`, `worker`, `demo-model`, `keys`, `models check`) also read the file `.env`
in the current folder, one `NAME=value` per line. The environment takes precedence. The client's commands do not read it.

`stagebus up` needs no settings: if `STAGEBUS_REDIS_URL` is not set it starts its own Valkey, and if neither
`OPENAI_BASE_URL` nor `STAGEBUS_PROVIDERS` is set it starts the demo model. A system of separate processes needs a Redis
server and a provider: `OPENAI_BASE_URL` and usually `OPENAI_API_KEY`, or a providers file (see
[providers](providers.md)).

The commands `stagebus run`, `tail`, `ls` and `cancel` are clients. They read `STAGEBUS_URL`, the URL of a gateway
(default: `http://127.0.0.1:8000`), and `STAGEBUS_API_KEY`, the API key or token for it. `stagebus keys` connects to
Redis directly; without `STAGEBUS_REDIS_URL` it uses the Valkey of the `stagebus up` that runs with the same
`STAGEBUS_DATA_DIR` (default: `.stagebus` in the current folder). [Security](security.md) explains how to open a gateway to other machines.
"""


def configuration_page() -> str:
    """Returns docs/configuration.md."""
    properties = Settings.model_json_schema()["properties"]
    parts = [_HEAD]
    for section, names in _sections().items():
        rows = [_row(name, properties) for name in names]
        parts.append(
            "\n".join([f"## {section}", "", "| variable | default | values | |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def states_diagram() -> str:
    """Returns the states of a run and their transitions as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {RunStatus.QUEUED}"]
    for status, nexts in TRANSITIONS.items():
        for following in (other for other in RunStatus if other in nexts):
            note = " : next attempt" if following is status else ""
            lines.append(f"    {status} --> {following}{note}")
    lines += [f"    {status} --> [*]" for status in RunStatus if status in TERMINAL]
    return "\n".join([*lines, "```"])


def with_states(readme: str) -> str:
    """Returns the README with the current diagram between its markers.

    Raises:
        ValueError: the README has no markers.
    """
    before, begin, rest = readme.partition(STATES_BEGIN)
    _, end, after = rest.partition(STATES_END)
    if not (begin and end):
        raise ValueError(f"{README} has no {STATES_BEGIN} … {STATES_END}")
    return f"{before}{begin}\n{states_diagram()}\n{end}{after}"


def _sections() -> dict[str, list[str]]:
    """Returns the names of the settings by the comment above them in the class."""
    sections: dict[str, list[str]] = {}
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.fullmatch(r" {4}# (\w+)", line):
            sections[heading[1]] = []
        elif (field := re.match(r" {4}(\w+): ", line)) and field[1] in Settings.model_fields:
            sections[next(reversed(sections))].append(field[1])
    return sections


def _row(name: str, properties: dict[str, dict[str, Any]]) -> str:
    shared = name.upper()
    variable, schema = (
        (shared, properties[shared]) if shared in properties else (f"STAGEBUS_{shared}", properties[name])
    )
    values = [f"{sign} {schema[key]}" for key, sign in LIMITS if key in schema]
    if "pattern" in schema:
        values = [schema["pattern"].strip("^()$").replace("|", ", ")]
    return f"| `{variable}` | {_default(name)} | {', '.join(values)} | {schema['description']} |"


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    if default is None or default == ():
        return "not set"
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> None:
    """Writes the pages."""
    HTTP_API.write_text(http_api_page())
    CONFIGURATION.write_text(configuration_page())
    README.write_text(with_states(README.read_text()))


if __name__ == "__main__":
    main()
