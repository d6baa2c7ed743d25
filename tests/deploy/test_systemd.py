"""The systemd units: systemd accepts them, they are confined, and they start commands that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from stagebus.cli.main import app
from stagebus.shared.config.settings import Settings
from stagebus.worker.worker_app import FLUSH_S
from tests.support.shell import need
from tests.support.system import ROOT

UNITS = ROOT / "deploy" / "systemd"
TEMPLATES = {"stagebus-gateway@.service": "8001", "stagebus-worker@.service": "9101"}
# systemd's own measure of what a service could do, from 0 to 100.
EXPOSURE_MAX = 20


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units with an instance's name and the path of this installation, since systemd looks for the program."""
    program = Path(sys.executable).parent / "stagebus"
    for path in UNITS.iterdir():
        name = path.name.replace("@.", f"@{TEMPLATES.get(path.name, '')}.")
        (tmp_path / name).write_text(path.read_text().replace("/opt/stagebus/bin/stagebus", str(program)))
    return sorted(tmp_path.glob("*.service"))


def text(name: str) -> str:
    return (UNITS / name).read_text()


def value(name: str, directive: str) -> str:
    (found,) = re.findall(rf"^{directive}=(.*)$", text(name), re.MULTILINE)
    return str(found)


def test_systemd_accepts_the_units(installed: list[Path]) -> None:
    need("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, installed), str(installed[0].parent / "stagebus.target")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_services_are_confined(installed: list[Path]) -> None:
    need("systemd-analyze")
    for unit in installed:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(unit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize(("name", "instance"), TEMPLATES.items())
def test_services_start_commands_that_exist(name: str, instance: str) -> None:
    _, command, *args = value(name, "ExecStart").replace("%i", instance).split()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    commands[command].make_context(command, list(args))


def test_services_are_stopped_gently() -> None:
    settings = Settings()
    gateway, worker = (float(value(name, "TimeoutStopSec")) for name in TEMPLATES)

    assert gateway > settings.drain_delay_s + settings.drain_spread_s + 10
    assert worker > settings.drain_grace_s + FLUSH_S + 10
    assert {value(name, "KillSignal") for name in TEMPLATES} == {"SIGTERM"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_services_run_without_root_and_without_secrets_in_the_unit(name: str) -> None:
    assert value(name, "User") not in ("root", "0")
    assert value(name, "ProtectSystem") == "strict"
    named = re.findall(r"^Environment=(\w+)=", text(name), re.MULTILINE)
    assert {
        variable for variable in named if variable.removeprefix("STAGEBUS_").lower() in Settings.model_fields
    } == set(named)
    assert "SECRET" not in text(name)
