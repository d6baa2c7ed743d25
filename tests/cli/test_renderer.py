"""Rendering of a run's events for terminal and pipe."""

import io

import pytest

from stagebus.cli.formatting import excerpt
from stagebus.cli.renderer import Renderer
from stagebus.client import RunEvent


def shown(*events: tuple[str, dict]) -> tuple[str, str]:
    """Render events; return stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    renderer = Renderer(out, err)
    for sequence, (event, data) in enumerate(events, 1):
        renderer.show(RunEvent(f"1-{sequence}", event, data))
    return out.getvalue(), err.getvalue()


def chunk(text: str | None, stage_id: str = "extraction") -> tuple[str, dict]:
    return "tool_completion_chunk", {"stage_id": stage_id, "tool_results": {"choices": [{"delta": {"content": text}}]}}


CALL = ("tool_call", {"stage_id": "tools", "call_id": "c", "name": "get_weather", "arguments": '{"city":"Paris"}'})
RESULT = {"stage_id": "tools", "call_id": "c", "name": "get_weather", "content": "18 °C", "duration_ms": 312}


def test_text_goes_to_stdout_and_everything_else_to_stderr() -> None:
    out, err = shown(
        ("run_queued", {"stage_id": "run"}),
        chunk("I look "),
        chunk(None),
        chunk("it up."),
        CALL,
        ("tool_result", RESULT),
        chunk("It is ", "synthesis"),
        chunk("18 °C.", "synthesis"),
        ("done", {"stage_id": "run", "usage": {"total_tokens": 42, "cost": {"amount": 0.00123, "currency": "EUR"}}}),
    )

    assert out == "I look it up.\nIt is 18 °C.\n"
    assert err == 'get_weather {"city":"Paris"}\nget_weather: 18 °C  (0.3 s)\ndone: 1 call, 42 tokens, 0.00123 EUR\n'


def test_note_does_not_split_piped_text() -> None:
    """Such as the note of a lost connection during `stagebus run … > answer`."""
    out = io.StringIO()
    renderer = Renderer(out, io.StringIO())
    renderer.show(RunEvent("1-1", *chunk("In Pa")))
    renderer.note("lost the stream")
    renderer.show(RunEvent("1-2", *chunk("ris.")))
    renderer.close()

    assert out.getvalue() == "In Paris.\n"


def test_note_at_a_terminal_starts_a_line() -> None:
    out = Terminal()
    renderer = Renderer(out, io.StringIO())
    renderer.show(RunEvent("1-1", *chunk("In Pa")))
    renderer.note("lost the stream")

    assert out.getvalue() == "In Pa\n"


def test_chunk_without_choices_writes_no_text() -> None:
    assert shown(("tool_completion_chunk", {"stage_id": "extraction", "tool_results": {"usage": {}}}))[0] == ""


PROGRESS = ("tool_progress", {"stage_id": "tools", "call_id": "c", "message": "found\nthe place", "fraction": 0.254})


def test_progress_in_a_pipe_is_a_line() -> None:
    without_fraction = ("tool_progress", {"stage_id": "tools", "call_id": "c", "message": "on"})

    assert shown(CALL, PROGRESS, without_fraction)[1].splitlines()[1:] == [
        "get_weather: 25 % found the place",
        "get_weather: on",
    ]


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line_is_removed_before_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    renderer = Renderer(io.StringIO(), err)
    for event, data in (("stage_started", {"stage_id": "tools"}), CALL, PROGRESS):
        renderer.show(RunEvent("1-1", event, data))
    renderer._status._live.refresh()  # as its thread does eight times per second
    before = len(err.getvalue())
    renderer.show(RunEvent("1-2", "tool_result", RESULT))

    assert HIDE in err.getvalue()[:before]
    assert "tools  get_weather: 25 % found the place  0.0 s" in err.getvalue()[:before]
    _, shown, note = err.getvalue()[before:].rpartition(SHOW)
    assert (shown, note) == (SHOW, "\r\x1b[1A\x1b[2Kget_weather: 18 °C  (0.3 s)\n")


def test_no_color_removes_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    def note() -> str:
        err = Terminal()
        Renderer(io.StringIO(), err).show(RunEvent("1-1", "error", {"error": "[red]broken[/]"}))
        return err.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert note() == "\x1b[1;31merror: [red]broken[/]\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert note() == "error: [red]broken[/]\n"


def test_failed_call_is_marked() -> None:
    assert "get_weather failed: 18" in shown(("tool_result", {**RESULT, "is_error": True}))[1]


@pytest.mark.parametrize(
    ("event", "data", "line"),
    [
        ("error", {"stage_id": "run", "error": "the model is away", "code": "x"}, "error: the model is away\n"),
        ("cancel", {"stage_id": "run"}, "cancelled\n"),
        ("done", {"stage_id": "run"}, "done: 0 tokens\n"),
        ("gap", {"requested": "5-9", "earliest": "0-1", "latest": "0-4"},
         "event 5-9 is not in the run's log; the events from 0-1 on follow\n"),
        ("done", {"stage_id": "run", "merged_into": {"run_id": "R2", "event_id": "5-9"}},
         "the message joined run R2\n"),
        ("history_composed", {"stage_id": "run", "turns": 2, "messages": 4, "bytes": 9, "cut_turns": 0}, ""),
        ("history_composed", {"stage_id": "run", "turns": 2, "messages": 4, "bytes": 9, "cut_turns": 3},
         "the model does not see 3 earlier turns of the thread\n"),
        ("message_added", {"stage_id": "run", "run_id": "R2", "before": "synthesis",
                           "messages": [{"role": "user", "content": "And in Rome?"}]},
         "a message joins before synthesis: And in Rome?\n"),
        ("retry_scheduled", {"stage_id": "run", "retry_of": "synthesis", "retry": 1, "backoff_s": 0.52,
         "reason": "overloaded"}, "synthesis is retried in 0.5 s: overloaded\n"),
    ],
)  # fmt: skip
def test_run_event_is_a_line(event: str, data: dict, line: str) -> None:
    assert shown((event, data)) == ("", line)


def test_restarted_stage_says_to_ignore_its_text() -> None:
    restarted = ("stage_restarted", {"stage_id": "synthesis", "attempt": 9, "discard_from": 0})

    assert shown(restarted)[1] == "synthesis starts again\n"
    assert shown(chunk("In P", "synthesis"), restarted) == (
        "In P\n",
        "synthesis starts again; ignore its text above\n",
    )


def test_resumed_stage_discards_nothing() -> None:
    """Such as tools after a decision or a crash."""
    assert shown(("stage_restarted", {"stage_id": "tools", "attempt": 9, "discard_from": 1}))[1] == "tools resumes\n"


def test_control_characters_do_not_reach_the_terminal() -> None:
    out, err = shown(
        chunk("\x1b]0;title\x07a\u202eb\r\nc\td"), ("tool_result", {**RESULT, "content": "\x1b[2J\nx\x9b1m"})
    )

    assert out == r"\u001b]0;title\u0007a\u202eb\r" + "\nc\td"
    assert r"\u001b[2J x\u009b1m" in err


def test_excerpt_is_one_short_line() -> None:
    assert excerpt("a\n  b\tc") == "a b c"
    assert excerpt("x" * 1000) == "x" * 159 + "…"
