"""The alert rules, the dashboard and the runbook: they agree with each other and with what the processes export."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from stagebus.gateway.gateway_metrics import Metrics
from stagebus.gateway.streaming.hub import Hub
from stagebus.shared.config.settings import Settings
from stagebus.worker.worker_metrics import WorkerMetrics
from tests.support.shell import blocks, need
from tests.support.system import ROOT

RULES = ROOT / "deploy" / "prometheus" / "stagebus.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "stagebus.json"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
METRIC = re.compile(r"\b(?:stagebus|process|python)_[a-z0-9_]+")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def exported(text: str) -> Iterator[str]:
    """Yields the names that PromQL may use, also of metrics that have no sample yet."""
    for family in text_string_to_metric_families(text):
        match family.type:
            case "counter":
                yield f"{family.name}_total"
            case "histogram":
                yield from (f"{family.name}_{part}" for part in ("bucket", "sum", "count"))
            case _:
                yield family.name


@pytest.fixture
async def names(redis: Redis, settings: Settings) -> set[str]:
    gateway = Metrics(Hub(redis, settings), settings.lease_s, ["p"])
    return {*exported((await gateway.render(redis)).decode()), *exported(WorkerMetrics().render().decode())}


def test_promtool_accepts_the_rules_and_their_unit_tests() -> None:
    need("promtool")
    for args in (["check", "rules", RULES.name], ["test", "rules", "stagebus.tests.yml"]):
        done = subprocess.run(["promtool", *args], cwd=RULES.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_of_both_kinds() -> None:
    tests = yaml.safe_load((RULES.parent / "stagebus.tests.yml").read_text())["tests"]
    kinds = {
        (test["alert_rule_test"][0]["alertname"], bool(test["alert_rule_test"][0]["exp_alerts"])) for test in tests
    }

    assert kinds == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


async def test_alerts_and_dashboard_use_only_metrics_that_exist(names: set[str]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    used = {name for expression in expressions for name in METRIC.findall(expression)}

    assert len(used) > 30
    assert used - names == set()


async def test_every_metric_of_the_whole_system_is_on_the_dashboard_or_in_an_alert(
    names: set[str],
) -> None:
    """A metric that nobody looks at is left out here on purpose."""
    text = RULES.read_text() + DASHBOARD.read_text()
    unused = {name for name in names if name.startswith("stagebus_") and name not in text}
    known = r"_(count|sum|created|seconds_bucket|append_events_bucket|retries_total|calls_total|replicas|held|relayed_total|"
    known += r"sweeps_total|looked_at_total|webhooks_oldest_seconds|webhooks_failed|webhooks_gone)$"

    assert [name for name in sorted(unused) if not re.search(known, name)] == []


def test_runbook_has_a_section_with_commands_for_each_alert_and_no_other() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))

    assert list(sections) == [rule["alert"] for rule in rules()]
    assert [name for name, text in sections.items() if not blocks(text)] == []
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_dashboard_panels_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]

    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    assert max(x + panel["gridPos"]["w"] for (x, _), panel in zip(places, panels, strict=True)) == 24
    assert Path(DASHBOARD).read_text().endswith("}\n")
