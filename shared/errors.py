"""Every error that Stagebus raises on purpose. Each carries its own consequences.

`code` is stable and part of the HTTP API; `status_hint` is what the gateway answers
when nothing nearer handles the error; `retryable` says whether the same call may be
made again. The message is safe to show to a client.
"""

from typing import ClassVar, Final

# Names of models that a message lists; GET /models has them all.
MODELS_SHOWN_MAX: Final = 20


class StagebusError(Exception):
    """The root of the hierarchy."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status_hint: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


# --- asked for by a client ---------------------------------------------------


class InvalidRequest(StagebusError):
    """The request's body or parameters do not hold; `errors` names each field."""

    code = "invalid_request"
    title = "Invalid request"
    status_hint = 422

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class BadJson(StagebusError):
    """The body is no JSON object."""

    code = "bad_json"
    title = "Body is not a JSON object"
    status_hint = 400


class BodyTooLarge(StagebusError):
    """The body is longer than `body_max_bytes`."""

    code = "body_too_large"
    title = "Body too large"
    status_hint = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body may have at most {limit_bytes} bytes; shorten the messages")


class UnsupportedMediaType(StagebusError):
    """The body is declared as something other than plain JSON."""

    code = "unsupported_media_type"
    title = "Unsupported media type"
    status_hint = 415

    def __init__(self) -> None:
        super().__init__("send the body as application/json, not compressed")


class BadCursor(StagebusError):
    """A Last-Event-ID that is no event id at all."""

    code = "bad_cursor"
    title = "Bad cursor"
    status_hint = 400

    def __init__(self) -> None:
        super().__init__("a cursor is an event id such as 5204-118, or 0 for the start")


class BadIdempotencyKey(StagebusError):
    """An Idempotency-Key that cannot be one."""

    code = "bad_idempotency_key"
    title = "Bad Idempotency-Key"
    status_hint = 400

    def __init__(self) -> None:
        super().__init__("an Idempotency-Key has 1 to 255 visible ASCII characters")


class RunNotFound(StagebusError):
    """No such run, or its retention is over."""

    code = "run_not_found"
    title = "Run not found"
    status_hint = 404

    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is no run {run_id[:64]!r}; it never was, or its retention is over")


class StageNotFound(StagebusError):
    """A stage that no run can have."""

    code = "stage_not_found"
    title = "Stage not found"
    status_hint = 404

    def __init__(self, stage_id: str) -> None:
        super().__init__(f"no run has a stage {stage_id[:64]!r}; stages are run, extraction, tools and synthesis")


class ApprovalNotFound(StagebusError):
    """The run has never asked a person about a call of that id."""

    code = "approval_not_found"
    title = "Nothing was asked about this call"
    status_hint = 404

    def __init__(self, run_id: str, call_id: str) -> None:
        super().__init__(
            f"run {run_id} asks nobody about a call {call_id[:64]!r}; GET /runs/{run_id} has its pending_approvals"
        )


class ApprovalConflict(StagebusError):
    """The call was decided in another way before. The first decision stands."""

    code = "approval_conflict"
    title = "Decided in another way"
    status_hint = 409

    def __init__(self, call_id: str, standing: str) -> None:
        super().__init__(f"call {call_id[:64]!r}: {standing}; the first decision stands")


class IdempotencyConflict(StagebusError):
    """The key was used before, with another body."""

    code = "idempotency_conflict"
    title = "Idempotency-Key was used with another body"
    status_hint = 422

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key made a run from another body; use a new key for a new run")


# --- of the log and the lease ------------------------------------------------


class Fenced(StagebusError):
    """A newer attempt owns the run. The producer must stop, not retry."""

    code = "fenced"
    title = "A newer attempt owns the run"
    status_hint = 409

    def __init__(self, run_id: str, attempt: int) -> None:
        super().__init__(f"run {run_id}: attempt {attempt} no longer owns it")


class RunEnded(StagebusError):
    """A terminal event stands, or the run is gone: nothing is ever appended after it."""

    code = "run_ended"
    title = "The run has ended"
    status_hint = 409

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} has ended")


class TailLost(StagebusError):
    """The log is shorter than the producer can mend: the worker claims anew and takes up from the log."""

    code = "tail_lost"
    title = "The log lost its tail"
    status_hint = 503
    retryable = True

    def __init__(self, run_id: str, last_id: str) -> None:
        super().__init__(f"run {run_id}: the log ends at {last_id}, before what this attempt can send again")


# --- of what Stagebus stands on ----------------------------------------------


class StorageUnavailable(StagebusError):
    """Redis does not answer."""

    code = "storage_unavailable"
    title = "Storage unavailable"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("Redis does not answer at the moment; nothing was lost, try again")


class StorageFull(StagebusError):
    """Redis has reached its maxmemory and may not evict."""

    code = "storage_full"
    title = "Storage full"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("Redis is at its memory limit, so no new run can be taken; try again later")


class StorageUnfit(StagebusError):
    """The Redis server cannot carry Stagebus: too old, or set to evict keys."""

    code = "storage_unfit"
    title = "Storage unfit"


class BadTool(StagebusError):
    """A tool that the settings name cannot be offered. The worker does not start."""

    code = "bad_tool"
    title = "Bad tool"


class BadProviders(StagebusError):
    """The providers file does not hold. The process does not start."""

    code = "bad_providers"
    title = "Bad providers file"


class KeyMissing(StagebusError):
    """A key is not where its file says. The message is for the log, and never holds a key."""

    code = "key_missing"
    title = "Key missing"


class Draining(StagebusError):
    """This process is shutting down."""

    code = "draining"
    title = "Shutting down"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("this gateway is shutting down; ask again, another one answers")


# --- of a run: these end it with an `error` event ----------------------------


class RunFailed(StagebusError):
    """The run cannot go on. The message is the text of its `error` event."""

    code = "run_failed"
    title = "Run failed"


class LogIncomplete(RunFailed):
    """A part of the log that the run rests on is gone, or Redis takes nothing more for it."""

    def __init__(self) -> None:
        super().__init__("a part of the run's log was lost, and it cannot go on without it")


class RunTimeout(RunFailed):
    """The run's own time limit."""

    code = "run_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the run did not end within its timeout_s of {limit_s:g} s")


class UnknownTools(RunFailed):
    """The request names tools that this worker does not have."""

    code = "unknown_tools"

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"no such tools: {', '.join(name[:64] for name in names)}; GET /tools lists those that there are"
        )


class UnknownModel(RunFailed):
    """The request names a model that no provider serves."""

    code = "unknown_model"

    def __init__(self, name: str, served: list[str]) -> None:
        listed = ", ".join(served[:MODELS_SHOWN_MAX]) + (" …" if len(served) > MODELS_SHOWN_MAX else "")
        super().__init__(f"no provider serves a model {name[:64]!r}; there are: {listed} (GET /models lists them)")


class AttemptsExhausted(RunFailed):
    """The run's workers died too often."""

    code = "attempts_exhausted"

    def __init__(self, tries: int) -> None:
        super().__init__(f"the run's worker died {tries} times; it is not tried again")


class QueueTimeout(RunFailed):
    """No worker took the run in time."""

    code = "queue_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no worker took the run within {limit_s:g} s")


class ModelError(RunFailed):
    """The provider failed; `retry_after_s` is its own wish."""

    code = "model_error"

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ModelUnavailable(ModelError):
    """Refused, overloaded, cut or silent: worth another try."""

    code = "model_unavailable"
    retryable = True


class ModelRejected(ModelError):
    """The provider will not answer this request, however often it is asked."""

    code = "model_rejected"


class ModelUnauthorized(ModelError):
    """The operator's key is not accepted."""

    code = "model_unauthorized"


class ModelOutputTooLong(ModelError):
    """The model does not stop."""

    code = "model_output_too_long"


# --- of the command line -----------------------------------------------------


class ChildFailed(StagebusError):
    """A process that `stagebus up` needs does not run."""


class PortTaken(StagebusError):
    """A process cannot listen where a setting says."""

    def __init__(self, setting: str, host: str, port: int, reason: str) -> None:
        super().__init__(f"{setting}: cannot listen on {host}, port {port}: {reason}")
