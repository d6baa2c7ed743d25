"""A fold: the pure function from a run's events to the messages of another protocol.

    fold(state, event) -> (state, messages)

A fold gets the events of a run in order, from the first one on. Its messages depend on these events and on `RunFacts`
and on nothing else: no clock, no random number, nothing of the connection. So all readers of a run get the same
messages, and a message's place in their sequence is a position that a client can resume from, at any gateway.

    class TextFold(Fold):
        def on_tool_completion_chunk(self, data: Json, sequence: int) -> list[bytes]:
            return [encode_data(piece.text) for piece in pieces_of(data["tool_results"])]

The state of a fold is bounded by what the run itself may say: it keeps texts, calls and results of the run's model and
tools, which have limits (`STAGEBUS_MODEL_OUTPUT_MAX_BYTES`, a tool's `max_result_bytes`, the number of rounds), and
never the messages.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

import orjson

from stagebus.shared.domain.events import EVENT_BY_NAME
from stagebus.shared.domain.runs import RunRecord

Json = dict[str, Any]
Messages = list[bytes]

# A last message that is no message: the stream ends there, although the run may continue.
END: Final = b""
NOTHING: Final[Messages] = []

_HANDLER_PREFIX: Final = "on_"


class RunFacts(NamedTuple):
    """The fields of a run's record that never change.

    Attributes:
        created_at: Unix ms.
        model: as in `RunQueued.model`.
        thread_id: as the client named it; empty for a run without a thread.
        parent_run_id: the turn before that the client named, or ROOT; empty if it named none.
    """

    run_id: str
    created_at: int
    model: str
    metadata: dict[str, str]
    thread_id: str = ""
    parent_run_id: str = ""

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """Returns the facts of a run."""
        request = run.request
        metadata, parent = request.get("metadata") or {}, request.get("parent_run_id") or ""
        return cls(run.run_id, run.created_at, run.model, metadata, run.thread_id, parent)


class Fold:
    """The base class of all folds. A subclass has a method `on_<event>` for each event that gives messages.

    A method gets the event's data and sequence, and returns complete server-sent event frames: each is one message.
    """

    _handlers: ClassVar[dict[bytes, Callable[[Any, Json, int], Messages]]] = {}

    def __init_subclass__(cls) -> None:
        handlers = {name: getattr(cls, name) for name in dir(cls) if name.startswith(_HANDLER_PREFIX)}
        cls._handlers = {name.removeprefix(_HANDLER_PREFIX).encode(): method for name, method in handlers.items()}
        unknown = {name.decode() for name in cls._handlers} - EVENT_BY_NAME.keys()
        assert not unknown, f"{cls.__name__} handles events that do not exist: {unknown}"

    def __init__(self, run: RunFacts) -> None:
        self.run = run

    def add(self, event_id: bytes, name: bytes, data: bytes) -> Messages:
        """Folds the next event and returns its messages. Events without a method give none."""
        handler = self._handlers.get(name)
        if handler is None:
            return NOTHING
        return handler(self, orjson.loads(data), int(event_id[event_id.index(b"-") + 1 :]))


F_co = TypeVar("F_co", bound=Fold, covariant=True)


class FoldKey(NamedTuple):
    """Folds with equal keys give equal messages, so clients share them."""

    run_id: str
    fold: str
    options: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class FoldSource(Generic[F_co]):
    """Creates folds of one run.

    Args:
        fold: the class of the folds.
        options: further arguments of the class, if its messages depend on what a client asked for.
    """

    run: RunFacts
    fold: type[F_co]
    options: tuple[Hashable, ...] = ()

    def new(self) -> F_co:
        """Returns a fold at the start of the log."""
        return self.fold(self.run, *self.options)

    @property
    def key(self) -> FoldKey:
        """Returns the key under which the folds are shared."""
        return FoldKey(self.run.run_id, self.fold.__name__, self.options)


class FrameTemplate:
    """A frame of which only a text and, if it has one, a number change: encoding one takes a third of the time.

    Args:
        frame: a frame in which the text is empty and the number is 0.
        text: the name of the text's field.
        number: the name of the number's field, which comes before the text.
    """

    __slots__ = ("_template",)

    def __init__(self, frame: bytes, text: str, number: str = "") -> None:
        template = frame.replace(b"%", b"%%")
        for name, empty, place in ((number, b"0", b"%d"), (text, b'""', b"%b")):
            if name:
                field = b'"%b":' % name.encode()
                assert template.count(field + empty) == 1
                template = template.replace(field + empty, field + place)
        self._template = template

    def encode(self, text: str, *number: int) -> bytes:
        """Returns the frame."""
        return self._template % (*number, orjson.dumps(text))


def encode_data(message: Any) -> bytes:
    """Encodes a message as a frame that has only data."""
    return b"data: %b\n\n" % orjson.dumps(message)


def encode_event(message: Json) -> bytes:
    """Encodes a message as a frame whose event is the message's `type`."""
    return b"event: %b\ndata: %b\n\n" % (message["type"].encode(), orjson.dumps(message))
