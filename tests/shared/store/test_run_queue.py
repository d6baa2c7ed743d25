"""The jobs that are queued without arq are jobs that arq reads."""

from arq.jobs import deserialize_job_raw

from stagebus.shared.store import run_queue


def test_arq_reads_a_new_job() -> None:
    function, args, kwargs, job_try, _ = deserialize_job_raw(
        run_queue.new_job("01RUN"), deserializer=run_queue.decode_job
    )

    assert (function, tuple(args), kwargs, job_try) == (run_queue.FUNCTION, ("01RUN",), {}, None)
