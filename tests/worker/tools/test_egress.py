"""The guard, with a resolver that says what a test wants and servers that listen on loopback."""

import asyncio
import ssl
import time

import httpx2
import pytest
import trustme

from stagebus.shared.runtime.net import AddressPolicy
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.tools.egress import (
    REDIRECTS_MAX,
    Egress,
    EgressRefused,
    HttpOrigin,
    ResponseTooLong,
    _LimitedStream,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()


@pytest.fixture
async def client():
    """A client for some origins, under a policy, with answers for names."""
    clients = []

    def client(urls, *, allow=(), names=None, max_bytes=10_000, **options):
        async def resolve(host, _port):
            found = names[host]
            return found.pop(0) if isinstance(found[0], list) else found

        egress = Egress(AddressPolicy(allow), max_bytes, resolve if names is not None else None)
        clients.append(egress.client([urls] if isinstance(urls, str) else urls, timeout_s=5, **options))
        return clients[-1]

    yield client
    for each in clients:
        await each.aclose()


@pytest.fixture
async def server(byte_server):
    """A server on loopback and its port."""

    async def serve(answer, **options):
        return int((await byte_server.serve(answer, **options)).rpartition(":")[2])

    return serve


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "localhost", "localhost.", "LOCALHOST",
        "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "0", "[::]", "good.example@127.0.0.1",
    ],
)  # fmt: skip
async def test_loopback_in_any_spelling_is_not_reached(client, server, byte_server, host):
    url = f"http://{host}:{await server(OK)}/"

    with pytest.raises(httpx2.ConnectError):
        await client(url).get(url)
    assert not byte_server.requests


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"], ["169.254.169.254"], ["fd00:ec2::254"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["168.63.129.16"],
        ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"],
    ],
)  # fmt: skip
async def test_host_with_a_private_address_is_refused(client, caplog, addresses):
    with pytest.raises(EgressRefused, match="STAGEBUS_EGRESS_ALLOW") as caught:
        await client("http://evil.example", names={"evil.example": addresses}).get("http://evil.example/")

    assert not [address for address in addresses if address in str(caught.value)]  # a model reads this
    assert "evil.example:80 has the address " in caplog.text


async def test_connection_goes_to_the_address_that_was_checked(client, server, byte_server):
    """The name is not resolved again, since the second answer might differ."""
    port = await server(OK)
    names = {"flip.example": [["127.0.0.1"], ["169.254.169.254"]]}
    url = f"http://flip.example:{port}/"
    guarded = client(url, allow=["127.0.0.1"], names=names)

    assert (await guarded.get(url)).text == "hi"
    assert b"host: flip.example:" in byte_server.requests[0].lower()
    with pytest.raises(EgressRefused):
        await guarded.get(url)


async def test_next_address_is_tried_where_one_does_not_answer(client, server):
    port = await server(OK)
    url = f"http://two.example:{port}/"
    names = {"two.example": ["127.0.0.2", "127.0.0.1"]}

    assert (await client(url, allow=["127.0.0.0/8"], names=names).get(url)).text == "hi"


async def test_hosts_that_were_not_configured_are_refused(client):
    guarded = client("https://api.example/v1", names={})
    for url in (
        "https://api.example.evil.example/", "https://evil.example/", "http://api.example:8080/", "https://api.example:444/",
        "https://api.example@evil.example/", "http://api.example/",
    ):  # fmt: skip
        with pytest.raises(EgressRefused, match="not among the hosts"):
            await guarded.get(url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "not among the hosts"),
        ("http://evil.example/", "not among the hosts"),
        ("//evil.example/", "not among the hosts"),
        ("http://inner.example/", "no public address"),
    ],
)
async def test_redirects_pass_the_same_checks(client, server, status, target, words):
    url = f"http://api.example:{await server(redirect(target, status))}/"
    names = {"api.example": ["127.0.0.1"], "inner.example": ["169.254.169.254"]}
    guarded = client([url, "http://inner.example/"], allow=["127.0.0.1"], names=names)

    with pytest.raises(EgressRefused, match=words):
        await guarded.get(url)


async def test_redirects_are_few(client, server, byte_server):
    url = f"http://127.0.0.1:{await server(redirect('/again'))}/"

    with pytest.raises(httpx2.TooManyRedirects):
        await client(url, allow=["127.0.0.1"]).get(url)
    assert len(byte_server.requests) == REDIRECTS_MAX + 1


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://x/", "http:///x", "http://[::1"])
async def test_redirect_to_no_web_address_is_an_error(client, server, location):
    url = f"http://127.0.0.1:{await server(redirect(location))}/"

    with pytest.raises(httpx2.HTTPError):
        await client(url, allow=["127.0.0.1"]).get(url)


async def test_answer_has_a_limit(client, server):
    long = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 101
    url = f"http://127.0.0.1:{await server(long)}/"

    assert len((await client(url, allow=["127.0.0.1"], max_bytes=101).get(url)).content) == 101
    with pytest.raises(ResponseTooLong, match="longer than 100 bytes"):
        await client(url, allow=["127.0.0.1"], max_bytes=100).get(url)


async def test_event_streams_are_unlimited_for_those_who_read_them(client, server):
    body = b"data: 12\n\ndata: 34\r\n\r\n" * 20
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body
    url = f"http://127.0.0.1:{await server(stream)}/"

    assert (await client(url, allow=["127.0.0.1"], max_bytes=9, event_streams=True).get(url)).content == body
    with pytest.raises(ResponseTooLong):
        await client(url, allow=["127.0.0.1"], max_bytes=9).get(url)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_each_event_has_a_limit_however_it_is_cut(size):
    """The limit counts each event alone and not the whole stream; an endless event is an error."""

    class Cut(httpx2.AsyncByteStream):
        def __init__(self, body):
            self._body = body

        async def __aiter__(self):
            for at in range(0, len(self._body), size):
                yield self._body[at : at + size]

    async def read(body):
        return b"".join([part async for part in _LimitedStream(Cut(body), 20, is_events=True)])

    fine = b"id: 1\ndata: 34567\n\n" * 5 + b": ping\r\n\r\n" + b"data: 1\r\rdata: 2\n\n"
    assert await read(fine) == fine
    for bad in (b"data: " + b"x" * 40, fine + b"data: 1\n" * 8):
        with pytest.raises(ResponseTooLong, match="an event is longer than 20 bytes"):
            await read(bad)


async def test_packed_answer_is_refused_unread(client, server, byte_server):
    """Ten bytes may unpack to a gigabyte."""
    packed = OK.replace(b"connection", b"content-encoding: gzip\r\nconnection")
    url = f"http://127.0.0.1:{await server(packed)}/"

    with pytest.raises(ResponseTooLong, match="compressed"):
        await client(url, allow=["127.0.0.1"]).get(url)
    assert b"accept-encoding: identity" in byte_server.requests[0].lower()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000 + OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 15_000 + b"0\r\n\r\n",
    ],
    ids=["interim responses", "chunks of one byte"],
)
async def test_answer_in_tiny_parts_does_not_hold_the_event_loop(client, server, answer: bytes) -> None:
    """Measured in CPU time: the machine may be busy."""
    pauses = []

    async def others() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            pauses.append(time.thread_time() - before)

    url = f"http://127.0.0.1:{await server(answer)}/"
    task = asyncio.create_task(others())
    response = await client(url, allow=["127.0.0.1"], max_bytes=10**6).get(url)
    await cancel_and_wait(task)

    assert response.status_code == 200
    assert max(pauses) < 0.05


async def test_name_that_cannot_be_resolved_is_a_connection_error(client):
    with pytest.raises(httpx2.ConnectError, match="no address"):
        await client("http://none.example", names={"none.example": [[]]}).get("http://none.example")
    with pytest.raises(httpx2.ConnectError, match="cannot be resolved"):
        await client("http://nowhere.invalid").get("http://nowhere.invalid/")


async def test_proxy_of_the_environment_is_not_used(client, server, byte_server, monkeypatch):
    """A proxy would connect to any address itself, without the check."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{await server(OK)}")

    with pytest.raises(EgressRefused):
        await client("http://evil.example", names={"evil.example": ["10.0.0.1"]}).get("http://evil.example/")
    assert not byte_server.requests


@pytest.fixture
async def tls(monkeypatch, tmp_path):
    """A TLS server for a name; what names clients ask for."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    servers, asked = [], []

    async def serve(name):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        context.sni_callback = lambda _socket, server_name, _context: asked.append(server_name)

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()
            writer.close()

        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context))
        return servers[-1].sockets[0].getsockname()[1]

    yield serve, asked
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_tls_verifies_the_name_and_not_the_address(client, tls):
    serve, asked = tls
    names = {"api.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    port = await serve("api.example")
    urls = [f"https://{name}:{port}/" for name in names]
    guarded = client(urls, allow=["127.0.0.1"], names=names)

    assert (await guarded.get(urls[0])).text == "hi"
    with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
        await guarded.get(urls[1])
    assert asked == ["api.example", "other.example"]


@pytest.mark.parametrize("url", ["", "ftp://x/", "x", "http://", "http:///path", "http://\x00/"])
def test_invalid_url_makes_no_client(client, url):
    with pytest.raises(ValueError, match="URL"):
        client(url)


def test_site_may_lead_to_its_own_tls():
    assert HttpOrigin.of("http://a.example").upgraded() == HttpOrigin.of("https://A.example./x")
    assert HttpOrigin.of("http://a.example:81").upgraded() == HttpOrigin.of("http://a.example:81")
