"""docker-compose.yml, the Dockerfile and nginx.conf, checked without a container engine."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from stagebus.cli.main import app
from stagebus.gateway.endpoint_table import ENDPOINTS
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


def test_compose_file_matches_its_schema() -> None:
    schema = json.loads((ROOT / "tests" / "compose.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)

    jsonschema.validate(COMPOSE, schema)


def test_compose_file_has_all_services() -> None:
    assert set(SERVICES) == {"proxy", "gateway", "worker", "demo-model", "valkey"}
    assert SERVICES["gateway"]["deploy"]["replicas"] == 2
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


@pytest.mark.parametrize("image", sorted({service["image"] for service in SERVICES.values()}))
def test_images_are_pinned(image: str) -> None:
    assert PINNED.match(image)


def test_services_refer_to_existing_services_and_files() -> None:
    for name, service in SERVICES.items():
        for dependency, wanted in service.get("depends_on", {}).items():
            assert dependency in SERVICES, name
            assert wanted["condition"] != "service_healthy" or "healthcheck" in SERVICES[dependency]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OWN)
def test_service_command_is_a_stagebus_command(name: str) -> None:
    command, *args = OWN[name]["command"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    commands[command].make_context(command, list(args))


@pytest.mark.parametrize("name", OWN)
def test_service_environment_is_valid_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {f"STAGEBUS_{field.upper()}" for field in Settings.model_fields} | SHARED_VARIABLES
    for variable, value in OWN[name]["environment"].items():
        assert variable in fields
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value)))

    settings = Settings()
    assert settings.openai_base_url == "http://demo-model:8001/v1"
    assert settings.tools == ()


def test_valkey_is_durable_and_never_evicts() -> None:
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert SERVICES["valkey"]["volumes"]


def test_stop_grace_period_covers_the_drain() -> None:
    settings = Settings()

    assert seconds(SERVICES["worker"]) >= settings.drain_grace_s + 5
    assert seconds(SERVICES["gateway"]) >= settings.drain_delay_s + settings.drain_spread_s + 5


def seconds(service: dict[str, Any]) -> int:
    return int(service["stop_grace_period"].removesuffix("s"))


def test_image_is_pinned_and_runs_without_root() -> None:
    bases = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)

    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}
    assert bases
    assert all(re.match(r"^python:3\.11\.\d+-slim-\w+$", base) for base in bases)
    assert users
    assert users[-1] not in ("root", "0")
    assert "--require-hashes --no-deps --only-binary :all:" in DOCKERFILE
    assert "--no-index --no-deps --no-build-isolation" in DOCKERFILE, "the package's build fetches nothing"
    assert 'ENTRYPOINT ["stagebus"]' in DOCKERFILE


def test_image_says_what_it_is() -> None:
    labels = dict(re.findall(r"org\.opencontainers\.image\.([\w.]+)=\"([^\"]*)\"", DOCKERFILE))
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]

    assert f"ARG VERSION={project['version']}\n" in DOCKERFILE
    assert labels["licenses"] == project["license"]
    assert {"title", "description", "version", "revision", "base.name"} <= set(labels)


def test_dockerignore_admits_the_files_that_the_build_copies() -> None:
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+)", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    ]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()

    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_in


def directives(text: str) -> dict[str, list[str]]:
    """Returns the directives of nginx.conf by name, from all blocks."""
    found: dict[str, list[str]] = {}
    for statement in re.split(r"[;{}]\s*\n", re.sub(r"(?m)^\s*#.*$", "", text)):
        name, _, value = statement.strip().partition(" ")
        found.setdefault(name, []).append(" ".join(value.split()))
    return found


def test_proxy_does_not_buffer_streams() -> None:
    found = directives(NGINX.read_text())

    assert found["proxy_buffering"] == ["off"]
    assert found["gzip"] == ["off"]
    assert found["proxy_http_version"] == ["1.1"]
    assert 'Connection ""' in found["proxy_set_header"]
    assert found["proxy_ignore_client_abort"] == ["off"]
    assert int(found["proxy_read_timeout"][0].removesuffix("s")) >= 3 * Settings().ping_s
    assert int(found["proxy_read_timeout"][1].removesuffix("s")) > Settings().run_timeout_s, "an answer at a run's end"
    # This directive could disable X-Accel-Buffering.
    assert "proxy_ignore_headers" not in found


def test_proxy_logs_no_query_and_no_referrer() -> None:
    """Either may contain a ticket."""
    found = directives(NGINX.read_text())
    (log_format,) = found["log_format"]
    named = set(re.findall(r"\$(\w+)", log_format))

    assert "uri" in named
    assert not named & {"request", "request_uri", "args", "query_string", "is_args", "http_referer", "http_cookie"}
    assert found["access_log"] == [f"/dev/stdout {log_format.split()[0]}"]


def test_proxy_retries_get_but_never_post() -> None:
    found = directives(NGINX.read_text())

    assert found["proxy_next_upstream"] == ["error timeout"]
    assert "non_idempotent" not in NGINX.read_text()


def test_proxy_errors_make_an_eventsource_reconnect() -> None:
    found = directives(NGINX.read_text())

    assert found["error_page"] == ["502 504 =200 @ask_again"]
    assert r'200 "retry: 1000\n\n"' in found["return"]


def test_proxy_knows_the_paths_of_all_streams() -> None:
    """nginx compares the decoded path, in which a thread's id may have a slash. It passes on the path as it came."""
    (location,) = re.findall(r"location ~ (\S*events\S*) \{", NGINX.read_text())
    streams = {path for path, is_stream in _example_paths() if is_stream}

    assert {"/runs/events", "/threads/a/b/events"} < streams
    assert {path for path, _ in _example_paths() if re.search(location, path)} == streams


def _example_paths() -> list[tuple[str, bool]]:
    """Returns a path of each endpoint, and whether it has an event stream."""
    paths = [(re.sub(r"\{thread_id\}", "a/b", one.path), one.is_stream) for one in ENDPOINTS]
    return [(re.sub(r"\{[^}]*\}", "x", path), is_stream) for path, is_stream in paths]


def test_proxy_and_gateways_answer_only_under_names_of_this_machine() -> None:
    """A gateway with `--insecure` trusts the proxy, and a browser's page may have any name that resolves to it."""
    found = directives(NGINX.read_text())
    names = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", SERVICES["gateway"]["environment"]["STAGEBUS_ALLOWED_HOSTS"])

    assert found["listen"][0].endswith(" default_server")
    assert found["return"][0] == "421"
    assert found["server_name"] == ["localhost 127.0.0.1 [::1]"]
    assert names == "localhost,127.0.0.1"


def test_proxy_and_services_agree_on_ports() -> None:
    found = directives(NGINX.read_text())
    command = SERVICES["gateway"]["command"]

    assert SERVICES["proxy"]["ports"][0].endswith(f":{found['listen'][1]}")
    assert found["server"][0].startswith(f"gateway:{command[command.index('--port') + 1]} resolve")


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx")
    if nginx is None or version(nginx) < NGINX_WITH_RESOLVE:
        pytest.skip("nginx 1.27.3 or later is missing; it supports `server … resolve`")
    subprocess.run([nginx, "-t", "-p", tmp_path, "-c", NGINX, "-g", f"pid {tmp_path}/pid;"], check=True)


def version(nginx: str) -> tuple[int, ...]:
    output = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True).stderr
    return tuple(int(part) for part in re.findall(r"\d+", output)[:3])
