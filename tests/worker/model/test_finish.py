from stagebus.worker.model.finish import FinishTracker


def track(*chunks: dict) -> FinishTracker:
    tracker = FinishTracker()
    for chunk in chunks:
        tracker.observe(chunk)
    return tracker


def choice(reason: object, index: int = 0) -> dict:
    return {"choices": [{"index": index, "delta": {}, "finish_reason": reason}]}


def test_answer_ends_with_its_own_choices_reason():
    assert track(choice(None), choice("stop", index=1)).finish_reason is None
    assert track(choice("stop", index=1), choice(None)).finish_reason is None
    assert track(choice("stop")).finish_reason == "stop"


def test_other_choice_s_reason_counts_where_there_is_no_first():
    assert track(choice(None, index=1), choice("length", index=1)).finish_reason == "length"
    assert track(choice("length", index=1), choice(None)).finish_reason is None
    assert track({"choices": [{"index": [0], "finish_reason": "stop"}]}).finish_reason == "stop"


def test_finish_reason_error_is_an_error_only_before_any_other():
    assert track(choice("error")).error is not None
    assert track(choice("stop"), choice("error")).error is None


def test_first_error_counts():
    error = track({"error": "first"}, {"error": "second"}).error

    assert error is not None
    assert error.message == "first"


def test_odd_reasons_are_none():
    assert track(choice({"odd": 1}), choice(["stop"]), choice(0)).finish_reason is None
