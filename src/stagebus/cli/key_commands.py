"""`stagebus keys`: the operator's commands for API keys. They access Redis directly, without a gateway."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stagebus.cli.durations import parse_duration
from stagebus.cli.operator_access import operator, with_redis
from stagebus.cli.output import echo
from stagebus.cli.server_extra import require_server
from stagebus.shared.domain.tenants import DEFAULT_TENANT, TENANT_PATTERN, Scope, is_tenant
from stagebus.shared.observability.audit import audit

if TYPE_CHECKING:
    from stagebus.shared.storage.redis_client import Redis
    from stagebus.shared.store.api_keys import ListedKey

SCOPES_DEFAULT: Final = (Scope.RUNS_WRITE, Scope.RUNS_READ, Scope.RUNS_CANCEL)

keys_app = typer.Typer(no_args_is_help=True)


@keys_app.callback()
def check_server() -> None:
    """Create, list and revoke API keys, in the Redis of STAGEBUS_REDIS_URL or of a running `stagebus up`."""
    require_server("keys")


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Option(help="the tenant whose runs the key gives access to")] = DEFAULT_TENANT,
    scopes: Annotated[str, typer.Option(help=f"comma-separated list of {', '.join(Scope)}")] = ",".join(SCOPES_DEFAULT),
    expires: Annotated[str, typer.Option(help="a duration such as 90d, 12h or 30m; default: never")] = "",
    name: Annotated[str, typer.Option(help="a name to recognise the key by")] = "",
) -> None:
    """Create a key and print it. It is shown only once."""
    from stagebus.shared.store import api_keys

    if not is_tenant(tenant):
        raise typer.BadParameter(f"a tenant's name must match {TENANT_PATTERN}")
    if len(name) > api_keys.NAME_MAX_CHARS or not name.isprintable():
        raise typer.BadParameter(f"a key's name has at most {api_keys.NAME_MAX_CHARS} printable characters")
    requested, ttl_s = parse_scopes(scopes), parse_duration(expires)
    if Scope.RUNS_OWN in requested and Scope.ON_BEHALF not in requested:
        raise typer.BadParameter(
            "a key has no user of its own: runs:own needs on_behalf, so that requests can name one"
        )

    async def create(redis: "Redis") -> str:
        record, key = await api_keys.create(redis, tenant=tenant, scopes=requested, name=name, ttl_s=ttl_s)
        audit(
            "key.create", subject=operator(), tenant=tenant, key=record.key_id, name=name,
            scopes=sorted(record.scopes), expires=_when(record.expires_at),
        )  # fmt: skip
        return key

    key = with_redis(create)
    echo(key)
    echo("this key is shown once and not stored: copy it now", err=True)


@keys_app.command("list", hidden=True)
@keys_app.command("ls")
def list_keys(tenant: Annotated[str | None, typer.Option(help="only keys of this tenant")] = None) -> None:
    """List valid keys, oldest first: id, tenant, scopes, expiry, last use, name."""
    from stagebus.shared.store import api_keys

    for listed in with_redis(lambda redis: api_keys.list_keys(redis, tenant)):
        echo(_row(listed))


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="the key's id as shown by `ls`, with or without sbk_")],
) -> None:
    """Revoke a key and every session and ticket created with it."""
    from stagebus.shared.store import api_keys

    found = re.fullmatch(r"(?:sbk_)?([0-9a-f]{12})(?:_.*)?", key_id)
    record = with_redis(lambda redis: api_keys.revoke(redis, found[1])) if found else None
    if record is None:
        from stagebus.cli.exit_codes import KeyNotFound

        raise KeyNotFound("there is no such key; `stagebus keys ls` shows all keys")
    audit("key.revoke", subject=operator(), tenant=record.tenant, key=record.key_id, name=record.name)
    echo(f"{record.key_id} is revoked; gateways refuse it within seconds")


def parse_scopes(text: str) -> frozenset[Scope]:
    """Parse a comma-separated list of scopes.

    Raises:
        typer.BadParameter: a scope is unknown, or the list is empty.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in set(Scope)]
    if unknown or not names:
        raise typer.BadParameter(f"unknown scope {', '.join(unknown) or '(empty)'}: scopes are {', '.join(Scope)}")
    return frozenset(Scope(name) for name in names)


def _row(listed: "ListedKey") -> str:
    key = listed.key
    last_use = _when(listed.last_used_at) or "never used"
    expiry = _when(key.expires_at) or "does not expire"
    return "  ".join([key.key_id, key.tenant, ",".join(sorted(key.scopes)), expiry, last_use, key.name])


def _when(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="seconds") if unix_ms else ""
