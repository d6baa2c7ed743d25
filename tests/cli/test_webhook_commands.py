"""The commands of `stagebus webhooks`."""

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stagebus.cli import webhook_commands
from stagebus.cli.webhook_commands import webhooks_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig
from stagebus.shared.domain.webhook_messages import DeliveryState
from stagebus.shared.storage import redis_client
from stagebus.shared.store import webhook_deliveries, webhook_outbox
from stagebus.shared.store.webhook_deliveries import TryResult
from tests.shared.config.test_webhooks_file import ENDPOINT
from tests.support.audit_records import audit_records
from tests.support.outbox_entries import put_entry


@pytest.fixture
def invoke(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that runs a command and returns its exit code, stdout and stderr."""
    (tmp_path / "webhooks.toml").write_text(ENDPOINT)
    monkeypatch.setenv("STAGEBUS_REDIS_URL", redis_url)
    monkeypatch.setenv("STAGEBUS_WEBHOOKS", str(tmp_path / "webhooks.toml"))
    monkeypatch.setattr("stagebus.cli.operator_access.configure", lambda _level: None)  # keeps pytest's log handlers

    def run(*args: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(webhooks_app, args)
        return result.exit_code, result.stdout, f"{result.stderr}{result.exception or ''}"

    return run


async def fail_one(settings: Settings, webhooks: Path) -> str:
    """Makes a delivery that has failed, and returns its id."""
    redis = redis_client.connect(settings)
    await redis.flushdb()
    await put_entry(redis)
    await webhook_outbox.fan_out(redis, WebhookConfig.from_settings(settings.model_copy(update={"webhooks": webhooks})))
    (due,) = await webhook_deliveries.list_due(redis)
    begun = await webhook_deliveries.acquire(redis, "billing", due.delivery_ids[0], 20)
    assert begun is not None
    await webhook_deliveries.settle(
        redis, begun.delivery, begun.token, TryResult(DeliveryState.FAILED, 500, "status 500")
    )
    await redis_client.close(redis)
    return begun.delivery.delivery_id


def test_failed_delivery_is_listed_and_sent_again(
    invoke, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stagebus.audit")
    delivery_id = asyncio.run(fail_one(settings, tmp_path / "webhooks.toml"))

    code, out, _ = invoke("list", "--state", "failed")
    assert code == 0
    assert out.startswith(f"{delivery_id}  failed  1 try  20")
    assert out.endswith("status 500\n")
    assert invoke("list", "--endpoint", "other")[1] == ""
    assert invoke("list", "--state", "lost")[0] == 2
    assert invoke("resend", delivery_id)[1] == f"{delivery_id} is due; a worker sends it\n"
    assert f"{delivery_id}  waiting  0 tries" in invoke("list")[1]
    assert "there is no webhook delivery 'other'" in invoke("resend", "other")[2]
    assert [record.message for record in audit_records(caplog)] == ["webhook.resend"]


def test_test_needs_a_configured_endpoint_and_a_worker(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_commands, "TEST_WAIT_S", 0.2)
    assert "has no endpoint 'other'" in invoke("test", "other")[2]

    code, out, err = invoke("test", "billing")

    assert code == 1
    assert ".billing  waiting  0 tries" in out
    assert "is one with STAGEBUS_WEBHOOKS running?" in err
