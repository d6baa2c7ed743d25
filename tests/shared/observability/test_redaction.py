"""Masking of secrets."""

import base64
import json
import re
import time
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


TOKEN = 'aB3/x+Y=z-9"Q~'


@pytest.mark.parametrize(
    "form",
    [
        "".join(c if c.isalnum() else f"%{ord(c):02x}" for c in TOKEN),
        quote(quote(TOKEN, safe=""), safe=""),
        json.dumps(TOKEN).replace("/", "\\/"),
        json.dumps(json.dumps(TOKEN).replace("/", "\\/")),
        json.dumps(TOKEN).replace("+", "\\u002B"),
        TOKEN.replace("/", "&#x2F;").replace("+", "&#43;").replace('"', "&quot;"),
        *(base64.b64encode(before + TOKEN.encode()).decode() for before in (b"", b"user:", b"a:", b"us:")),
        base64.urlsafe_b64encode(b"a:" + TOKEN.encode()).decode(),
    ],
)
def test_known_secret_is_masked_as_other_programs_write_it(form: str) -> None:
    redaction = Redaction()
    redaction.remember(TOKEN)
    masked = redaction.redact(f"before {form} after")

    assert MASK in masked
    assert not re.search("aB3|YUIzL|QjMveC|hQjMve", masked)


def test_masking_takes_linear_time() -> None:
    redaction = Redaction()
    redaction.remember("-secret-")
    began = time.process_time()
    for hostile in ("\\", "%25", "%3A%2F%2Fa", "://a", "authorization", "Authorization: ", "&#0", "=eyJ"):
        assert redaction.redact(hostile * (50_000 // len(hostile)))
    assert time.process_time() - began < 2


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
        ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer ***"),
        ("{'x-api-key': 'made-up-key'}", "{'x-api-key': '***'}"),
        (r'{"a": "\nAuthorization: made-up-key\n"}', r'{"a": "\nAuthorization: ***\n"}'),
        (rf'"line\n{API_KEY}"', r'"line\nsbk_3f9c0a5d77e1_***"'),
        (f"a%3D{API_KEY}", "a%3Dsbk_3f9c0a5d77e1_***"),
        (rf'"line\nticket {JWT}"', r'"line\nticket eyJ***"'),
        ("/x?API_KEY=made-up&b=2", "/x?API_KEY=***&b=2"),
        ("redis%3A%2F%2Fu%3Ap%2540ss%40redis%3A6379", "redis%3A%2F%2F***%40redis%3A6379"),
        (r'"redis:\/\/:pass@redis"', r'"redis:\/\/***@redis"'),
        (f"Basic {base64.b64encode(b'user:password').decode()}", "Basic ***"),
        ("rediss://user:p@ss@redis:6379/0", "rediss://***@redis:6379/0"),
        ("https://token@host/a", "https://***@host/a"),
        ("mail me@example.org, see https://example.org/@me", "mail me@example.org, see https://example.org/@me"),
        ("Bearer authentication is required", "Bearer authentication is required"),
    ],
)
def test_credential_is_masked_by_its_form(text: str, masked: str) -> None:
    assert redact(text) == masked
