"""The file and the receivers of docs/webhooks.md."""

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig, WebhookTarget
from stagebus.shared.domain.webhook_messages import TEST_TYPE, Delivery, DeliveryState, WebhookType
from stagebus.shared.store.webhook_outbox import encode_body
from stagebus.worker.webhooks.retry_schedule import BACKOFFS_S
from stagebus.worker.webhooks.webhook_sender import WebhookSender
from tests.shared.config.test_webhooks_file import load
from tests.support.shell import blocks, need, type_in
from tests.support.system import free_port
from tests.support.waiting import until

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
DELIVERY = Delivery(
    "d", "billing", "msg_1_5_2_run.ended", "run.ended", "01J", "acme", "",
    encode_body("run.ended", 1772366400123, {"run_id": "01J", "status": "succeeded"}).encode(), DeliveryState.WAITING, 1, 1,
)  # fmt: skip
TEST_DELIVERY = replace(
    DELIVERY, type=TEST_TYPE, run_id="", body=encode_body(TEST_TYPE, 1772366400123, {"at": 1}).encode()
)


@asynccontextmanager
async def program(tmp_path: Path, name: str, interpreter: str) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Runs a receiver of the page; yields its port and its output."""
    (source,) = (block for block in blocks(PAGE, name) if "receiver" in block.split("\n")[0])
    path = tmp_path / ("receiver.py" if name == "python" else "receiver.mjs")
    path.write_text(source)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        interpreter, str(path), env={"PORT": str(port), "WEBHOOK_SECRET": SECRET}, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(listens)
        yield port, process.stdout
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(("language", "interpreter"), [("python", sys.executable), ("js", "node")])
async def test_receiver_takes_a_signed_message_and_no_other(
    tmp_path: Path, settings: Settings, language: str, interpreter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(interpreter)
    sender = WebhookSender(settings.model_copy(update={"egress_allow": ("127.0.0.1",)}))
    async with program(tmp_path, language, interpreter) as (port, output):
        url = f"http://127.0.0.1:{port}/hooks"
        text = f'[endpoints.a]\nurl = "{url}"\nsecret = {{ env = "SIGNING" }}\n'
        monkeypatch.setenv("SIGNING", SECRET)
        signing = load(tmp_path, text).endpoints["a"]
        good = await sender.send(DELIVERY, WebhookTarget(url, signing))
        line = await asyncio.wait_for(output.readline(), 10)
        by_command = await sender.send(TEST_DELIVERY, WebhookTarget(url, signing))
        monkeypatch.setenv("SIGNING", "whsec_" + base64.b64encode(b"x" * 32).decode())
        forged = await sender.send(DELIVERY, WebhookTarget(url, signing))
        async with httpx.AsyncClient() as http:
            unsigned = await http.post(url, content=DELIVERY.body)

    assert (good.status, forged.status, unsigned.status_code) == (204, 400, 400)
    assert by_command.status == 204, "what `stagebus webhooks test` sends has no run"
    assert line == b"run.ended 01J succeeded\n"


def test_file_of_the_page_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BILLING_WEBHOOK_SECRET", "RUN_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, SECRET)
    (text,) = blocks(PAGE, "toml")
    webhooks: WebhookConfig = load(tmp_path, text)

    assert webhooks.receivers("run.ended", "acme", "https://app.example/hooks/7") == [
        "billing", "run-url https://app.example",
    ]  # fmt: skip


async def test_command_of_the_page_makes_a_secret(tmp_path: Path) -> None:
    need("openssl")
    (command,) = (block for block in blocks(PAGE) if "openssl" in block)
    secret = (await type_in(command)).strip()

    assert (
        load(tmp_path, f'[endpoints.a]\nurl = "https://a.example/"\nsecret = "{secret}"\n').endpoints["a"].read_keys()
    )


def test_page_names_all_messages_and_waits() -> None:
    waits = ["5 s", "30 s", "2 min", "10 min", "30 min", "1 h", "2 h", "4 h", "8 h and 8 h"]

    assert all(f"`{kind}`" in PAGE for kind in WebhookType)
    assert ", ".join(waits) in PAGE
    assert len(BACKOFFS_S) == len(waits) + 1
