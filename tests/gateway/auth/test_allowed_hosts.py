"""A gateway that other machines reach answers only under configured host names."""

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import Scope
from stagebus.shared.store import api_keys
from tests.gateway.conftest import SECRET, client

INSECURE = {"insecure": True}
LOCKED = {"auth": "keys", "secret": SecretStr(SECRET)}
ALLOWED = {"allowed_hosts": ("bus.example",)}


@pytest.mark.parametrize(
    ("update", "host", "is_allowed"),
    [
        (INSECURE, "bus.example", False),
        (INSECURE, "evil.example", False),
        (INSECURE, "10.0.0.7:8000", True),
        (INSECURE, "[::1]:8000", True),
        (INSECURE, "localhost:8000", True),
        (INSECURE | ALLOWED, "bus.example", True),
        (INSECURE | ALLOWED, "BUS.example.:8000", True),
        (INSECURE | ALLOWED, "bus.example.evil.example", False),
        (INSECURE | ALLOWED, "10.0.0.7.evil.example", False),
        (LOCKED, "evil.example", True),
        (LOCKED | ALLOWED, "bus.example", True),
        (LOCKED | ALLOWED, "evil.example", False),
        (LOCKED | ALLOWED, "127.0.0.1", True),
    ],
)
async def test_gateway_answers_addresses_and_allowed_host_names(
    redis: Redis, settings: Settings, update: dict[str, object], host: str, is_allowed: bool
) -> None:
    """By DNS rebinding a foreign page could read the answers under its own name."""
    _, key = await api_keys.create(redis, tenant="acme", scopes=[Scope.RUNS_READ])
    app = create_app(settings.model_copy(update=update))
    async with app.router.lifespan_context(app), client(app, {"Authorization": f"Bearer {key}"}) as api:
        response = await api.get("/runs", headers={"Host": host})
        probe = await api.get("/healthz", headers={"Host": host})

    if is_allowed:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["code"]) == (403, "host_not_allowed")
        assert "STAGEBUS_ALLOWED_HOSTS" in response.json()["detail"]
    assert probe.status_code == 200, "probes come under any name"


@pytest.mark.parametrize("text", ["https://bus.example", "bus.example:8000", "*", "*.example", "a b", ".example"])
def test_allowed_host_must_be_a_host_name(text: str) -> None:
    with pytest.raises(ValidationError, match="is not a host name"):
        Settings(allowed_hosts=text)
