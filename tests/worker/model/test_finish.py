from stagebus.worker.model.finish import FinishTracker


def track(*chunks: dict) -> FinishTracker:
    tracker = FinishTracker()
    for chunk in chunks:
        tracker.observe(chunk)
    return tracker


def choice(reason: object, index: int = 0) -> dict:
    return {"choices": [{"index": index, "delta": {}, "finish_reason": reason}]}


def test_finish_reason_of_choice_0_counts():
    assert track(choice(None), choice("stop", index=1)).finish_reason is None
    assert track(choice("stop", index=1), choice(None)).finish_reason is None
    assert track(choice("stop")).finish_reason == "stop"


def test_finish_reason_of_another_choice_counts_without_choice_0():
    assert track(choice(None, index=1), choice("length", index=1)).finish_reason == "length"
    assert track(choice("length", index=1), choice(None)).finish_reason is None
    assert track({"choices": [{"index": [0], "finish_reason": "stop"}]}).finish_reason == "stop"


def test_finish_reason_error_is_an_error_only_before_any_other():
    assert track(choice("error")).error is not None
    assert track(choice("stop"), choice("error")).error is None


def test_finish_keeps_the_first_error():
    error = track({"error": "first"}, {"error": "second"}).error

    assert error is not None
    assert error.message == "first"


def test_invalid_finish_reason_is_ignored():
    assert track(choice({"odd": 1}), choice(["stop"]), choice(0)).finish_reason is None
