"""Derives the figures from the raw results: ours, the rivals', and the target."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One row. Smaller is better unless `is_more_better`."""

    what: str
    unit: str
    ours: float
    target: float | None = None
    rivals: Mapping[str, float] = field(default_factory=dict)
    is_more_better: bool = False

    @property
    def is_met(self) -> bool | None:
        """Returns whether the target is met; None without a target."""
        if self.target is None:
            return None
        return self.ours >= self.target if self.is_more_better else self.ours <= self.target

    @property
    def is_number(self) -> bool:
        """Returns whether our value and all rivals' are numbers: a percentile of nothing is NaN."""
        return all(map(math.isfinite, (self.ours, *self.rivals.values())))

    def ratio(self, rival: float) -> float:
        """Returns how many times better our value is."""
        better, worse = (self.ours, rival) if self.is_more_better else (rival, self.ours)
        return better / worse if worse else float("inf")


NAMES = {"naive": "XREAD a client", "nchan_redis": "nchan, Redis", "nchan_memory": "nchan, memory"}


def of(results: Results) -> Iterator[Figure]:
    """Yields every figure that has a raw result."""
    makers = (
        _relay,
        _views,
        _capacity,
        _memory,
        _replay,
        _append,
        _worker,
        _pickup,
        _held,
        _fairness,
        _end_to_end,
        _growth,
    )
    for make in makers:
        yield from make(results)


def _rivals(result: Mapping[str, Any], value: str) -> dict[str, float]:
    return {label: result[name][value] for name, label in NAMES.items() if value in result.get(name, {})}


def _relay(results: Results) -> Iterator[Figure]:
    if many := results.get("relay_many_runs"):
        ours = many["stagebus"]
        what = f"relay, {ours['clients']} runs with a client each, {ours['per_s']}/s"
        rivals = _rivals(many, "cpu_s_per_million")
        yield Figure(f"{what}: CPU a million events", "s", ours["cpu_s_per_million"], 55, rivals)
        for percent, target in (("p50", 1), ("p99", 5)):
            latencies = {
                label: many[name]["latency_ms"][percent] for name, label in NAMES.items() if "latency_ms" in many[name]
            }
            yield Figure(
                f"{what}: publisher to client, {percent}", "ms", ours["latency_ms"][percent], target, latencies
            )
    if one := results.get("relay_one_run"):
        ours = one["stagebus"]
        what = f"relay, {ours['clients']} clients on one run: CPU a million events"
        yield Figure(what, "s", ours["cpu_s_per_million"], 22, _rivals(one, "cpu_s_per_million"))


def _views(results: Results) -> Iterator[Figure]:
    if views := results.get("relay_views"):
        for load, label in (("many_runs", "runs with a client each"), ("one_run", "clients on one run")):
            native = views[load]["native"]["cpu_s_per_million"]
            for name, measured in views[load].items():
                if name != "native":
                    what = f"view {name}, {measured['clients']} {label}: CPU an event over the native stream's"
                    yield Figure(what, "x", measured["cpu_s_per_million"] / native, 2)
        native = views["memory"]["native"] / 1024
        for name, size in views["memory"].items():
            if name != "native":
                what = f"view {name}: gateway memory an open stream, with a fold of its own"
                yield Figure(what, "KiB", size / 1024, 16, {"native": native})


def _capacity(results: Results) -> Iterator[Figure]:
    if capacity := results.get("gateway_capacity"):
        for clients, carried in capacity["by_clients_a_run"].items():
            watched = "a client on each run" if int(clients) == 1 else f"{clients} clients on each run"
            what = f"a gateway at {capacity['share']:.0%} of a core, {capacity['streams']} streams, {watched}"
            yield Figure(what, "events/s", carried["events_per_s"], is_more_better=True)


def _memory(results: Results) -> Iterator[Figure]:
    if memory := results.get("memory_per_stream"):
        yield Figure("gateway memory an open stream", "KiB", memory["bytes_a_stream_open"] / 1024, 16)
        last = memory["bytes_a_stream_after_traffic"][-1]
        yield Figure("the same after traffic", "KiB", last / 1024, 16)


def _replay(results: Results) -> Iterator[Figure]:
    if replay := results.get("replay"):
        ours = replay["stagebus"]["events_per_s_best"]
        what = f"replay of {replay['events']} events to one client, best of several"
        yield Figure(what, "events/s", ours, 250_000, _rivals(replay, "events_per_s_best"), is_more_better=True)
        beside, alone = replay["others"]["request_ms_beside_replays"], replay["others"]["request_ms_alone"]
        what = f"another request beside {replay['others']['replays_at_once']} replays, p99"
        yield Figure(what, "ms", beside["p99"], 5, {"no replay": alone["p99"]})


def _append(results: Results) -> Iterator[Figure]:
    if append := results.get("append"):
        by_burst = {int(burst): cost for burst, cost in append["by_burst"].items()}
        plain = append["one_by_one"]
        label = "XADD, HSET, PUBLISH"
        trips = {label: plain["round_trips_an_append"]}
        yield Figure("append: round trips", "", by_burst[1]["round_trips_an_append"], 1, trips)
        cpu = {label: plain["redis_cpu_us_an_event"]}
        yield Figure("append, an event alone: Redis CPU", "µs", by_burst[1]["redis_cpu_us_an_event"], None, cpu)
        for burst in (16, 64):
            ours = by_burst[burst]["redis_cpu_us_an_event"]
            yield Figure(f"append, bursts of {burst}: Redis CPU an event", "µs", ours, 10, cpu)
        yield Figure("append: Redis memory a token event", "bytes", append["memory_bytes_a_token_event"], 140)


def _worker(results: Results) -> Iterator[Figure]:
    labels = {"sdk_typed": "SDK typed, reading alone", "sdk_lines": "SDK lines", "httpx_orjson": "httpx and orjson"}
    if worker := results.get("worker_chunk"):
        paces = (("fast_us", "as fast as it comes", 70), ("paced_us", "many answers at 20/s", None))
        for pace, words, target in paces:
            rivals = {label: worker[pace][name] for name, label in labels.items()}
            yield Figure(f"worker, a model's chunk, {words}: CPU", "µs", worker[pace]["ours"], target, rivals)
        for api, cost in worker.get("api_us", {}).items():
            what = f"worker, a token of the API {api} over a chat completion's, as fast as it comes: CPU"
            yield Figure(what, "x", cost / worker["fast_us"]["ours"], 1.3)
        if "calls_per_paced_chunk" in worker:
            calls = worker["calls_per_paced_chunk"]
            yield Figure("worker, a model's chunk, an append each: calls of Python functions", "", calls, None)


def _pickup(results: Results) -> Iterator[Figure]:
    if pickup := results.get("pickup"):
        for workers, times in pickup["by_workers"].items():
            for percent, target in (("p50", 12), ("p99", 40)):
                what = f"POST to the provider being asked, {workers} waiting: {percent}"
                rival = {"arq": pickup["arq_by_workers"][workers][f"{percent}_ms"]}
                yield Figure(what, "ms", times[f"{percent}_ms"], target, rival)


def _held(results: Results) -> Iterator[Figure]:
    if held := results.get("held_runs"):
        ours, rival = held["stagebus"], held["arq"]
        what = f"{held['runs']} runs, {held['workers']} workers with {held['slots']} slots each: held at once"
        yield Figure(what, "runs", ours["held"], held["runs"], {"arq": rival["held"]}, is_more_better=True)
        for what, name, target in (
            ("an idle worker: commands", "commands_per_s_idle_worker", 3),
            ("a held run of those: commands", "commands_per_s_held_run", 1),
        ):
            yield Figure(what, "a second", ours[name], target, {"arq": rival[name]})


def _fairness(results: Results) -> Iterator[Figure]:
    if fair := results.get("fairness"):
        what = f"wait of one run behind another tenant's {fair['runs']}, {fair['slots']} slots"
        yield Figure(what, "s", fair["wait_s_by_turns"], 1, {"first come, first served": fair["wait_s_by_time"]})


def _end_to_end(results: Results) -> Iterator[Figure]:
    if end := results.get("end_to_end"):
        what = f"provider's byte to the browser's, {end['runs']} runs at {end['per_s']}/s"
        yield Figure(f"{what}: p50", "ms", end["latency_ms"]["p50"], 5)
        yield Figure(f"{what}: p99", "ms", end["latency_ms"]["p99"], 30)
        yield Figure(f"{what}: lost", "events", end["lost"], 0)


def _growth(results: Results) -> Iterator[Figure]:
    if growth := results.get("growth"):
        few, many = growth["few_runs"], growth["many_runs"]
        what = f"growth: gateway CPU an event, {many['runs']} live runs over {few['runs']}"
        yield Figure(what, "x", many["cpu_s_per_million"] / few["cpu_s_per_million"], 1.15)
        for part in ("gateway", "redis"):
            ratio = growth["late"][f"{part}_cpu_us"] / growth["early"][f"{part}_cpu_us"]
            yield Figure(f"growth: {part} CPU an event, late in a run of {growth['long']} over early", "x", ratio, 1.15)
