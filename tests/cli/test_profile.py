"""The choice of gateway and key; a key is sent only to its own gateway."""

from pathlib import Path

import pytest

from stagebus.cli.exit_codes import UsageError
from stagebus.cli.profile import Target, config_path, find_target

FILE = """
url = "https://prod.example/"
api_key = "sbk_prod"

[profiles.staging]
url = "https://staging.example"
api_key = "sbk_staging"

[profiles.bare]
url = "https://bare.example"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file that only its owner can read."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "stagebus" / "config.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def test_default_gateway_is_local(config: Path) -> None:
    config.unlink()

    assert find_target(None, None) == Target("http://127.0.0.1:8000", "")


def test_config_path_follows_xdg_then_home(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_path() == config
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/somebody")
    assert config_path() == Path("/somebody/.config/stagebus/config.toml")


def test_option_overrides_environment_overrides_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_target(None, None) == Target("https://prod.example", "sbk_prod")
    assert find_target(None, "staging") == Target("https://staging.example", "sbk_staging")
    monkeypatch.setenv("STAGEBUS_API_KEY", "sbk_env")
    assert find_target(None, None) == Target("https://prod.example", "sbk_env")
    monkeypatch.setenv("STAGEBUS_URL", "https://env.example")
    assert find_target(None, None) == Target("https://env.example", "sbk_env")
    assert find_target("https://option.example/", None) == Target("https://option.example", "sbk_env")
    monkeypatch.setenv("STAGEBUS_PROFILE", "staging")
    assert find_target(None, None) == Target("https://staging.example", "sbk_staging")


def test_user_comes_from_the_option_the_environment_and_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('user = "ada"\n[profiles.staging]\nuser = "bob"\nurl = "https://staging.example"')
    assert find_target(None, None).user == "ada"
    assert find_target("https://other.example", None).user == "", "it belongs to the url beside it"
    monkeypatch.setenv("STAGEBUS_USER", "eve")
    assert [find_target(None, None).user, find_target(None, "staging").user] == ["eve", "bob"]
    assert find_target(None, "staging", "kim").user == "kim"


def test_key_of_the_file_is_sent_only_to_its_url(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_target("https://other.example", None) == Target("https://other.example", "")
    assert find_target("https://prod.example", "staging") == Target("https://prod.example", "")
    assert find_target("https://prod.example", None) == Target("https://prod.example", "sbk_prod")
    monkeypatch.setenv("STAGEBUS_API_KEY", "sbk_env")
    assert find_target(None, "bare") == Target("https://bare.example", "")
    monkeypatch.setenv("STAGEBUS_API_KEY", "")
    monkeypatch.setenv("STAGEBUS_URL", "https://env.example")
    assert find_target(None, None) == Target("https://env.example", "")


@pytest.mark.parametrize(
    ("text", "profile", "said"),
    [
        (FILE, "none", "no profile 'none'"),
        ("url = ", None, "is not valid TOML"),
        ('url = "ftp://x"', None, "must begin with http"),
        ("url = 7", None, "as strings"),
        ('key = "sbk_x"', None, "key: only `url`, `api_key` and `user`"),
    ],
)
def test_invalid_config_raises_usage_error(config: Path, text: str, profile: str | None, said: str) -> None:
    config.write_text(text)

    with pytest.raises(UsageError, match=said):
        find_target(None, profile)


def test_readable_key_file_prints_a_warning(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_target(None, None)
    assert capsys.readouterr().err == ""
    config.chmod(0o640)
    find_target(None, None)

    assert f"chmod 600 {config}" in capsys.readouterr().err
