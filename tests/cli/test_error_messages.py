"""Errors of a gateway as sentences for people at a command line."""

import re

import pytest

from stagebus.cli.error_messages import in_plain_words, message_of
from stagebus.client.client_errors import Refused
from stagebus.gateway.api.schemas.create_run import CreateRun
from stagebus.shared import access_errors, errors
from stagebus.shared.errors import StagebusError

HTTP_WORDS = re.compile(
    r"\b(GET|POST|DELETE|PUT|HTTP|[Hh]eader|Retry-After|X-Request-ID|Authorization|[1-5]\d\d(?!\.))\b"
)
# One of each error of the API that a command can cause, with the text that a gateway sends.
ERRORS: list[StagebusError] = [
    errors.ApprovalNotFound("01J", "c"), errors.RunNotFound("01J"), errors.ApprovalConflict("c", "it was denied"),
    errors.RunEnded("01J"), errors.StorageUnavailable(), errors.StorageFull(), errors.Draining(),
    errors.UnknownTools(["x"]), errors.UnknownModel("x", ["y"]), errors.BodyTooLarge(10),
    access_errors.RateLimited(3.0), access_errors.TooManyRuns(5), access_errors.TokensUsedUp(10, 60.0),
    access_errors.Forbidden("runs:read"), access_errors.LoopbackOnly(), access_errors.HostNotAllowed(),
    access_errors.Unauthenticated("the Authorization header must be `Bearer ` and a key or token"),
    StagebusError("internal error; the gateway's log shows the cause under this X-Request-ID"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_message_has_no_http_words(error: StagebusError) -> None:
    problem = {"code": error.code, "title": error.title, "detail": str(error), "status": error.status_hint}
    said = message_of(Refused.of(error.status_hint, problem, getattr(error, "retry_after_s", None)))

    assert said
    assert not HTTP_WORDS.search(said), said


@pytest.mark.parametrize(
    ("status", "said"), [(404, "does not answer as a Stagebus gateway"), (502, "try again later"), (400, "check")]
)
def test_answer_of_another_server_is_recognised(status: int, said: str) -> None:
    message = message_of(Refused.of(status, {}))

    assert said in message
    assert not HTTP_WORDS.search(message)


def test_invalid_fields_are_named_by_their_options() -> None:
    faults = [
        {"field": "timeout_s", "message": "Input should be greater than 0"},
        {"field": "tools.1", "message": "unknown tool 'x'; see GET /tools"},
        {"field": "other", "message": "no"},
    ]
    said = message_of(Refused.of(422, {"code": "invalid_request", "detail": "timeout_s: …", "errors": faults}))

    assert (
        said == "--timeout: Input should be greater than 0; --tool: unknown tool 'x'; see `stagebus tools`; other: no"
    )


def test_field_of_each_option_exists() -> None:
    assert {"user_prompt", "system_prompt", "timeout_s", "max_rounds", "tools", "model"} <= set(CreateRun.model_fields)


def test_hint_names_the_command() -> None:
    assert in_plain_words("run 01J has no approval for a call 'c'; GET /runs/01J lists its pending_approvals").endswith(
        "; `stagebus show 01J` lists its pending calls"
    )
    assert in_plain_words("the model's provider answered 429: too many requests") == (
        "the model's provider answered: too many requests"
    )
    assert "`stagebus models`" in in_plain_words(str(errors.UnknownModel("x", ["y"])))
