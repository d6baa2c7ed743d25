"""Builds the chunks of chat completions, and merges them."""

from stagebus.worker.model.delta_merger import DeltaMerger, MergedAnswer

PARIS = '{"city": "Paris"}'


def merge(
    *chunks: dict, tools: tuple[str, ...] = ("get_weather", "get_time"), taken: tuple[str, ...] = ()
) -> MergedAnswer:
    merger = DeltaMerger(tool_names=tools, taken_ids=taken)
    for chunk in chunks:
        merger.add(chunk)
    return merger.result()


def delta(finish_reason: str | None = None, **fields: object) -> dict:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def calls_delta(*calls: dict) -> dict:
    return delta(tool_calls=list(calls))


def part(name=..., arguments=..., **fields: object) -> dict:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in function.items() if value is not ...}}


def calls_of(*chunks: dict, **options) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in merge(*chunks, **options).tool_calls]


def ids_of(*chunks: dict, **options) -> list[str]:
    return [call.id for call in merge(*chunks, **options).tool_calls]
