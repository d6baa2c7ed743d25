"""The key schema: one slot a run, no two things under one key, arq's names as arq has them."""

from collections.abc import Callable

import pytest
from arq import constants
from redis.crc import key_slot

from stagebus.shared.domain.ids import new_run_id
from stagebus.shared.domain.runs import STAGE_IDS
from stagebus.shared.storage import keys

OF_A_RUN: list[Callable[[str], str]] = [
    keys.run,
    keys.stages,
    keys.live,
    keys.control,
    *[lambda run_id, stage_id=stage_id: keys.stage_stream(run_id, stage_id) for stage_id in sorted(STAGE_IDS)],
]


def test_all_keys_of_a_run_hash_to_one_slot() -> None:
    """One script names several of them."""
    for run_id in (new_run_id() for _ in range(20)):
        slots = {key_slot(key_of(run_id).encode()) for key_of in OF_A_RUN}

        assert slots == {key_slot(run_id.encode())}


def test_no_two_things_share_a_key() -> None:
    run_ids = [new_run_id(), new_run_id()]
    made = [key_of(run_id) for key_of in [*OF_A_RUN, keys.job, keys.lease, keys.arq_retry] for run_id in run_ids]
    made += [keys.ACTIVE, keys.QUEUE, keys.WAKEUP, keys.SWEEP, keys.TOOLS, keys.TOOLS_SEEN, keys.API_KEYS, keys.TOTALS]
    made += [keys.WORKERS, keys.GATEWAYS, keys.seen(keys.WORKERS), keys.seen(keys.GATEWAYS)]
    made += [keys.api_key("a"), keys.api_key("s"), keys.totals_of_minute(1), keys.totals_of_minute(2)]
    made += [keys.runs("public"), keys.runs("other"), keys.idempotency("public", "k"), keys.idempotency("other", "k")]

    made += [keys.runs("public", "a"), keys.runs("public", "b"), keys.runs("other", "a")]
    made += [keys.idempotency("public", "k", user) for user in ("a", "b", ":k", "{x}")]
    made += [keys.chat("public", "c"), keys.chat("public", "c", "a"), keys.chat("public", "c", "b")]

    assert len(set(made)) == len(made)


def test_name_of_a_user_moves_no_key_to_another_slot() -> None:
    assert not set("{}:") & set(keys.runs("t", "{a}:b").removeprefix("sb:runs:"))


def test_keys_of_a_run_share_a_prefix() -> None:
    """The operator's page and the test of TTLs look for them that way."""
    assert all(key_of(new_run_id()).startswith(keys.RUN_PREFIX) for key_of in OF_A_RUN)


@pytest.mark.parametrize(
    ("ours", "prefix"),
    [
        (keys.job, constants.job_key_prefix),
        (keys.lease, constants.in_progress_key_prefix),
        (keys.arq_retry, constants.retry_key_prefix),
    ],
)
def test_arq_finds_its_own_keys(ours: Callable[[str], str], prefix: str) -> None:
    assert ours("01J") == f"{prefix}01J"
