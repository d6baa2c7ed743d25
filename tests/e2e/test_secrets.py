"""Secrets: no log, answer or Redis key of a system with authentication contains a key, ticket or cookie."""

import re
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis

from stagebus.shared.domain.tenants import TENANT_WIDE
from stagebus.shared.store import api_keys
from tests.support.system import Process, System, free_port

SECRET = "planted-signing-secret-0123456789abcdef"
PROVIDER_KEY = "sk-planted-provider-key-0123456789"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
WEATHER = {"user_prompt": "What is the weather in Paris?", "model": "demo:delay_ms=0"}


class Recorder(httpx.AsyncClient):
    """Records the headers and the body of every answer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(timeout=20, **options)
        self.answers: list[str] = []

    async def request(self, *args: Any, **options: Any) -> httpx.Response:
        response = await super().request(*args, **options)
        self.answers.append(f"{response.headers}\n{response.text}")
        return response


async def dump(redis: Redis) -> str:
    """Returns all keys of Redis with their values, as text."""
    held = []
    async for key in redis.scan_iter():
        match await redis.type(key):
            case b"hash":
                held.append((key, await redis.hgetall(key)))
            case b"stream":
                held.append((key, await redis.execute_command("XRANGE", key, "-", "+")))
            case b"list":
                held.append((key, await redis.lrange(key, 0, -1)))
            case b"zset":
                held.append((key, await redis.zrange(key, 0, -1, withscores=True)))
            case _:
                held.append((key, await redis.get(key)))
    return str(held)


async def test_secrets_are_in_no_log_answer_or_redis_key(tmp_path: Path) -> None:
    env = {"STAGEBUS_AUTH": "keys", "STAGEBUS_SECRET": SECRET, "STAGEBUS_LOG_LEVEL": "DEBUG"}
    async with System(tmp_path, workers=0, env=env) as system, Recorder(base_url=system.url) as http:
        worker = system.add_worker({"OPENAI_API_KEY": PROVIDER_KEY})
        port = free_port()
        plain = system.process("uvicorn", ["-m", "uvicorn", "stagebus.gateway.app:app", "--port", str(port)])
        plain.start()
        try:
            _, key = await api_keys.create(system.redis, tenant="acme", scopes=TENANT_WIDE)
            planted = {"signing secret": SECRET, "provider key": PROVIDER_KEY, "API key": key.split("_", 2)[2]}
            await worker.ready("is ready for")
            await plain.ready("running on ")
            run_id = await use(http, key, planted, f"http://127.0.0.1:{port}")
        finally:
            if plain.is_running:
                await plain.terminate()
        left = {process.name: process.log() for process in [*system.gateways, *system.workers, plain]}
        left["redis"] = await dump(system.redis)
        left["answers"] = "\n".join(http.answers)

    for where, text in left.items():
        assert len(text) > 200, f"{where} is empty"
        for what, secret in planted.items():
            assert secret not in text, f"{what} in {where}"
    assert f"/runs/{run_id}/events" in left["uvicorn"], "the access log has the request without its ticket"
    assert '"request_id": "planted-trace"' in left["worker0"], "the worker logs the request's id"
    assert re.search(r'"stagebus.audit", "message": "run.create", "request_id": "planted-trace"', left["gateway0"])


async def use(http: Recorder, key: str, planted: dict[str, str], plain_url: str) -> str:
    """Sends good and bad requests; adds the ticket and the session to `planted` and returns a run's id."""
    auth = {"Authorization": f"Bearer {key}"}
    traced = {**auth, "X-Request-ID": "planted-trace", "traceparent": PARENT}
    created = await http.post("/runs", json=WEATHER, headers=traced)
    run_id = str(created.json()["id"])
    # `send` does not record: an answer that hands out a secret is no leak.
    ticket = (await http.send(http.build_request("POST", f"/runs/{run_id}/ticket", headers=auth))).json()["ticket"]
    signed_in = await http.send(http.build_request("POST", "/session", headers={**auth, **OWN_PAGE}))
    planted |= {"ticket": ticket, "session": signed_in.cookies["stagebus"]}
    stream = await http.get(f"/runs/{run_id}/events", params={"ticket": ticket})
    assert "event: done" in stream.text
    failed = await http.post("/runs", json={**WEATHER, "model": "demo:status=401"}, headers=traced)
    assert "event: error" in (await http.get(f"/runs/{failed.json()['id']}/events", headers=auth)).text
    bad = {"Authorization": f"Bearer {key[:-1]}"}
    for request in (
        {"method": "GET", "url": "/runs", "headers": bad},
        {"method": "GET", "url": f"/nowhere?ticket={ticket}"},
        {"method": "GET", "url": f"/runs?ticket={ticket}&limit=x"},
        {"method": "POST", "url": "/runs", "json": {"model": 7}, "headers": auth},
        {"method": "GET", "url": "/metrics", "headers": auth},
        {"method": "GET", "url": f"{plain_url}/runs/{run_id}/events?ticket={ticket}"},
    ):
        await http.request(**request)
    return run_id


async def test_gateway_without_auth_refuses_a_public_address(tmp_path: Path) -> None:
    process = Process("gateway", ["-m", "stagebus.gateway", "--host", "0.0.0.0", "--port", "0"], {}, tmp_path)
    process.start()

    assert await process.wait() == 1
    assert "STAGEBUS_AUTH=keys" in process.log()
    assert "--insecure" in process.log()
    assert "Traceback" not in process.log()
