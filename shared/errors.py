"""The errors that Stagebus raises on purpose. The docstrings of those with a code are shown in docs/http-api.md.

`code` is stable and part of the HTTP API. `status_hint` is the HTTP status if no handler catches the error.
`retryable` says whether the same call may be repeated. The message is safe to show to a client.
"""

from typing import ClassVar, Final

# The most model names that a message lists; GET /models lists all.
MODELS_SHOWN_MAX: Final = 20


class StagebusError(Exception):
    """An unexpected error. Its cause is in the log, under the request's `X-Request-ID`."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status_hint: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


# --- requests ----------------------------------------------------------------


class InvalidRequest(StagebusError):
    """The body or the parameters of the request are invalid; `errors` names each field."""

    code = "invalid_request"
    title = "Invalid request"
    status_hint = 422

    def __init__(self, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.errors = errors or []


class BadJson(StagebusError):
    """The body is not a JSON object."""

    code = "bad_json"
    title = "Body is not a JSON object"
    status_hint = 400


class BodyTooLarge(StagebusError):
    """The body is longer than `body_max_bytes`."""

    code = "body_too_large"
    title = "Body too large"
    status_hint = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is longer than the limit of {limit_bytes} bytes; shorten the messages")


class UnsupportedMediaType(StagebusError):
    """The `Content-Type` is not JSON, or the body is compressed."""

    code = "unsupported_media_type"
    title = "Unsupported media type"
    status_hint = 415

    def __init__(self) -> None:
        super().__init__("send the body as application/json, not compressed")


class BadCursor(StagebusError):
    """The `Last-Event-ID` is not an event id."""

    code = "bad_cursor"
    title = "Bad cursor"
    status_hint = 400

    def __init__(self) -> None:
        super().__init__("the cursor must be an event id such as 5204-118, or 0 for the start")


class BadIdempotencyKey(StagebusError):
    """The `Idempotency-Key` is empty, too long or not visible ASCII."""

    code = "bad_idempotency_key"
    title = "Bad Idempotency-Key"
    status_hint = 400

    def __init__(self) -> None:
        super().__init__("an Idempotency-Key has 1 to 255 visible ASCII characters")


class RunNotFound(StagebusError):
    """The run does not exist, belongs to another tenant, or was deleted, by a request or after its retention time."""

    code = "run_not_found"
    title = "Run not found"
    status_hint = 404

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"there is no run {run_id[:64]!r}: it never existed, was deleted, or its retention time is over"
        )


class RunDeleted(StagebusError):
    """The run of this request or of its `Idempotency-Key` was deleted. For an hour the key creates no other run."""

    code = "run_deleted"
    title = "Run deleted"
    status_hint = 410

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the run {run_id} of this request or of its Idempotency-Key was deleted; use a new key for a new run"
        )


class StageNotFound(StagebusError):
    """No run has a stage of this id."""

    code = "stage_not_found"
    title = "Stage not found"
    status_hint = 404

    def __init__(self, stage_id: str) -> None:
        super().__init__(f"there is no stage {stage_id[:64]!r}; stages are run, extraction, tools and synthesis")


class ApprovalNotFound(StagebusError):
    """The run has no tool call of this id that waits for a decision, or ever did."""

    code = "approval_not_found"
    title = "No such approval"
    status_hint = 404

    def __init__(self, run_id: str, call_id: str) -> None:
        super().__init__(
            f"run {run_id} has no approval for a call {call_id[:64]!r}; GET /runs/{run_id} lists its pending_approvals"
        )


class ApprovalConflict(StagebusError):
    """Another decision on the call was made before. The first decision is final."""

    code = "approval_conflict"
    title = "Already decided"
    status_hint = 409

    def __init__(self, call_id: str, standing: str) -> None:
        super().__init__(f"call {call_id[:64]!r}: {standing}; the first decision is final")


class IdempotencyConflict(StagebusError):
    """The `Idempotency-Key` was used before with a different body."""

    code = "idempotency_conflict"
    title = "Idempotency-Key reused with a different body"
    status_hint = 422

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key created a run from a different body; use a new key for a new run")


# --- the log and the lease ---------------------------------------------------


class Fenced(StagebusError):
    """A newer attempt owns the run. The producer must stop, not retry."""

    code = "fenced"
    title = "A newer attempt owns the run"
    status_hint = 409

    def __init__(self, run_id: str, attempt: int) -> None:
        super().__init__(f"run {run_id}: attempt {attempt} no longer owns it")


class RunEnded(StagebusError):
    """The run has a terminal event or was deleted. No further event can be appended."""

    code = "run_ended"
    title = "The run has ended"
    status_hint = 409

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} has ended")


class TailLost(StagebusError):
    """Redis lost the end of the run's log, and more than the producer can send again.

    The worker claims the run again and continues from the log.
    """

    code = "tail_lost"
    title = "The log lost its tail"
    status_hint = 503
    retryable = True

    def __init__(self, run_id: str, last_id: str) -> None:
        super().__init__(
            f"run {run_id}: the log ends at {last_id}, before the first event that this attempt can send again"
        )


# --- storage and configuration -----------------------------------------------


class StorageUnavailable(StagebusError):
    """Redis does not answer. Nothing is lost."""

    code = "storage_unavailable"
    title = "Storage unavailable"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("Redis does not answer at the moment; nothing is lost, try again")


class StorageFull(StagebusError):
    """Redis has reached its `maxmemory` limit, so it accepts no new run."""

    code = "storage_full"
    title = "Storage full"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("Redis has reached its memory limit and accepts no new run; try again later")


class StorageUnfit(StagebusError):
    """The Redis server cannot be used: it is too old, or it is configured to evict keys."""

    code = "storage_unfit"
    title = "Storage unfit"


class BadTool(StagebusError):
    """A configured tool cannot be offered. The worker does not start."""

    code = "bad_tool"
    title = "Bad tool"


class BadProviders(StagebusError):
    """The providers file is invalid. The process does not start."""

    code = "bad_providers"
    title = "Bad providers file"


class KeyMissing(StagebusError):
    """A secret is missing from the place that a configuration file names. The message is for the log and has no secret in it."""

    code = "key_missing"
    title = "Key missing"


class Draining(StagebusError):
    """The gateway process is shutting down. Another one answers a repeated request."""

    code = "draining"
    title = "Shutting down"
    status_hint = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("this gateway is shutting down; try again, another one will answer")


# --- failed runs: each ends a run with an `error` event ----------------------


class RunFailed(StagebusError):
    """The run cannot continue. The message is the text of its `error` event."""

    code = "run_failed"
    title = "Run failed"


class LogIncomplete(RunFailed):
    """Redis lost events that the run needs, or refuses further events of it."""

    def __init__(self) -> None:
        super().__init__("a part of the run's log was lost, so the run cannot continue")


class RunTimeout(RunFailed):
    """The run did not end within its `timeout_s`."""

    code = "run_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the run did not end within its timeout_s of {limit_s:g} s")


class UnknownTools(RunFailed):
    """The request names tools that the worker does not have."""

    code = "unknown_tools"

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"unknown tools: {', '.join(name[:64] for name in names)}; GET /tools lists the available ones"
        )


class UnknownModel(RunFailed):
    """No configured provider serves the requested model."""

    code = "unknown_model"

    def __init__(self, name: str, served: list[str]) -> None:
        listed = ", ".join(served[:MODELS_SHOWN_MAX]) + (" …" if len(served) > MODELS_SHOWN_MAX else "")
        super().__init__(f"no provider serves the model {name[:64]!r}; available models: {listed} (see GET /models)")


class BudgetExceeded(RunFailed):
    """The run used more tokens than its `max_total_tokens`, or than its tenant may use on this day."""

    code = "budget_exceeded"


class HistoryTooLong(RunFailed):
    """The history of the run's thread is too long for the model, or for `STAGEBUS_HISTORY_MAX_BYTES`."""

    code = "history_too_long"

    def __init__(self, size_bytes: int, tokens: int, *, can_truncate: bool) -> None:
        remedy = 'create the run with truncate "oldest_turns"' if can_truncate else "shorten the run's own messages"
        super().__init__(
            f"the thread's messages are too long for the model: {size_bytes} bytes, about {tokens} tokens; {remedy}, or "
            "continue from an earlier turn with parent_run_id, or in a new thread"
        )


class AttemptsExhausted(RunFailed):
    """Workers died during the run more often than `STAGEBUS_RUN_TRIES_MAX` allows."""

    code = "attempts_exhausted"

    def __init__(self, tries: int) -> None:
        super().__init__(f"the run's worker died {tries} times; the run is not tried again")


class QueueTimeout(RunFailed):
    """No worker started the run within `STAGEBUS_QUEUE_WAIT_MAX_S`."""

    code = "queue_timeout"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"no worker started the run within {limit_s:g} s")


class ModelError(RunFailed):
    """The provider failed. `retry_after_s` is the wait that it asked for."""

    code = "model_error"

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ModelUnavailable(ModelError):
    """The provider is unreachable, overloaded or silent, or the connection broke. A retry may succeed."""

    code = "model_unavailable"
    retryable = True


class ModelRejected(ModelError):
    """The provider rejects this request. A retry cannot succeed."""

    code = "model_rejected"


class ModelUnauthorized(ModelError):
    """The provider does not accept the operator's API key."""

    code = "model_unauthorized"


class InvalidOutput(RunFailed):
    """The answer does not fit the run's `response_format`, even after the model was asked once more."""

    code = "invalid_output"

    def __init__(self, fault: str) -> None:
        super().__init__(f"the answer does not have the form of response_format: {fault}")


class ModelOutputTooLong(ModelError):
    """The model wrote more than `STAGEBUS_MODEL_OUTPUT_MAX_BYTES` in one stage."""

    code = "model_output_too_long"
