import pytest
from starlette.requests import Request

from stagebus.gateway.auth.csrf import is_cross_site, is_same_origin


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": [(b"host", b"bus.example"), *raw]})


@pytest.mark.parametrize(
    ("headers", "cross_site", "same_origin"),
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
def test_csrf_checks_classify_the_origin_of_a_request(
    headers: dict[str, str], cross_site: bool, same_origin: bool
) -> None:
    """`https://app.example` is an allowed origin, but not the same origin, so it cannot use a session."""
    assert is_cross_site(request(**headers), {"https://app.example"}) is cross_site
    assert is_same_origin(request(**headers)) is same_origin
