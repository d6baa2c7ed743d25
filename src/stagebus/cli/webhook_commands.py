"""`stagebus webhooks`: the operator's commands for webhooks. They access Redis directly, without a gateway."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stagebus.cli.operator_access import operator, with_redis
from stagebus.cli.output import echo
from stagebus.cli.server_extra import require_server
from stagebus.shared.observability.audit import audit

if TYPE_CHECKING:
    from stagebus.shared.domain.webhook_messages import Delivery
    from stagebus.shared.storage.redis_client import Redis

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 500
TEST_WAIT_S: Final = 15.0
TEST_LOOK_S: Final = 0.2

webhooks_app = typer.Typer(no_args_is_help=True)


@webhooks_app.callback()
def check_server() -> None:
    """List the deliveries of webhooks, send one again, or send a test, in the Redis of STAGEBUS_REDIS_URL."""
    require_server("webhooks")


@webhooks_app.command("list", hidden=True)
@webhooks_app.command("ls")
def list_deliveries(
    state: Annotated[str, typer.Option(help="only deliveries in this state: waiting, delivered or failed")] = "",
    endpoint: Annotated[str, typer.Option(help="only those to this endpoint")] = "",
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="maximum number of deliveries")] = LIMIT_DEFAULT,
) -> None:
    """List deliveries, newest first: id, state, tries, time, and the last answer."""
    from stagebus.shared.domain.webhook_messages import DeliveryState
    from stagebus.shared.store import webhook_deliveries

    if state and state not in set(DeliveryState):
        raise typer.BadParameter(f"a state is one of {', '.join(DeliveryState)}")
    wanted = DeliveryState(state) if state else None

    async def read(redis: "Redis") -> "list[Delivery]":
        found: list[Delivery] = []
        before: str | None = None
        while len(found) < limit:
            page = await webhook_deliveries.list_deliveries(
                redis, limit - len(found), state=wanted, endpoint=endpoint, before=before
            )
            found += page.deliveries
            before = page.next
            if before is None:
                break
        return found

    for delivery in with_redis(read):
        echo(_row(delivery))


@webhooks_app.command("resend")
def resend(delivery_id: Annotated[str, typer.Argument(help="the delivery's id as shown by `list`")]) -> None:
    """Send a delivery again now; if it fails, it is tried as often as a new one."""
    from stagebus.shared.store import webhook_deliveries

    was = with_redis(lambda redis: webhook_deliveries.resend(redis, delivery_id))
    audit("webhook.resend", subject=operator(), tenant=was.tenant, run=was.run_id, delivery=delivery_id)
    echo(f"{delivery_id} is due; a worker sends it")


@webhooks_app.command("test")
def test(endpoint: Annotated[str, typer.Argument(help="the endpoint's name in the webhooks file")]) -> None:
    """Have a worker send a message of the type webhook.test, and print what the receiver answers."""
    import secrets

    from stagebus.shared.config.settings import load_settings
    from stagebus.shared.config.webhooks_file import WebhookConfig
    from stagebus.shared.domain.webhook_messages import DeliveryState
    from stagebus.shared.store import webhook_deliveries, webhook_outbox
    from stagebus.shared.webhook_errors import EndpointNotFound

    if endpoint not in WebhookConfig.from_settings(load_settings()).endpoints:
        raise EndpointNotFound(endpoint)

    async def send(redis: "Redis") -> "Delivery":
        import asyncio

        delivery_id = await webhook_outbox.add_test(redis, endpoint, f"test_{secrets.token_hex(8)}")
        audit("webhook.test", subject=operator(), tenant="", delivery=delivery_id)
        for _ in range(round(TEST_WAIT_S / TEST_LOOK_S)):
            delivery = await webhook_deliveries.read(redis, delivery_id)
            if delivery.state is not DeliveryState.WAITING or delivery.tries:
                break
            await asyncio.sleep(TEST_LOOK_S)
        return delivery

    delivery = with_redis(send)
    echo(_row(delivery))
    if delivery.state is not DeliveryState.DELIVERED:
        if not delivery.tries:
            echo("no worker has sent it yet: is one with STAGEBUS_WEBHOOKS running?", err=True)
        raise typer.Exit(1)


def _row(delivery: "Delivery") -> str:
    at = datetime.fromtimestamp((delivery.ended_at or delivery.created_at) / 1000, UTC).isoformat(timespec="seconds")
    tries = f"{delivery.tries} {'try' if delivery.tries == 1 else 'tries'}"
    last = delivery.last_error or (f"status {delivery.last_status}" if delivery.last_status else "")
    return f"{delivery.delivery_id}  {delivery.state}  {tries}  {at}  {last}".rstrip()
