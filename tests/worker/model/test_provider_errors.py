import pytest

from stagebus.shared.errors import ModelRejected, ModelUnauthorized, ModelUnavailable
from stagebus.worker.model import provider_errors
from stagebus.worker.model.provider_errors import ReportedError

SECRET = ReportedError("key sk-123 at http://10.0.0.1 is bad", code="weird_code", type="weird")


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_passing_statuses_may_be_tried_again(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelUnavailable


@pytest.mark.parametrize("status", [401, 403])
def test_refused_keys_are_the_operators_business(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelUnauthorized


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422])
def test_other_statuses_are_final(status):
    assert type(provider_errors.error_from_status(status, SECRET)) is ModelRejected


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529, 599])
def test_message_names_the_status_and_nothing_of_the_provider(status):
    for failure in (
        provider_errors.error_from_status(status, SECRET),
        provider_errors.error_from_report(SECRET._replace(status=status)),
    ):
        assert str(status) in str(failure)
        assert not any(word in str(failure) for word in ("sk-123", "10.0.0.1", "weird"))


def test_known_reasons_are_said():
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
def test_error_within_a_stream_is_judged_by_what_it_says(error, kind):
    assert type(provider_errors.error_from_report(provider_errors.parse_error(error))) is kind


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": "x"}},
        {"error": "x"},
        {"error": {"message": "x"}, "choices": []},
        {"object": "error", "message": "x", "code": 400},
        {"type": "error", "error": {"message": "x"}},
        {"detail": "x"},
        {"code": "Throttling", "message": "x"},
        {"errors": [{"code": 7003, "message": "x"}], "success": False, "choices": []},
        {"error": "x", "error_type": "overloaded"},
        {"error": {"error": "x"}},
        {"error_message": "x"},
    ],
)
def test_error_is_found_in_every_shape(chunk):
    error = provider_errors.error_in_chunk(chunk)

    assert error is not None
    assert error.message == "x"


def test_kind_of_an_error_may_stand_beside_its_words():
    error = provider_errors.error_in_chunk({"error": "Input validation error", "error_type": "overloaded"})

    assert error is not None
    assert type(provider_errors.error_from_report(error)) is ModelUnavailable


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": []},
        {"choices": [], "error": None},
        {"choices": [], "error": {}, "errors": []},
        {"usage": {}},
        {"code": 200, "msg": "success", "usage": {}},
        {},
    ],
)
def test_ordinary_chunk_is_no_error(chunk):
    assert provider_errors.error_in_chunk(chunk) is None


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
def test_retry_after_is_read(headers, seconds):
    assert provider_errors.parse_retry_after(headers) == seconds
