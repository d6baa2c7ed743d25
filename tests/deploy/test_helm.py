"""The Helm chart: what `helm template` renders is valid for Kubernetes, and obeys the project's policies."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.settings import Settings
from stagebus.worker.worker_app import FLUSH_S
from tests.shared.config.test_webhooks_file import load as load_webhooks
from tests.support.needs import skip_or_fail
from tests.support.system import ROOT

CHART = ROOT / "deploy" / "helm" / "stagebus"
VALUES = [None, *sorted((CHART / "ci").glob("*.yaml"))]
# The oldest and the newest supported version of Kubernetes.
KUBERNETES = ("1.27.0", "1.37.0")
# These are not part of Kubernetes itself, so its schemas do not cover them; tests/deploy/crds has theirs.
CUSTOM = {
    "ScaledObject": "keda.sh/v1alpha1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}
Resource = dict[str, Any]


@cache
def helm() -> str:
    """Returns the path of helm, which `make test` installs beside Python."""
    found = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
    if found is None:
        skip_or_fail("helm")
    assert found is not None
    return found


def run_helm(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *args], capture_output=True, text=True, check=False)


@cache
def rendered(values: Path | None) -> tuple[Resource, ...]:
    done = run_helm("template", "sb", str(CHART), "--namespace", "ai", *(["-f", str(values)] if values else []))
    assert done.returncode == 0, done.stderr
    return tuple(resource for resource in yaml.safe_load_all(done.stdout) if resource)


def of_kind(kind: str, values: Path | None = None) -> dict[str, Resource]:
    return {one["metadata"]["name"]: one for one in rendered(values) if one["kind"] == kind}


def pods(values: Path | None) -> Iterator[tuple[str, Resource]]:
    for name, deployment in of_kind("Deployment", values).items():
        yield name, deployment["spec"]["template"]["spec"]


def containers(values: Path | None) -> Iterator[tuple[str, Resource]]:
    for name, pod in pods(values):
        yield from ((name, container) for container in pod["containers"])


each_values = pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem if path else "default")


def test_helm_accepts_the_chart() -> None:
    done = run_helm("lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout


@each_values
def test_rendered_resources_fit_the_schemas_of_kubernetes(values: Path | None) -> None:
    """Strictly: an unknown field is an error."""
    validate = pytest.importorskip("kubernetes_validate").validate
    for resource in rendered(values):
        if resource["kind"] in CUSTOM:
            assert resource["apiVersion"] == CUSTOM[resource["kind"]]
            continue
        for version in KUBERNETES if values else KUBERNETES[-1:]:
            validate(resource, version, strict=True)


def test_custom_resources_fit_the_schemas_of_their_operators() -> None:
    folder = ROOT / "tests" / "deploy" / "crds"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        skip_or_fail("node, or tests/deploy/crds/node_modules, which `make test` installs,")
    custom = [resource for resource in rendered(CHART / "ci" / "keda.yaml") if resource["kind"] in CUSTOM]
    wrong = [{**custom[0], "spec": {}}]

    def refusals(resources: list[Resource]) -> str:
        return subprocess.run(
            ["node", "validate.mjs"], cwd=folder, input=json.dumps(resources), capture_output=True, text=True, check=True
        ).stdout  # fmt: skip

    assert {resource["kind"] for resource in custom} == set(CUSTOM)
    assert refusals(custom) == ""
    assert refusals(wrong) != ""


def test_files_of_the_example_values_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_WEBHOOK_SECRET", "whsec_" + "a" * 32)
    files = of_kind("ConfigMap", CHART / "ci" / "keda.yaml")["sb-files"]["data"]

    assert ProvidersFile.model_validate(tomllib.loads(files["providers.toml"])).providers.keys() == {"openai"}
    assert tomllib.loads(files["tools.toml"])["mcp"]["search"]["url"]
    assert load_webhooks(tmp_path, files["webhooks.toml"]).endpoints.keys() == {"billing"}
    for _, container in containers(CHART / "ci" / "keda.yaml"):
        assert {"name": "STAGEBUS_WEBHOOKS", "value": "/etc/stagebus/webhooks.toml"} in container["env"]


def test_example_values_render_every_template() -> None:
    kinds = {resource["kind"] for values in VALUES for resource in rendered(values)}

    assert kinds == {
        *CUSTOM, "Deployment", "Service", "ServiceAccount", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy",
        "HorizontalPodAutoscaler",
    }  # fmt: skip


POLICIES: dict[str, Callable[[Resource], bool]] = {
    "runs as a user other than root": lambda c: c["securityContext"]["runAsNonRoot"] is True,
    "root file system is read-only": lambda c: c["securityContext"]["readOnlyRootFilesystem"] is True,
    "no new privileges": lambda c: c["securityContext"]["allowPrivilegeEscalation"] is False,
    "no capabilities": lambda c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "memory is limited": lambda c: bool(c["resources"]["limits"]["memory"]),
    "resources are requested": lambda c: {"cpu", "memory"} <= set(c["resources"]["requests"]),
    "probes": lambda c: {"startupProbe", "livenessProbe", "readinessProbe"} <= set(c),
    "a version of the image": lambda c: not c["image"].endswith(":latest") and (":" in c["image"]),
    "no plain secret": lambda c: (
        not [
            e
            for e in c["env"]
            if "value" in e and e["name"] in ("STAGEBUS_SECRET", "STAGEBUS_REDIS_URL", "OPENAI_API_KEY")
        ]
    ),
}


@each_values
@pytest.mark.parametrize("policy", POLICIES)
def test_containers_obey_the_policy(values: Path | None, policy: str) -> None:
    found = list(containers(values))

    assert len(found) == 2
    assert [name for name, container in found if not POLICIES[policy](container)] == []


@each_values
def test_pods_have_no_token_a_seccomp_profile_and_a_fixed_user(values: Path | None) -> None:
    for _, pod in pods(values):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["runAsUser"] == 10001, "as in the Dockerfile"


@each_values
def test_processes_have_the_time_that_their_drain_takes(values: Path | None) -> None:
    grace_s = {name: pod["terminationGracePeriodSeconds"] for name, pod in pods(values)}
    env = {name: {e["name"]: e.get("value") for e in container["env"]} for name, container in containers(values)}
    gateway, worker = env["sb-gateway"], env["sb-worker"]

    assert grace_s["sb-gateway"] > float(gateway["STAGEBUS_DRAIN_DELAY_S"]) + float(gateway["STAGEBUS_DRAIN_SPREAD_S"])
    assert grace_s["sb-worker"] > float(worker["STAGEBUS_DRAIN_GRACE_S"]) + FLUSH_S


@each_values
def test_environment_names_only_settings_that_exist(values: Path | None) -> None:
    known = {f"STAGEBUS_{name.upper()}" for name in Settings.model_fields} | {"OPENAI_BASE_URL"}
    used = {e["name"] for _, container in containers(values) for e in container["env"]}

    assert used - known == set()


@each_values
def test_services_budgets_monitors_and_policies_select_the_pods(values: Path | None) -> None:
    labels = {
        name: deployment["spec"]["template"]["metadata"]["labels"]
        for name, deployment in of_kind("Deployment", values).items()
    }

    def selected(selector: dict[str, str]) -> list[str]:
        return [name for name, pod in labels.items() if selector.items() <= pod.items()]

    for kind in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        for name, resource in of_kind(kind, values).items():
            spec = resource["spec"]
            assert selected((spec.get("selector") or spec["podSelector"])["matchLabels"]) == [name]
    (service,) = of_kind("Service", values).values()
    assert selected(service["spec"]["selector"]) == ["sb-gateway"]
    for monitor in of_kind("ServiceMonitor", values).values():
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_network_policies_let_nobody_but_prometheus_reach_a_worker() -> None:
    (rule,) = of_kind("NetworkPolicy")["sb-worker"]["spec"]["ingress"]
    networks = [to for rule in of_kind("NetworkPolicy")["sb-worker"]["spec"]["egress"] for to in rule.get("to", ())]
    (internet,) = [to["ipBlock"] for to in networks if "ipBlock" in to]

    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert "169.254.0.0/16" in internet["except"], "the cloud's metadata service"


@pytest.mark.parametrize("kind", ["gateway", "worker"])
def test_network_policies_let_processes_reach_redis_and_its_sentinels(kind: str) -> None:
    def ports(values: Path | None) -> set[int]:
        egress = of_kind("NetworkPolicy", values)[f"sb-{kind}"]["spec"]["egress"]
        return {port["port"] for rule in egress if "to" not in rule for port in rule["ports"]}

    assert 6379 in ports(None)
    assert 26379 not in ports(None)
    assert {6379, 26379} <= ports(CHART / "ci" / "keda.yaml")


def test_keda_scales_by_slots_that_are_held_or_wanted() -> None:
    values = CHART / "ci" / "keda.yaml"
    (scaled,) = of_kind("ScaledObject", values).values()
    (trigger,) = scaled["spec"]["triggers"]

    assert scaled["spec"]["scaleTargetRef"]["name"] in of_kind("Deployment", values)
    assert trigger["metadata"]["threshold"] == "37", "three quarters of 50 slots"
    assert 'stagebus_runs{status="running",namespace="ai"}' in trigger["metadata"]["query"]
    assert "replicas" not in of_kind("Deployment", values)["sb-worker"]["spec"]


def test_chart_has_the_alert_rules_of_the_repository() -> None:
    """Helm reads files of its own folder alone, so the chart has a copy."""
    rules = (ROOT / "deploy" / "prometheus" / "stagebus.rules.yml").read_text()
    (rule,) = of_kind("PrometheusRule", CHART / "ci" / "keda.yaml").values()

    assert (CHART / "stagebus.rules.yml").read_text() == rules
    assert rule["spec"] == yaml.safe_load(rules)


@pytest.mark.parametrize(
    "wrong",
    ["auth.mode=open", "settings.STAGEBUS_SECRET=x", "settings.OPENAI_API_KEY=x", "image.digest=sha256:1",
     "worker.autoscaling.kind=maybe", "gateway.replica=2"],
)  # fmt: skip
def test_wrong_values_are_refused(wrong: str) -> None:
    done = run_helm("template", "sb", str(CHART), "--set-string", wrong)

    assert done.returncode != 0
    assert "schema" in done.stderr


def test_values_have_an_entry_in_the_schema_for_everything() -> None:
    def check(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, inner in value.items() if isinstance(value, dict) else ():
            if name in schema.get("properties", {}):
                yield from check(inner, schema["properties"][name], f"{path}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{path}.{name}"

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert list(check(values, json.loads((CHART / "values.schema.json").read_text()), "")) == []
