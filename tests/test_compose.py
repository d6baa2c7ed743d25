"""docker-compose.yml, the Dockerfile and nginx.conf, as far as they can be checked without an engine."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from stagebus.cli.main import app
from stagebus.shared.config.settings import Settings

ROOT = Path(__file__).parent.parent
OWN_IMAGE = "stagebus:"
# A tag that names one release: three numbers, then at most the variant.
PINNED = re.compile(r"^[a-z0-9./-]+:\d+\.\d+\.\d+(-[a-z0-9.]+)*$")
SHARED_VARIABLES = {"OPENAI_BASE_URL", "OPENAI_API_KEY"}
NGINX_WITH_RESOLVE = (1, 27, 3)

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OWN = {name: service for name, service in SERVICES.items() if service["image"].startswith(OWN_IMAGE)}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NGINX = ROOT / "docker" / "nginx.conf"


def test_file_holds_by_the_schema() -> None:
    schema = json.loads((ROOT / "tests" / "compose.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    jsonschema.validate(COMPOSE, schema)


def test_system_has_all_its_parts() -> None:
    assert set(SERVICES) == {"proxy", "gateway", "worker", "demo-model", "valkey"}
    assert SERVICES["gateway"]["deploy"]["replicas"] == 2
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


@pytest.mark.parametrize("image", sorted({service["image"] for service in SERVICES.values()}))
def test_images_are_pinned(image: str) -> None:
    assert PINNED.match(image)


def test_what_services_refer_to_is_there() -> None:
    for name, service in SERVICES.items():
        for dependency, wanted in service.get("depends_on", {}).items():
            assert dependency in SERVICES, name
            assert wanted["condition"] != "service_healthy" or "healthcheck" in SERVICES[dependency]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OWN)
def test_command_is_one_of_ours(name: str) -> None:
    command, *args = OWN[name]["command"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    commands[command].make_context(command, list(args))


@pytest.mark.parametrize("name", OWN)
def test_settings_exist_and_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {f"STAGEBUS_{field.upper()}" for field in Settings.model_fields} | SHARED_VARIABLES
    for variable, value in OWN[name]["environment"].items():
        assert variable in fields
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)))

    settings = Settings()
    assert settings.openai_base_url == "http://demo-model:8001/v1"
    assert settings.tools == ()


def test_valkey_keeps_what_it_is_given() -> None:
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert SERVICES["valkey"]["volumes"]


def test_processes_get_the_time_that_their_drain_takes() -> None:
    settings = Settings()

    assert seconds(SERVICES["worker"]) >= settings.drain_grace_s + 5
    assert seconds(SERVICES["gateway"]) >= settings.drain_delay_s + settings.drain_spread_s + 5


def seconds(service: dict[str, Any]) -> int:
    return int(service["stop_grace_period"].removesuffix("s"))


def test_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)

    assert bases
    assert all(re.match(r"^python:3\.11\.\d+-slim-\w+$", base) for base in bases)
    assert users
    assert users[-1] not in ("root", "0")
    assert "-c constraints.txt" in DOCKERFILE
    assert 'ENTRYPOINT ["stagebus"]' in DOCKERFILE


def test_image_gets_what_its_build_copies() -> None:
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()

    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_in


def directives(text: str) -> dict[str, list[str]]:
    """What nginx.conf says, by name, whatever block it stands in."""
    found: dict[str, list[str]] = {}
    for statement in re.split(r"[;{}]\s*\n", re.sub(r"(?m)^\s*#.*$", "", text)):
        name, _, value = statement.strip().partition(" ")
        found.setdefault(name, []).append(" ".join(value.split()))
    return found


def test_proxy_passes_streams_on_as_they_come() -> None:
    said = directives(NGINX.read_text())

    assert said["proxy_buffering"] == ["off"]
    assert said["gzip"] == ["off"]
    assert said["proxy_http_version"] == ["1.1"]
    assert 'Connection ""' in said["proxy_set_header"]
    assert said["proxy_ignore_client_abort"] == ["off"]
    assert int(said["proxy_read_timeout"][0].removesuffix("s")) >= 3 * Settings().ping_s
    # X-Accel-Buffering is honoured unless it is listed here.
    assert "proxy_ignore_headers" not in said


def test_proxy_repeats_a_get_and_never_a_post() -> None:
    said = directives(NGINX.read_text())

    assert said["proxy_next_upstream"] == ["error timeout"]
    assert "non_idempotent" not in NGINX.read_text()


def test_event_source_never_sees_the_proxy_s_own_errors() -> None:
    said = directives(NGINX.read_text())

    assert said["error_page"] == ["502 504 =200 @ask_again"]
    assert said["return"] == [r'200 "retry: 1000\n\n"']


def test_proxy_and_services_agree_on_ports() -> None:
    said = directives(NGINX.read_text())
    command = SERVICES["gateway"]["command"]

    assert SERVICES["proxy"]["ports"][0].endswith(f":{said['listen'][0]}")
    assert said["server"][0].startswith(f"gateway:{command[command.index('--port') + 1]} resolve")


def test_nginx_takes_the_file(tmp_path: Path) -> None:
    nginx = shutil.which("nginx")
    if nginx is None or version(nginx) < NGINX_WITH_RESOLVE:
        pytest.skip("there is no nginx here that knows `server … resolve` (1.27.3)")
    subprocess.run([nginx, "-t", "-p", tmp_path, "-c", NGINX, "-g", f"pid {tmp_path}/pid;"], check=True)


def version(nginx: str) -> tuple[int, ...]:
    said = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
    return tuple(int(part) for part in re.findall(r"\d+", said)[:3])
