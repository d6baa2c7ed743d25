"""`stagebus keys`, as an operator types it."""

import json
import re

import pytest
from typer.testing import CliRunner

from stagebus.cli.key_commands import keys_app, parse_duration, parse_scopes
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.errors import InvalidRequest

KEY = re.compile(r"sbk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@pytest.fixture
def type_in(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    """Runs a command; its exit code, stdout and stderr."""
    monkeypatch.setenv("STAGEBUS_REDIS_URL", redis_url)
    monkeypatch.setattr("stagebus.cli.key_commands.configure", lambda _level: None)  # pytest's handlers stay

    def run(*args: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(keys_app, args)
        return result.exit_code, result.stdout, f"{result.stderr}{result.exception or ''}"

    return run


def test_key_is_shown_once_then_listed_then_revoked(type_in, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "stagebus.audit")
    code, out, err = type_in(
        "create", "--tenant", "acme-9", "--scopes", "runs:read", "--expires", "90d", "--name", "ci"
    )
    key = out.strip()
    key_id = KEY.fullmatch(key)[1]

    assert code == 0
    assert "shown once" in err
    _, listed, _ = type_in("list", "--tenant", "acme-9")
    assert re.fullmatch(rf"{key_id}  acme-9  runs:read  \d{{4}}-\S+  never used  ci\n", listed)
    assert type_in("list", "--tenant", "nobody")[1] == ""
    assert type_in("revoke", f"sbk_{key_id}")[1].startswith(f"{key_id} is revoked")
    assert type_in("list", "--tenant", "acme-9")[1] == ""
    assert "no such key" in type_in("revoke", key_id)[2]
    assert [record.message for record in caplog.records] == ["key.create", "key.revoke"]
    assert {record.fields["key"] for record in caplog.records} == {key_id}
    assert key.rpartition("_")[2] not in json.dumps([record.fields for record in caplog.records])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", "--tenant", "a:b"), "a tenant's name"),
        (("create", "--scopes", "runs:write,root"), "unknown scope root"),
        (("create", "--expires", "soon"), "90d, 12h"),
        (("create", "--name", "a\nb"), "printable"),
        (("revoke", "*"), "no such key"),
    ],
)
def test_mistakes_are_told(type_in, args: tuple[str, ...], said: str) -> None:
    code, out, err = type_in(*args)

    assert code != 0
    assert said in err
    assert out == ""


def test_times_and_scopes() -> None:
    assert [parse_duration(text) for text in ("", "45s", "30m", "12h", "90d")] == [None, 45, 1800, 43200, 7776000]
    assert parse_scopes("runs:read, admin") == {Scope.RUNS_READ, Scope.ADMIN}
    for text in ("0d", "1w", "-1d", "1.5h", "d"):
        with pytest.raises(InvalidRequest):
            parse_duration(text)
