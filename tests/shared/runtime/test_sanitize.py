"""Escapes of characters that act on a terminal or a page."""

import json
import unicodedata

import pytest

from stagebus.shared.runtime.sanitize import reveal, sanitize

BIDI = [chr(code) for code in range(0x10000) if unicodedata.bidirectional(chr(code)) in
        ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")] + ["\u061c", "\u200e", "\u200f"]  # fmt: skip
CONTROLS = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")]


@pytest.mark.parametrize("shown", [sanitize, reveal])
def test_no_control_is_left(shown) -> None:
    text = shown("".join([*BIDI, *CONTROLS]))

    assert text.isascii()
    assert text.isprintable()


def test_escaped_json_means_the_same() -> None:
    value = " ".join([*BIDI, *CONTROLS, "\U000e0041\u200b"])  # apart, or two surrogates would become one character
    text = json.dumps(value, ensure_ascii=False)

    assert json.loads(sanitize(text)) == value
    assert json.loads(reveal(text)) == value


def test_text_of_every_script_stays() -> None:
    text = "naïve Привет 日本語 👩\u200d👩\u200d👧 עברית"

    assert sanitize(text) == text


def test_reveal_shows_invisible_characters() -> None:
    assert reveal("to\u200bBob\ufeff\U000e0041\u00a0.") == r"to\u200bBob\ufeff\udb40\udc41\u00a0."
    assert reveal("a\u3164b\u2800\ufe00\U000e0100\u034f") == r"a\u3164b\u2800\ufe00\udb40\udd00\u034f"
    assert reveal("\n\ufe0f", keep="\n") == "\n\\ufe0f"


@pytest.mark.parametrize("shown", [sanitize, reveal])
def test_kept_characters_stay(shown) -> None:
    assert shown("a\n\tb\r", "\n\t") == "a\n\tb\\r"
