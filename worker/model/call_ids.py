"""Gives every tool call of a run an id of its own; sans-IO."""

from collections.abc import Collection, Iterable, Iterator

from stagebus.shared.domain.stage_results import ToolCallRequest
from stagebus.worker.model.compat.call_fragments import ParsedCall


def assign_call_ids(calls: Iterable[ParsedCall], taken_ids: Collection[str]) -> Iterator[ToolCallRequest]:
    """Yields the calls with unique ids. A provider's id is kept if it is unique.

    Args:
        taken_ids: the ids of the run's earlier calls.
    """
    calls = list(calls)
    taken = set(taken_ids)
    reserved = {call.id for call in calls}
    number = 0
    for call in calls:
        call_id = call.id
        while not call_id or call_id in taken:
            number += 1
            # Nine letters and digits: the only form that every provider accepts back, including Mistral.
            generated = f"call{number:05d}"
            call_id = "" if generated in reserved else generated
        taken.add(call_id)
        yield ToolCallRequest(
            id=call_id, name=call.name, arguments=call.arguments, extra_content=call.extra_content or None
        )
