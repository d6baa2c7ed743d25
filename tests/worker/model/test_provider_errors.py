import json

import pytest

from stagebus.shared.errors import ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.worker.model import provider_errors
from stagebus.worker.model.compat.error_shapes import ReportedError, error_in_chunk, parse_error
from tests.support.recorded_inputs import STREAMS

SECRET = ReportedError("key sk-123 at http://10.0.0.1 is bad", code="weird_code", type="weird")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_transient_status_is_retryable(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelUnavailable


@pytest.mark.parametrize("status", [401, 403])
def test_status_401_or_403_is_unauthorized(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelUnauthorized


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422])
def test_other_client_error_status_is_final(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelRejected


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529, 599])
def test_error_message_has_the_status_and_no_provider_text(status):
    for failure in (
        provider_errors.error_from_status(status, SECRET),
        provider_errors.error_from_report(SECRET._replace(status=status)),
    ):
        assert str(status) in str(failure)
        assert not any(word in str(failure) for word in ("sk-123", "10.0.0.1", "weird"))


def recorded_errors():
    path = STREAMS / "http_errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.skipif(not recorded_errors(), reason=f"no recordings in {STREAMS}")
def test_recorded_http_errors_are_final():
    """All of them are the fault of the request or the key."""
    for recorded in recorded_errors():
        failure = provider_errors.error_from_status(
            recorded["status"], parse_error(recorded["body"]), None,
            provider_errors.parse_should_retry(recorded["headers"]),
        )  # fmt: skip
        assert type(failure) is (ModelUnauthorized if recorded["status"] == 401 else ModelRejected)
        code = recorded["body"].get("error", {}).get("code") if "error" in recorded["body"] else None
        if code == "context_length_exceeded":
            assert "too long for the model" in str(failure)


@pytest.mark.parametrize(
    ("status", "error", "should_retry", "kind"),
    [
        (429, {"error": {"type": "insufficient_quota", "code": "insufficient_quota"}}, None, ModelRejected),
        (429, {"error": {"type": "insufficient_quota", "code": "credit_balance_exhausted"}}, None, ModelRejected),
        (429, {"error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}},
         None, ModelRejected),
        (429, {"error": {"code": "slow_down"}}, None, ModelUnavailable),
        (402, {"type": "error", "error": {"type": "billing_error"}}, None, ModelRejected),
        (529, {"type": "error", "error": {"type": "overloaded_error"}, "request_id": None}, None, ModelUnavailable),
        (503, {"error": {"code": "server_is_overloaded"}}, False, ModelRejected),
        (400, {}, True, ModelUnavailable),
        (400, {"code": "invalid-argument", "error": "a text"}, None, ModelRejected),
        (401, {"detail": "Could not parse your token"}, True, ModelUnauthorized),
    ],
)  # fmt: skip
def test_quota_and_the_providers_advice_decide_on_a_retry(status, error, should_retry, kind):
    assert type(provider_errors.error_from_status(status, parse_error(error), None, should_retry)) is kind


def test_conversation_that_is_too_long_for_anthropic_is_named():
    error = parse_error({"type": "error", "error": {"message": "prompt is too long: 2 tokens > 1 maximum"}})

    assert str(provider_errors.error_from_status(400, error)).endswith("the conversation is too long for the model")


def test_delay_in_a_message_is_used_without_a_header():
    limited = ReportedError("Rate limit reached. Please try again in 11.054s.", code="rate_limit_exceeded")

    assert provider_errors.error_from_status(429, limited).retry_after_s == 11.054
    assert provider_errors.error_from_status(429, limited, 3.0).retry_after_s == 3.0


def test_error_message_has_a_known_reason():
    error = ReportedError("…", code="context_length_exceeded")

    assert str(provider_errors.error_from_status(400, error)).endswith(
        "400: the conversation is too long for the model"
    )
    assert str(provider_errors.error_from_report(error)).endswith("the conversation is too long for the model")
    assert str(provider_errors.error_from_status(429, SECRET)) == "the model's provider answered 429: too many requests"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "x", "code": 429}, ModelUnavailable),
        ({"message": "x", "code": "503"}, ModelUnavailable),
        ({"message": "x", "status_code": 400}, ModelRejected),
        ({"message": "x", "status": 401}, ModelUnauthorized),
        ({"message": "x", "type": "server_error"}, ModelUnavailable),
        ({"message": "x", "type": "overloaded_error"}, ModelUnavailable),
        ({"message": "x", "code": "rate_limit_exceeded"}, ModelUnavailable),
        ({"message": "x", "type": "authentication_error"}, ModelUnauthorized),
        ({"message": "cannot generate", "type": "invalid_request_error", "code": "tool_use_failed"}, ModelRejected),
        ({"message": "Internal server error"}, ModelUnavailable),
        ({"error": {"message": "x", "code": 500}}, ModelUnavailable),
        ("the server is overloaded", ModelUnavailable),
        ({}, ModelRejected),
        ([{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}], ModelUnavailable),
        ([[[]]], ModelRejected),
        (["odd"], ModelRejected),
        ({"code": 1302, "msg": "too many requests"}, ModelRejected),
        ({"msg": "too many requests"}, ModelUnavailable),
        ({"error_msg": "the service is busy"}, ModelUnavailable),
        ({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Rate limit exceeded"}, ModelUnavailable),
        ({"error_code": 503, "message": "x"}, ModelUnavailable),
        ({"statusCode": 401, "message": "x"}, ModelUnauthorized),
        ({"__type": "ThrottlingException", "message": "x"}, ModelUnavailable),
        ({"code": None, "status": "UNAVAILABLE", "message": "x", "type": None}, ModelUnavailable),
    ],
)
def test_error_in_a_stream_is_classified_by_its_content(error, kind):
    assert type(provider_errors.error_from_report(parse_error(error))) is kind


def test_error_type_beside_the_message_is_used():
    error = error_in_chunk({"error": "Input validation error", "error_type": "overloaded"})

    assert error is not None
    assert type(provider_errors.error_from_report(error)) is ModelUnavailable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 -0000", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_header_is_parsed(headers, seconds):
    assert provider_errors.parse_retry_after(headers) == seconds
