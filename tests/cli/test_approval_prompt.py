"""Approvals at a terminal: what the person sees is what runs, and only a whole word approves."""

import asyncio
import io
import json
import sys
from pathlib import Path

import pytest

from stagebus.cli.approval_arguments import argument_lines, parse_arguments
from stagebus.cli.approval_prompt import ApprovalPrompt
from stagebus.cli.exit_codes import UsageError
from stagebus.cli.renderer import Renderer
from stagebus.client import RunEvent

LONG = json.dumps({"note": "x" * 300, "list": list(range(200)), "amount": 1000000})


class Run:
    """Records the decisions of a run with one pending call."""

    id = "01J"

    def __init__(self) -> None:
        self.decisions: list[tuple] = []

    async def get(self) -> dict:
        return {"pending_approvals": [{"call_id": "c"}]}

    async def approve(self, call_id: str, arguments: dict | None = None) -> None:
        self.decisions.append(("approve", arguments))

    async def deny(self, call_id: str, reason: str | None = None) -> None:
        self.decisions.append(("deny", reason))


class Answers:
    """Answers each question with the next answer, and records the lines shown before it."""

    def __init__(self, shown: io.StringIO, *answers: str | None) -> None:
        self._shown = shown
        self._answers = list(answers)
        self.seen: list[str] = []
        self.questions: list[str] = []

    async def ask(self, question: str) -> str | None:
        self.questions.append(question)
        self.seen.append(self._shown.getvalue())
        self._shown.truncate(0)
        self._shown.seek(0)
        return self._answers.pop(0)


async def decide(arguments: str, *answers: str | None) -> tuple[list[tuple], Answers, str]:
    """Ask about a call. Return the decisions, the questions, and what was shown last."""
    err = io.StringIO()
    run, prompt = Run(), Answers(err, *answers)
    may_show = asyncio.Event()
    asking = ApprovalPrompt(run, Renderer(io.StringIO(), err, shows_arguments=False), prompt, may_show)
    asking.handle(RunEvent("1-1", "approval_required", {"call_id": "c", "name": "pay", "arguments": arguments}))
    await asking._task
    return run.decisions, prompt, err.getvalue()


@pytest.mark.parametrize("word", ["a", "approve", "y", "yes", "YES"])
async def test_whole_word_approves(word: str) -> None:
    assert (await decide("{}", word))[0] == [("approve", None)]


@pytest.mark.parametrize("word", ["abort", "any", "ab", "yep", "yesterday", "denied", "none", "exit", "?"])
async def test_any_other_word_decides_nothing(word: str) -> None:
    decisions, prompt, said = await decide("{}", word, "")

    assert decisions == []
    assert len(prompt.questions) == 2
    assert "nothing was decided" in prompt.seen[1]
    assert "later: stagebus approve 01J c" in said


@pytest.mark.parametrize("word", ["d", "deny", "n", "no"])
async def test_denial_takes_a_reason(word: str) -> None:
    assert (await decide("{}", word, "too much"))[0] == [("deny", "too much")]


async def test_whole_arguments_are_shown_page_by_page_before_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    pages = -(-len(argument_lines(LONG, 80)) // 20)
    decisions, prompt, _ = await decide(LONG, *[""] * (pages - 1), "a")

    assert decisions == [("approve", None)]
    assert all("Return shows them" in question for question in prompt.questions[:-1])
    assert "pprove" in prompt.questions[-1]
    assert max(len(page.splitlines()) for page in prompt.seen) == 20
    shown = "".join(line[2:] for page in prompt.seen for line in page.splitlines())
    assert json.loads(shown) == json.loads(LONG)


async def test_call_stays_pending_if_its_arguments_were_not_seen_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "24")
    for answer in ("l", "a", None):
        decisions, prompt, _ = await decide(LONG, answer)
        assert decisions == []
        assert len(prompt.questions) == 1


async def test_edit_begins_with_the_arguments_and_asks_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "editor.py"
    program.write_text(
        "import pathlib, sys\n"
        "file = pathlib.Path(sys.argv[-1])\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).write_text(file.read_text())\n"
        "file.write_text(file.read_text().replace('993', '995'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {program} --wait")
    decisions, prompt, _ = await decide('{"n": 9007199254740993, "to": "\u202e"}', "edit", "yes")

    assert (tmp_path / "begun").read_text() == r'{ "n": 9007199254740993, "to": "\u202e" }'
    assert decisions == [("approve", {"n": 9007199254740995, "to": "\u202e"})]
    assert "9007199254740995" in prompt.seen[1], "the changed arguments are shown before the question"


@pytest.mark.parametrize(
    ("editor", "said"),
    [
        ("false", "ended with code 1"),
        ("/no/such/editor", "cannot be started"),
        ("sh -c 'echo [ >$0'", "not valid JSON"),
    ],
)
async def test_failed_edit_changes_nothing(monkeypatch: pytest.MonkeyPatch, editor: str, said: str) -> None:
    monkeypatch.setenv("VISUAL", editor)
    decisions, prompt, _ = await decide('{"n": 1}', "e", "a")

    assert said in prompt.seen[1]
    assert decisions == [("approve", None)]


async def test_no_editor_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.setattr("stagebus.cli.editor.shutil.which", lambda _: None)

    assert "set EDITOR" in (await decide("{}", "e", "d", ""))[1].seen[1]


def test_lines_show_controls_exact_numbers_and_duplicate_keys() -> None:
    text = '{"amount": 1, "amount": 9007199254740993, "to": "\u202eecila\\u001b[2J"}'
    lines = argument_lines(text)

    assert [line.strip() for line in lines] == [
        "{",
        '"amount": 1,',
        '"amount": 9007199254740993,',
        r'"to": "\u202eecila\u001b[2J"',
        "}",
        '! the key "amount" occurs twice; the last value counts',
    ]


def test_wide_characters_fit_the_window() -> None:
    lines = argument_lines(json.dumps({"a": "日本語" * 50}, ensure_ascii=False), 40)

    assert len(lines) > 7
    assert all(len(line.encode("gbk")) <= 40 for line in lines)


def test_pipe_shows_the_whole_arguments() -> None:
    err = io.StringIO()
    data = {"call_id": "c", "name": "pay", "arguments": LONG}
    Renderer(io.StringIO(), err).show(RunEvent("1-1", "approval_required", data))

    head, *lines = err.getvalue().splitlines()
    assert head == "pay waits for approval: call c"
    assert json.loads("".join(lines)) == json.loads(LONG)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "must be a JSON object"), ('{"a": 1, "a": 2}', "'a' twice"), ('{"a": NaN}', "NaN"), ('{"a": 1e999}', "too large"),
     ("[" * 99_999, "not valid JSON"), ("", "not valid JSON")],
)  # fmt: skip
def test_unclear_arguments_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_arguments(text)


def test_large_integers_are_kept() -> None:
    assert parse_arguments('{"n": 123456789012345678901234567890}') == {"n": 123456789012345678901234567890}
