import pytest

from stagebus.worker.model.compat.error_shapes import error_in_chunk


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
def test_error_in_chunk_is_found_in_every_shape(chunk):
    error = error_in_chunk(chunk)

    assert error is not None
    assert error.message == "x"


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
def test_ordinary_chunk_has_no_error(chunk):
    assert error_in_chunk(chunk) is None
