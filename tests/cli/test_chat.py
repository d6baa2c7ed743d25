"""`stagebus chat`, with a gateway's client replaced."""

from typing import Any, Self

import pytest

from stagebus.cli import chat
from stagebus.cli.profile import Target


class NewThread:
    """A client of a gateway that does not know the thread yet; keeps the arguments with which it was made."""

    made: list[dict[str, Any]]

    def __init__(self, url: str, **options: Any) -> None:
        self.made.append({"url": url, **options})
        self.threads = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, thread_id: str) -> dict[str, Any]:
        raise chat.NotFound(404, {"code": "thread_not_found", "detail": f"there is no thread {thread_id!r}"})


def end_of_input(_: str) -> str:
    raise EOFError


def test_history_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user has threads of their own, so another user's thread of this id would be shown, or none."""
    monkeypatch.setattr(NewThread, "made", [], raising=False)
    monkeypatch.setattr(chat, "Stagebus", NewThread)
    monkeypatch.setattr(chat.Prompt, "is_interactive", staticmethod(lambda: True))
    monkeypatch.setattr("builtins.input", end_of_input)
    target = Target("http://127.0.0.1:8000", "sbk_1", "alice")
    chat.Chat(target, "trip", {}, on_active="enqueue").run()

    assert NewThread.made == [{"url": "http://127.0.0.1:8000", "api_key": "sbk_1", "user": "alice"}]
