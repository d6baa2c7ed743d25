import pytest

from stagebus.gateway.server.request_head import BAD_REQUEST, NOT_IMPLEMENTED, VERSION_NOT_SUPPORTED, refusal_of

HOST = (b"host", b"localhost:8000")


@pytest.mark.parametrize(
    ("version", "target", "fields", "status_line"),
    [
        ("1.1", b"/runs?a=b", [HOST, (b"a", b"b")], None),
        ("1.0", b"/", [], None),
        ("1.1", b"*", [HOST], None),
        ("1.1", b"http://LOCALHOST:8000/runs", [HOST], None),
        ("1.1", b"/", [(b"host", b"[::1]:8000"), (b"transfer-encoding", b"Chunked ")], None),
        *(("1.1", b"/", [(b"host", host)], None) for host in (b"", b"a_b.example", b"[fe80::1%25eth0]", b"127.0.0.1:")),
        *((version, b"/", [HOST], VERSION_NOT_SUPPORTED) for version in ("0.9", "2.0", "3.0")),
        ("1.1", b"/", [], BAD_REQUEST),
        *((version, b"/", [HOST, HOST], BAD_REQUEST) for version in ("1.0", "1.1")),
        *(("1.1", b"/", [(b"host", host)], BAD_REQUEST) for host in (b"a b", b"a@b", b"a/b", b"a,b", b"[", b"a:b", b"\xe9")),
        *(
            ("1.1", target, [HOST], BAD_REQUEST)
            for target in (b"http://evil/", b"http://localhost/", b"ftp://localhost:8000/", b"localhost:8000", b"", b"x")
        ),
        ("1.0", b"http://localhost:8000/", [], BAD_REQUEST),
        *(
            ("1.1", b"/", [HOST, *((b"transfer-encoding", value) for value in values)], NOT_IMPLEMENTED)
            for values in ([b"gzip, chunked"], [b""], [b"chunked", b"chunked"])
        ),
    ],
)  # fmt: skip
def test_ambiguous_head_is_refused(version, target, fields, status_line):
    assert refusal_of(version, target, fields) == status_line
