"""Masking of secrets."""

import base64
from urllib.parse import quote

import pytest

from stagebus.shared.observability.redaction import MASK, Redaction, redact

SECRET = "p@ss w\u00f6rd/'x\\y"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJydW4iOiIwMSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
API_KEY = "sbk_3f9c0a5d77e1_Zr0vAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize("form", [SECRET, quote(SECRET, safe=""), quote(SECRET), repr(SECRET), repr({"k": SECRET})])
def test_known_secret_is_masked_in_every_form(form: str) -> None:
    redaction = Redaction()
    redaction.remember(SECRET)
    masked = redaction.redact(f"before {form} after")

    assert MASK in masked
    assert "rd" not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


def test_token_of_a_header_is_masked_without_its_scheme() -> None:
    redaction = Redaction()
    redaction.remember("Bearer secret-token")

    assert redaction.redact("got secret-token") == f"got {MASK}"


def test_longer_secret_is_masked_as_a_whole() -> None:
    redaction = Redaction()
    redaction.remember("secret", "secret-and-more")

    assert redaction.redact("secret-and-more secret") == f"{MASK} {MASK}"


def test_short_value_does_not_blank_out_the_log() -> None:
    redaction = Redaction()
    redaction.remember("", "demo")

    assert redaction.redact("the demo model") == "the demo model"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"key {API_KEY} is unknown", "key sbk_3f9c0a5d77e1_*** is unknown"),
        (f"ticket {JWT}.", "ticket eyJ***."),
        (f"/events?a=1&ticket={JWT}&b=2", "/events?a=1&ticket=***&b=2"),
        ("?ticket=made-up", "?ticket=***"),
        ("Authorization: Bearer abcdefghijklmn0p", "Authorization: Bearer ***"),
        (f"Basic {base64.b64encode(b'user:password').decode()}", "Basic ***"),
        ("rediss://user:p@ss@redis:6379/0", "rediss://***@redis:6379/0"),
        ("https://token@host/a", "https://***@host/a"),
        ("mail me@example.org, see https://example.org/@me", "mail me@example.org, see https://example.org/@me"),
        ("Bearer authentication is required", "Bearer authentication is required"),
    ],
)
def test_credential_is_masked_by_its_form(text: str, masked: str) -> None:
    assert redact(text) == masked
