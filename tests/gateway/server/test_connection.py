"""Raw bytes sent to a real gateway: too long, too slow, too many, or not HTTP."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
import pytest

from stagebus.gateway.server.connection import PIPELINED_MAX
from stagebus.shared.domain.events import RunStarted
from tests.support.runs_by_hand import RunByHand
from tests.support.system import Process

HEADERS_S, BODY_S = 0.4, 0.8
HEADERS_MAX = 4096
WRITE_S = 1.0
CONNECTIONS_MAX = 24
SOON_S = 5.0
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def address(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """One gateway for the module, with short time limits."""
    env = {
        "STAGEBUS_REDIS_URL": redis_url,
        "STAGEBUS_HEADERS_TIMEOUT_S": str(HEADERS_S),
        "STAGEBUS_BODY_TIMEOUT_S": str(BODY_S),
        "STAGEBUS_HEADERS_MAX_BYTES": str(HEADERS_MAX),
        "STAGEBUS_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
        "STAGEBUS_WRITE_TIMEOUT_S": str(WRITE_S),
    }
    folder = tmp_path_factory.mktemp("gateway")
    process = Process("gateway", ["-m", "stagebus.gateway", "--port", "0"], env, folder)
    process.start()
    try:
        url = httpx.URL(asyncio.run(process.ready()))
        yield url.host, url.port
    finally:
        asyncio.run(process.kill())


class Client:
    """A connection that sends raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def status(self) -> int:
        """Returns the status of the next response, or 0 if the connection is closed."""
        async with asyncio.timeout(SOON_S):
            try:
                head = await self._reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return 0
            lines = head.decode().lower().split("\r\n")
            length = next((line for line in lines if line.startswith("content-length:")), "content-length: 0")
            await self._reader.readexactly(int(length.split(":")[1]))
            return int(head.split()[1])

    async def read_to_end(self) -> bytes:
        """Returns what is sent until the connection is closed."""
        async with asyncio.timeout(SOON_S):
            return await self._reader.read()

    async def is_closed(self) -> bool:
        """Waits until the connection is closed."""
        async with asyncio.timeout(SOON_S):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True


@pytest.fixture
async def connect(address: tuple[str, int]) -> AsyncIterator[Callable]:
    async with AsyncExitStack() as stack:

        @asynccontextmanager
        async def open_one():
            reader, writer = await asyncio.open_connection(*address)
            try:
                yield Client(reader, writer)
            finally:
                writer.close()

        yield lambda: stack.enter_async_context(open_one())


@pytest.fixture
async def events(address: tuple[str, int]) -> str:
    """The path of the events of a run that waits for a worker."""
    async with httpx.AsyncClient(base_url=f"http://localhost:{address[1]}") as http:
        path: str = (await http.post("/runs", json={"user_prompt": "Hello"})).json()["links"]["events"]
        return path


@pytest.fixture
async def long_log(run: RunByHand) -> str:
    """The path of the events of a run with more events than the buffers of a connection hold."""
    for _ in range(20):
        await run.put(*[RunStarted(attempt=1, worker="x" * 4000) for _ in range(100)])
    return f"/runs/{run.run_id}/events"


# --- too long ----------------------------------------------------------------

LONG = b"x" * (HEADERS_MAX + 1)


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Long: " + LONG + b"\r\n\r\n",
        GET + b"X-Endless: " + LONG,  # no header is ever complete
        GET + LONG,
        b"GET /" + LONG + b" HTTP/1.1\r\n\r\n",
        b"GET /?" + LONG,
        GET + b"a: b\r\n" * HEADERS_MAX + b"\r\n",
        GET + b"Cookie: a=b\r\n" * HEADERS_MAX,
    ],
    ids=lambda head: head[:60].decode(),
)
async def test_request_head_over_the_limit_gets_431(connect: Callable, head: bytes) -> None:
    client = await connect()
    await client.send(head)

    assert await client.status() == 431
    assert await client.is_closed()


async def test_head_limit_counts_each_request_separately(connect: Callable) -> None:
    """Each request of a connection may have a head of the full length."""
    client = await connect()
    for _ in range(3):
        await client.send(GET + b"X-Long: " + b"x" * (HEADERS_MAX - 200) + b"\r\n\r\n")
        assert await client.status() == 200


# --- too slow ----------------------------------------------------------------


async def trickle(client: Client, parts: Iterable[bytes], pause_s: float) -> None:
    for part in parts:
        await client.send(part)
        await asyncio.sleep(pause_s)


SLOW_REQUESTS = {
    "silence": (b"", b"", HEADERS_S),
    "head": (b"", GET, HEADERS_S),
    "empty lines": (GET + b"\r\n", b"\r\n" * 200, HEADERS_S),  # between two requests they are not a request
    "second head": (GET + b"\r\n", b"GET /healthz", HEADERS_S),
    "pipelined": (GET + b"\r\n" + GET, b"X-Slow: yes", HEADERS_S),
    "body": (POST + b"Content-Length: 1000\r\n\r\n", b" " * 1000, BODY_S),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 100, BODY_S),
    "unread body": (GET + b"Content-Length: 1000\r\n\r\n", b" " * 1000, BODY_S),  # its response was sent long before
}


async def test_slow_request_loses_its_connection(connect: Callable) -> None:
    """All at a time, each on its own connection."""

    async def time_to_close(first: bytes, then: bytes) -> float:
        client = await connect()
        started = time.monotonic()
        await client.send(first)
        sending = asyncio.create_task(trickle(client, [b"%c" % byte for byte in then], 0.03))
        assert await client.is_closed()
        took_s = time.monotonic() - started
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return took_s

    times = await asyncio.gather(*(time_to_close(first, then) for first, then, _ in SLOW_REQUESTS.values()))
    for (name, (_, _, limit_s)), took_s in zip(SLOW_REQUESTS.items(), times, strict=True):
        assert limit_s * 0.8 <= took_s <= limit_s + 1.5, name


async def test_idle_keep_alive_connection_is_kept(connect: Callable) -> None:
    client = await connect()
    for _ in range(2):
        await client.send(GET + b"\r\n")
        assert await client.status() == 200
        await asyncio.sleep(HEADERS_S * 1.5)


async def test_open_stream_outlives_the_request_time_limits(connect: Callable, events: str) -> None:
    """Its client sends nothing for as long as the run takes."""
    client = await connect()
    await client.send(f"GET {events} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert await client.status() == 200
    reading = asyncio.create_task(client.is_closed())
    done, _ = await asyncio.wait([reading], timeout=BODY_S * 1.5)
    reading.cancel()

    assert not done


# --- clients that do not read -------------------------------------------------


@pytest.mark.parametrize("path", ["/openapi.json", "/healthz"])
async def test_pipelined_requests_over_the_limit_are_not_read(connect: Callable, path: str) -> None:
    """Each waiting request takes memory, and one packet may hold hundreds.

    The server reads this one as a whole. Unread bytes would reset the connection, and with it the last response.
    """
    client = await connect()
    await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 5 * PIPELINED_MAX)
    received = await client.read_to_end()

    assert received.count(b"HTTP/1.1 200 OK") == PIPELINED_MAX + 1
    assert received.count(b"connection: close") == 1, "the last response says so"


async def test_pipelined_requests_within_the_limit_are_answered_in_order(connect: Callable) -> None:
    client = await connect()
    for _ in range(3):
        await client.send((GET + b"\r\n" + b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n") * (PIPELINED_MAX // 2))
        assert [await client.status() for _ in range(PIPELINED_MAX)] == [200, 404] * (PIPELINED_MAX // 2)


async def test_refusal_is_not_sent_in_the_middle_of_an_earlier_response(connect: Callable, events: str) -> None:
    """An invalid request behind a stream ends the connection after the stream."""
    client = await connect()
    await client.send(f"GET {events} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert await client.status() == 200
    await client.send(b"\0\0\0\0\r\n\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.read_to_end(), 0.5)


UNREAD_REQUESTS = {
    "response": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "last response": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    "file": b"GET /static/app.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "stream": b"GET /{events} HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


async def test_client_that_does_not_read_is_disconnected(address: tuple[str, int], long_log: str) -> None:
    """Even when the response is complete, and the system alone waits for the client. All at a time."""

    async def is_disconnected(requests: bytes) -> bool:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, address)
            await loop.sock_sendall(client, requests.replace(b"/{events}", long_log.encode()) * (PIPELINED_MAX + 1))
            try:
                await asyncio.wait_for(send_forever(client), WRITE_S + SOON_S)
            except ConnectionError:
                return True
            except TimeoutError:
                return False

    ends = await asyncio.gather(*map(is_disconnected, UNREAD_REQUESTS.values()))
    assert dict(zip(UNREAD_REQUESTS, ends, strict=True)) == dict.fromkeys(UNREAD_REQUESTS, True)


async def send_forever(client: socket.socket) -> None:
    """Sends until the other side answers that it has aborted the connection. Reads nothing."""
    while True:
        await asyncio.get_running_loop().sock_sendall(client, b"\r\n")
        await asyncio.sleep(0.05)


async def test_slow_reader_is_not_disconnected(connect: Callable, address: tuple[str, int]) -> None:
    """A client may take longer than the limit, as long as it takes something."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        started, received = time.monotonic(), b""
        while data := await loop.sock_recv(client, 2048):
            received += data
            await asyncio.sleep(0.05)
        took_s = time.monotonic() - started

    assert took_s > WRITE_S * 1.5
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()


# --- trailers and upgrades ----------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


async def test_trailer_is_not_a_header(connect: Callable) -> None:
    client = await connect()
    await client.send(POST + CHUNKED + b'1a\r\n{"user_prompt": "trailer"}\r\n0\r\nIdempotency-Key: a b\r\n\r\n')

    assert await client.status() == 202, "as a header this key would be refused"


@pytest.mark.parametrize(
    "end",
    [b"0\r\nX-Endless: ", b"0\r\nX: y\r\n", b"1;name=", b"0;name="],
    ids=["endless trailer", "many trailers", "endless extension", "endless extension at the end"],
)
async def test_endless_trailer_gets_431(connect: Callable, end: bytes) -> None:
    client = await connect()
    await client.send(POST + CHUNKED + b"2\r\n{}\r\n" + end)
    part = b"X: y\r\n" if end.endswith(b"\n") else b"x"
    sending = asyncio.create_task(trickle(client, [part * 100] * (HEADERS_MAX // 50), 0.01))

    assert await client.status() == 431
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_body_longer_than_the_head_limit_is_accepted_in_small_chunks(connect: Callable) -> None:
    client = await connect()
    prompt = b'{"user_prompt": "' + b"x" * HEADERS_MAX * 2 + b'"}'
    await client.send(POST + CHUNKED)
    for at in range(0, len(prompt), 100):
        part = prompt[at : at + 100]
        await client.send(b"%x\r\n%b\r\n" % (len(part), part))
    await client.send(b"0\r\n\r\n")

    assert await client.status() == 202


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


@pytest.mark.parametrize("cut", [None, -1, -30, 40])
async def test_upgrade_to_http2_is_ignored(connect: Callable, cut: int | None) -> None:
    """Java's HttpClient asks for it in every request; the cut is where the packet ends."""
    client = await connect()
    post = POST + UPGRADE + b'Content-Length: 24\r\n\r\n{"user_prompt": "Hello"}'
    for _ in range(2):
        await client.send(post[:cut])
        if cut is not None:
            await asyncio.sleep(0.02)
            await client.send(post[cut:])
        assert await client.status() == 202
        await client.send((GET + UPGRADE + b"\r\n") * 2)
        assert [await client.status() for _ in range(2)] == [200, 200]


# --- too many, and not HTTP --------------------------------------------------


async def test_connections_over_the_limit_are_aborted(connect: Callable) -> None:
    clients = [await connect() for _ in range(CONNECTIONS_MAX + 4)]
    for client in clients:
        with suppress(ConnectionError):
            await client.send(GET + b"\r\n")
    statuses = [await client.status() for client in clients]

    assert statuses.count(200) <= CONNECTIONS_MAX
    assert 4 <= statuses.count(0) < CONNECTIONS_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS ClientHello
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"G\xc3\x89T / HTTP/1.1\r\n\r\n",
        GET + b"X-Nul: a\0b\r\n\r\n",
        GET + b"Bad Name: x\r\n\r\n",
        GET + b" folded: x\r\n\r\n",
        b"GET /static/../server.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /static/..%2f..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /runs/../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}",
    ],
    ids=repr,
)
async def test_invalid_http_is_refused_and_affects_no_other_connection(connect: Callable, data: bytes) -> None:
    client = await connect()
    await client.send(data)

    assert await client.status() in (0, 400, 404, 505)
    other = await connect()
    await other.send(GET + b"\r\n")
    assert await other.status() == 200, "other connections work"
