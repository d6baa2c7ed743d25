"""Which gateway the command talks to, and with what key.

    # ~/.config/stagebus/config.toml
    url = "https://stagebus.example"
    api_key = "sbk_…"

    [profiles.staging]
    url = "https://staging.example"
    api_key = "sbk_…"

What stands nearer wins: an option, then the environment, then the file. A profile that is asked
for stands before the environment. A key of the file goes to the file's own url and nowhere else.
"""

import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from stagebus.cli.exit_codes import Misused
from stagebus.client.api_requests import URL_DEFAULT

_KNOWN = {"url", "api_key"}


class Target(NamedTuple):
    """A gateway's address, and the key for it; an empty key is none."""

    url: str
    api_key: str


def find_target(url: str | None, profile: str | None) -> Target:
    """The gateway that the options, the environment and the file come to.

    Raises:
        Misused: the file does not hold, or has no such profile.
    """
    profile = profile or os.environ.get("STAGEBUS_PROFILE") or None
    section = _section(_read(config_path()), profile)
    env_url, env_key = os.environ.get("STAGEBUS_URL"), os.environ.get("STAGEBUS_API_KEY", "")
    if profile is not None:
        env_url, env_key = None, ""
    file_url = section.get("url", URL_DEFAULT)
    found = _bare(url or env_url or file_url)
    if not found.startswith(("http://", "https://")):
        raise Misused(f"a gateway's url begins with http:// or https://; {found!r} does not")
    return Target(found, env_key or (section.get("api_key", "") if found == _bare(file_url) else ""))


def config_path() -> Path:
    """Where the file is, if there is one."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return Path(home or Path.home() / ".config") / "stagebus" / "config.toml"


def _bare(url: str) -> str:
    return url.rstrip("/")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise Misused(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        content = tomllib.loads(text.decode())
    except ValueError as exc:
        raise Misused(f"{path} is no TOML: {exc}") from exc
    if b"api_key" in text and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print(f"stagebus: others can read the key in {path}: chmod 600 {path}", file=sys.stderr)  # noqa: T201
    return content


def _section(content: dict[str, Any], profile: str | None) -> dict[str, str]:
    section = content if profile is None else content.get("profiles", {}).get(profile)
    if not isinstance(section, dict):
        raise Misused(f"{config_path()} has no profile {profile!r}")
    unknown = set(section) - _KNOWN - ({"profiles"} if profile is None else set())
    wrong = [name for name in _KNOWN if not isinstance(section.get(name, ""), str)]
    if unknown or wrong:
        raise Misused(f"{config_path()}: {', '.join(sorted([*unknown, *wrong]))}: it has `url` and `api_key`, as texts")
    return {name: section[name] for name in _KNOWN if name in section}
