"""The commands of `stagebus keys`."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stagebus.cli.durations import parse_duration
from stagebus.cli.key_commands import keys_app, parse_scopes
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.local.running_system import published
from tests.support.audit_records import audit_records

KEY = re.compile(r"sbk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@pytest.fixture
def invoke(redis_url: str, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a command and returns its exit code, stdout and stderr."""
    monkeypatch.setenv("STAGEBUS_REDIS_URL", redis_url)
    monkeypatch.setattr("stagebus.cli.operator_access.configure", lambda _level: None)  # keeps pytest's log handlers

    def run(*args: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(keys_app, args)
        return result.exit_code, result.stdout, f"{result.stderr}{result.exception or ''}"

    return run


def test_key_is_shown_once_then_listed_then_revoked(invoke, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "stagebus.audit")
    code, out, err = invoke("create", "--tenant", "acme-9", "--scopes", "runs:read", "--expires", "90d", "--name", "ci")
    key = out.strip()
    key_id = KEY.fullmatch(key)[1]

    assert code == 0
    assert "shown once" in err
    _, listed, _ = invoke("list", "--tenant", "acme-9")
    assert re.fullmatch(rf"{key_id}  acme-9  runs:read  \d{{4}}-\S+  never used  ci\n", listed)
    assert invoke("list", "--tenant", "nobody")[1] == ""
    assert invoke("revoke", f"sbk_{key_id}")[1].startswith(f"{key_id} is revoked")
    assert invoke("list", "--tenant", "acme-9")[1] == ""
    assert "no such key" in invoke("revoke", key_id)[2]
    assert [record.message for record in audit_records(caplog)] == ["key.create", "key.revoke"]
    assert {record.fields["key"] for record in audit_records(caplog)} == {key_id}
    assert key.split("_", 2)[2] not in json.dumps([record.fields for record in caplog.records])


def test_key_for_own_runs_can_name_users(invoke) -> None:
    assert invoke("create", "--tenant", "acme-8", "--scopes", "runs:own,on_behalf")[0] == 0
    assert "on_behalf,runs:own" in invoke("list", "--tenant", "acme-8")[1]
    code, _, said = invoke("create", "--scopes", "runs:own")
    assert code == 2
    assert "runs:own needs on_behalf" in said


def test_keys_of_a_running_system_are_found_in_its_folder(
    invoke, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STAGEBUS_REDIS_URL")
    monkeypatch.setenv("STAGEBUS_DATA_DIR", str(tmp_path))
    with published(tmp_path, {"STAGEBUS_REDIS_URL": redis_url}):
        assert invoke("create", "--tenant", "found")[0] == 0
        assert "found" in invoke("list", "--tenant", "found")[1]
        monkeypatch.setenv("STAGEBUS_REDIS_URL", "redis://127.0.0.1:1")
        code, _, said = invoke("list")

    assert code == 1, "the environment comes first"
    assert "running `stagebus up`" in said


def test_env_file_is_read_and_the_environment_overrides_it(
    invoke, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAGEBUS_REDIS_URL")
    (tmp_path / ".env").write_text(f"# the operator's\nexport STAGEBUS_REDIS_URL='{redis_url}'\n")
    assert invoke("list")[0] == 0

    monkeypatch.setenv("STAGEBUS_REDIS_URL", "redis://127.0.0.1:1")
    assert invoke("list")[0] == 1
    (tmp_path / ".env").write_bytes(b"A=\xff")
    assert ".env cannot be read" in invoke("list")[2]


@pytest.mark.parametrize(
    ("args", "exit_code", "said"),
    [
        (("create", "--tenant", "a:b"), 2, "a tenant's name"),
        (("create", "--scopes", "runs:write,root"), 2, "unknown scope root"),
        (("create", "--expires", "soon"), 2, "90d, 12h"),
        (("create", "--name", "a\nb"), 2, "printable"),
        (("revoke", "*"), 1, "no such key"),
    ],
)
def test_invalid_arguments_are_reported(invoke, args: tuple[str, ...], exit_code: int, said: str) -> None:
    code, out, err = invoke(*args)

    assert code == exit_code
    assert said in err
    assert out == ""


def test_unreachable_redis_is_reported_with_its_setting(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEBUS_REDIS_URL", "redis://127.0.0.1:1/0")

    code, _, err = invoke("list")

    assert code == 1
    assert "STAGEBUS_REDIS_URL" in err


def test_durations_and_scopes_are_parsed() -> None:
    assert [parse_duration(text) for text in ("", "45s", "30m", "12h", "90d")] == [None, 45, 1800, 43200, 7776000]
    assert parse_scopes("runs:read, admin") == {Scope.RUNS_READ, Scope.ADMIN}
    for text in ("0d", "1w", "-1d", "1.5h", "d"):
        with pytest.raises(typer.BadParameter):
            parse_duration(text)
