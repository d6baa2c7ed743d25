"""Finds the gateway that the command talks to, and the API key for it.

    # ~/.config/stagebus/config.toml
    url = "https://stagebus.example"
    api_key = "sbk_…"

    [profiles.staging]
    url = "https://staging.example"
    api_key = "sbk_…"
    user = "alice"        # for a key that acts for users

An option overrides the environment, which overrides the file. A profile that is named
explicitly overrides the environment. A key from the file is sent only to the url beside it.
"""

import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from stagebus.cli.exit_codes import UsageError
from stagebus.client.api_requests import URL_DEFAULT
from stagebus.shared.observability.redaction import remember

_KNOWN = {"url", "api_key", "user"}


class Target(NamedTuple):
    """A gateway's address, its API key, and the user for whom requests are made; empty means none."""

    url: str
    api_key: str
    user: str = ""


def find_target(url: str | None, profile: str | None, user: str | None = None) -> Target:
    """Resolve options, environment and file to one gateway.

    Raises:
        UsageError: the file is invalid or has no such profile, or the url is not an http url.
    """
    profile = profile or os.environ.get("STAGEBUS_PROFILE") or None
    section = _section(_read(config_path()), profile)
    env_url, env_key = os.environ.get("STAGEBUS_URL"), os.environ.get("STAGEBUS_API_KEY", "")
    env_user = os.environ.get("STAGEBUS_USER", "")
    if profile is not None:
        env_url, env_key, env_user = None, "", ""
    file_url = section.get("url", URL_DEFAULT)
    found = _without_slash(url or env_url or file_url)
    if not found.startswith(("http://", "https://")):
        raise UsageError(f"the gateway's url must begin with http:// or https://, unlike {found!r}")
    section = section if found == _without_slash(file_url) else {}
    key = env_key or section.get("api_key", "")
    remember(key.strip())
    return Target(found, key, user or env_user or section.get("user", ""))


def config_path() -> Path:
    """Return the path of the configuration file, which may not exist."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return Path(home or Path.home() / ".config") / "stagebus" / "config.toml"


def _without_slash(url: str) -> str:
    return url.rstrip("/")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        content = tomllib.loads(text.decode())
    except ValueError as exc:
        raise UsageError(f"{path} is not valid TOML: {exc}") from exc
    if b"api_key" in text and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print(f"stagebus: other users can read the key in {path}: chmod 600 {path}", file=sys.stderr)  # noqa: T201
    return content


def _section(content: dict[str, Any], profile: str | None) -> dict[str, str]:
    profiles = content.get("profiles", {})
    section = content if profile is None else profiles.get(profile) if isinstance(profiles, dict) else None
    if not isinstance(section, dict):
        raise UsageError(f"{config_path()} has no profile {profile!r}")
    unknown = set(section) - _KNOWN - ({"profiles"} if profile is None else set())
    wrong = [name for name in _KNOWN if not isinstance(section.get(name, ""), str)]
    if unknown or wrong:
        raise UsageError(
            f"{config_path()}: {', '.join(sorted([*unknown, *wrong]))}: only `url`, `api_key` and `user` are allowed, as strings"
        )
    return {name: section[name] for name in _KNOWN if name in section}
