"""Reasoning in the text, and text that only mentions reasoning."""

import time

import pytest

from stagebus.shared.model_text.reasoning_text import split_reasoning


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("plain", ("plain", "")),
        ("<think>\nHm.\n</think>\n\nYes.", ("Yes.", "Hm.")),
        ("<think></think>Yes.", ("Yes.", "")),
        ("<think>Hm.</think><think>So.</think>Yes.", ("Yes.", "Hm.\nSo.")),
        ("<think>cut off", ("", "cut off")),
        ("Hm.\n</think>\n\nYes.", ("Yes.", "Hm.")),
        ("The tag </think> ends thoughts.", ("The tag </think> ends thoughts.", "")),
        ("Use <think>.\n</think>\nSo.", ("Use <think>.\n</think>\nSo.", "")),
        ("\n<think>\n\n</think>\n\nYes.", ("Yes.", "")),
        ("<think>Hm, <think>deeper</think> and out</think>Yes.", ("Yes.", "Hm, <think>deeper</think> and out")),
        ("<think>They ask what <think> is.</think>A tag.", ("A tag.", "They ask what <think> is.")),
        ("<think>What is <think>?\n</think>\n\nA </think> closes it.", ("A </think> closes it.", "What is <think>?")),
        ("<think>a <think> b", ("", "a <think> b")),
        ("Hm.</think>\n\nYes.", ("Yes.", "Hm.")),
        ("The answer is 391</think>391", ("391", "The answer is 391")),
        ("Say '</think>', or (</think>), or x=</think>.", ("Say '</think>', or (</think>), or x=</think>.", "")),
        ("</think>Yes.", ("Yes.", "")),
        ("\n</think>\n\nYes.", ("Yes.", "")),
        ("Hm\n</think>Yes.", ("Yes.", "Hm")),
        ("```html\n<b>\n</think>\n</b>\n```", ("```html\n<b>\n</think>\n</b>\n```", "")),
        ("It ends with `\\n</think>`.", ("It ends with `\\n</think>`.", "")),
        ("```py\nx = '<think>'\n```\n", ("```py\nx = '<think>'\n```\n", "")),
        ("<thinking>Hm.</thinking>\nYes.", ("Yes.", "Hm.")),
        ("<thinking> is a tag.", ("<thinking> is a tag.", "")),
        ("<thought>Hm.</thought>Yes.", ("Yes.", "Hm.")),
        ("<mm:think>Hm.</mm:think>Yes.", ("Yes.", "Hm.")),
        ("<seed:think>Hm.</seed:think>Yes.", ("Yes.", "Hm.")),
        ("[THINK]Hm.[/THINK]Yes.", ("Yes.", "Hm.")),
        ("◁think▷Hm.◁/think▷Yes.", ("Yes.", "Hm.")),
        ("<|START_THINKING|>Hm.<|END_THINKING|>Yes.", ("Yes.", "Hm.")),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            ("Yes.", "Hm."),
        ),
        ("<|channel|>analysis<|message|>Hm", ("", "Hm")),
        ("<|channel|> is a token.", ("<|channel|> is a token.", "")),
    ],
)
def test_reasoning_is_split_from_text(text, split):
    assert split_reasoning(text) == split


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
    ],
)
def test_harmony_calls_become_hermes_calls(header):
    text = f'<|start|>assistant<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{header}{{"a": 1}}<|call|>'

    assert split_reasoning(text) == ('<tool_call>{"name": "functions.f", "arguments": {"a": 1}}</tool_call>', "Hm.")


@pytest.mark.parametrize(
    "text",
    [
        "<think></think>" * 60_000,
        "<think>" + "<think>x</think>" * 60_000,
        "<think>" * 100_000,
        "<|channel|>x" + " " * 2_000,
        "<|start|>" + "a" * 100_000,
        "<|channel|>analysis<|message|>" * 30_000,
        "\n</think>`" * 60_000,
        "`" * 300_000 + "</think>",
        "\n```" * 60_000 + "x</think>",
        "\n" * 300_000 + "</think",
    ],
    ids=lambda text: text[:20],
)
def test_hostile_text_takes_linear_time(text):
    """A worker's and a gateway's event loop wait for it."""
    started = time.process_time()
    split_reasoning(text)

    assert time.process_time() - started < 0.5
