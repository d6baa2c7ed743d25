"""The Python and the JavaScript client follow the same rules, so their limits are equal."""

import re
from pathlib import Path

import pytest

from stagebus.client import event_sequencer, stream_follower

SOURCE = Path(__file__).parents[2] / "clients" / "js" / "src"


def js_constant(module: str, name: str) -> float:
    found = re.search(rf"^(?:export )?const {name} = ([\d_.]+);", (SOURCE / f"{module}.ts").read_text(), re.MULTILINE)
    assert found, f"{module}.ts has no constant {name}"
    return float(found[1].replace("_", ""))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("connection", "SILENT_PINGS", stream_follower.SILENT_PINGS),
        ("connection", "PING_MS", 1000 * stream_follower.PING_S),
        ("connection", "FIRST_BYTES_MS", 1000 * stream_follower.FIRST_BYTES_S),
        ("connector", "PAGE_QUICK_MS", 1000 * stream_follower.PAGE_QUICK_S),
        ("connector", "POLLING_MAX_MS", 1000 * stream_follower.POLLING_MAX_S),
        ("event_pages", "PAGE_EVENTS", stream_follower.PAGE_EVENTS),
        ("event_pages", "WAIT_S", stream_follower.PAGE_WAIT_S),
        ("event_pages", "ANSWER_MAX_MS", 1000 * stream_follower.PAGE_ANSWER_MAX_S),
        ("event_pages", "PAUSE_MS", 1000 * stream_follower.PAGE_PAUSE_S),
        ("event_pages", "EMPTY_PAUSE_MS", 1000 * stream_follower.EMPTY_PAGE_PAUSE_S),
        ("event_sequencer", "GAP_RETRIES_MAX", event_sequencer.GAP_RETRIES_MAX),
        ("connection_state", "RETRY_MS", 1000 * stream_follower.RETRY_S),
        ("connection_state", "BACKOFF_MAX_MS", 1000 * stream_follower.BACKOFF_MAX_S),
        ("follow", "PATIENCE_MS", 1000 * stream_follower.PATIENCE_S),
    ],
)
def test_limit_is_equal_in_both_clients(module: str, name: str, value: float) -> None:
    assert js_constant(module, name) == value
