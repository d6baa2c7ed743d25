"""The end of an export by OTLP; `tests/e2e/test_traces.py` tests what is sent."""

import threading

from stagebus.shared.observability.otel_export import stop_in_time


def test_collector_that_does_not_answer_holds_neither_the_process_nor_the_other_exports() -> None:
    answers, has_sent = threading.Event(), threading.Event()
    try:
        stop_in_time([answers.wait, has_sent.set], 0.1)
        assert has_sent.is_set()
    finally:
        answers.set()
