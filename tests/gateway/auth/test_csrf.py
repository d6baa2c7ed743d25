import pytest
from starlette.requests import Request

from stagebus.gateway.auth.csrf import is_cross_site, is_same_origin


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": [(b"host", b"bus.example"), *raw]})


@pytest.mark.parametrize(
    ("headers", "foreign", "own"),
    [
        ({}, False, False),  # curl, an SDK
        ({"origin": "https://bus.example"}, False, True),
        ({"origin": "https://bus.example", "sec_fetch_site": "same-origin"}, False, True),
        ({"origin": "https://app.example"}, False, False),
        ({"origin": "https://app.example", "sec_fetch_site": "cross-site"}, False, False),
        ({"origin": "https://evil.example"}, True, False),
        ({"origin": "https://bus.example.evil.example"}, True, False),
        ({"origin": "https://bus.example:8443"}, True, False),
        ({"origin": "null"}, True, False),
        ({"origin": "https://[oops"}, True, False),
        ({"sec_fetch_site": "cross-site"}, True, False),
        ({"sec_fetch_site": "same-site"}, True, False),
        ({"sec_fetch_site": "none"}, False, False),
        ({"sec_fetch_site": "same-origin"}, False, True),
    ],
)
def test_pages_are_told_apart(headers: dict[str, str], foreign: bool, own: bool) -> None:
    """`https://app.example` is allowed; that makes it no page of ours, which could use a session."""
    assert is_cross_site(request(**headers), {"https://app.example"}) is foreign
    assert is_same_origin(request(**headers)) is own
