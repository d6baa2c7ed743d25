"""The compose file for production, checked without a container engine."""

import json
import re
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from stagebus.cli.main import app
from stagebus.shared.config.settings import Settings
from tests.support.system import ROOT

FOLDER = ROOT / "deploy" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.production.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OWN = ("gateway", "worker", "operator")
# Files that the operator writes; docs/deploy.md says how.
OPERATORS = {"./providers.toml", "./tools", "./users.acl", "./provider_key"}
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?+]([^}]*))?\}")


def env_of(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name]["environment"].items()}


def test_file_matches_the_schema_of_compose() -> None:
    jsonschema.validate(COMPOSE, json.loads((ROOT / "tests" / "compose.schema.json").read_text()))


def test_only_the_proxy_is_reachable() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert "--insecure" not in str(COMPOSE)
    assert env_of("gateway")["STAGEBUS_AUTH"] == "keys"


@pytest.mark.parametrize("name", OWN)
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", OWN)
def test_service_command_and_environment_are_stagebus_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, *args = SERVICES[name]["command"]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    group = commands[command]
    (group.commands[args[0]] if name == "operator" else group).make_context(command, list(args[name == "operator" :]))
    examples = {"STAGEBUS_SECRET": "s" * 32, "STAGEBUS_HOST": "bus.example"}
    for variable, value in env_of(name).items():
        assert variable.removeprefix("STAGEBUS_").lower() in Settings.model_fields
        monkeypatch.setenv(variable, VARIABLE.sub(lambda m: examples.get(m[1], (m[2] or "x").replace(" ", "")), value))

    Settings()


def test_required_variables_are_in_the_example_and_no_secret_has_a_default() -> None:
    text = (FOLDER / "docker-compose.production.yml").read_text()
    example = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / "example.env").read_text(), re.MULTILINE))
    required = set(re.findall(r"\$\{(\w+):\?", text))

    assert required <= set(example)
    assert {name for name in example if "PASSWORD" in name or "SECRET" in name} == {
        name for name, value in example.items() if not value and name not in ("STAGEBUS_TOOLS", "WEBHOOKS_FILE")
    }
    assert {"STAGEBUS_SECRET", "REDIS_GATEWAY_PASSWORD", "REDIS_WORKER_PASSWORD"} <= required


def test_redis_users_are_those_of_the_acl_file() -> None:
    acl = (ROOT / "docker" / "redis-users.acl").read_text()
    for name in OWN:
        user = env_of(name)["STAGEBUS_REDIS_URL"].split("//")[1].split(":")[0]
        assert user == name
        assert f"user {user} on" in acl
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")


def test_services_that_work_have_health_checks_and_time_to_drain() -> None:
    settings = Settings()
    grace_s = {name: int(SERVICES[name]["stop_grace_period"][:-1]) for name in ("gateway", "worker")}

    assert grace_s["gateway"] >= int(env_of("gateway")["STAGEBUS_DRAIN_DELAY_S"]) + settings.drain_spread_s + 5
    assert grace_s["worker"] >= settings.drain_grace_s + 5
    assert {name for name, service in SERVICES.items() if "healthcheck" in service} == {"gateway", "worker", "valkey"}
    assert env_of("worker")["STAGEBUS_WORKER_METRICS_PORT"] in SERVICES["worker"]["healthcheck"]["test"][-1]


def test_mounted_files_exist_or_are_the_operator_s() -> None:
    sources = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    sources |= {secret["file"] for secret in COMPOSE["secrets"].values()}
    for source in {one for one in sources if one.startswith("./")}:
        assert source in OPERATORS or (FOLDER / source).is_file(), source
    for name in ("gateway", "worker"):
        volumes = SERVICES[name]["volumes"]
        assert "${WEBHOOKS_FILE:-/dev/null}:/etc/stagebus/webhooks.toml:ro" in volumes, "named only if there is one"
        assert env_of(name)["STAGEBUS_WEBHOOKS"] == "${WEBHOOKS_FILE:+/etc/stagebus/webhooks.toml}"
    assert re.match(r"^[a-z0-9./-]+:\d+\.\d+\.\d+", SERVICES["valkey"]["image"])


def test_proxy_differs_from_the_demo_s_in_tls_and_names_alone() -> None:
    demo = (ROOT / "docker" / "nginx.conf").read_text().splitlines()
    mine = (FOLDER / "nginx.conf").read_text().splitlines()
    added = {line.strip().split(" ")[0] for line in mine if line not in demo and not line.strip().startswith("#")}
    removed = {line.strip().split(" ")[0] for line in demo if line not in mine and not line.strip().startswith("#")}

    assert added == {
        "listen", "http2", "server_name", "ssl_certificate", "ssl_certificate_key", "ssl_protocols", "add_header",
    }  # fmt: skip
    assert removed == {"listen", "server_name", "return"}
