"""Decides what the demo model answers and calls; sans-IO, and deterministic.

It recognises places, for which it calls `get_weather`; two phrases that involve a person; the exact names of other tools,
each followed by its arguments as a JSON object; and what a tool's name or description says (`demo_tool_match`):

    What is the weather in Paris and in Tokyo?
    Book a table for 4 at Luigi's                 calls book_table, if it is offered
    Ask me what I like                            calls ask_user, if it is offered
    call slow_tool {"seconds": 3} and slow_tool {"seconds": 5}
    Count the words of "one two three"            calls count_words, if it is offered

If the conversation ends with results, the demo quotes them.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Any, Final

from stagebus.worker.demo.demo_places import places_in
from stagebus.worker.demo.demo_script import DemoScript, Stage
from stagebus.worker.demo.demo_tool_match import is_meant, write_arguments

WEATHER_TOOL: Final = "get_weather"
TABLE_TOOL: Final = "book_table"
QUESTION_TOOL: Final = "ask_user"
_OWN_TOOLS: Final = (WEATHER_TOOL, TABLE_TOOL, QUESTION_TOOL)
CALLS_MAX: Final = 1000
QUOTE_MAX_CHARS: Final = 200

_TOKEN: Final = re.compile(r"\s*\S+")
_ARGUMENT_CHARS: Final = 6  # of a call's arguments in one chunk
_BOOKING: Final = re.compile(r"\bbook\b.*\btable\b", re.IGNORECASE | re.DOTALL)
_ASKING: Final = re.compile(r"\bask me\b", re.IGNORECASE)
_GUESTS: Final = re.compile(r"\bfor (\d{1,2}|one|two|three|four|five|six)\b", re.IGNORECASE)
_NUMBER_WORDS: Final = ("one", "two", "three", "four", "five", "six")
_RESTAURANT: Final = "the corner"
_QUESTION: Final = "This is the demo model, and it asks because you told it to. What do you answer?"
_PLACES: Final = ("Paris", "Tokyo", "London", "Berlin", "New York", "Nairobi", "Lima", "Sydney", "Oslo", "Mumbai")

_CALLING: Final = "This is the demo model. I will look that up for you with {tools}."
_PLAIN: Final = (
    'This is the demo model that comes with Stagebus, so do not expect wisdom. You wrote: "{prompt}" I can show you how '
    "an answer streams in word by word, how tools are called in parallel, and how a page that is reloaded in the middle "
    "misses nothing. Ask me for the weather in Paris and in Tokyo to see tools at work, or set OPENAI_BASE_URL to talk "
    "to a real model."
)
_QUOTING: Final = "This is the demo model, and here is what the tools found. {sentences} {close}"
_CLOSE: Final = (
    "All of this came through Stagebus as events, each with an id, so you may reload the page or cut the network at "
    "any moment and still read every word of it exactly once."
)
_REASONING: Final = "The demo model pretends to think about it."
_FILLER: Final = "The demo model goes on talking, since it was asked for a longer answer than it has thoughts for."


@dataclass(frozen=True, slots=True)
class DemoCall:
    """One call by the demo."""

    name: str
    arguments: str

    def pieces(self) -> Iterator[str]:
        """Yields the arguments in parts, as a model's tokens would split them."""
        for start in range(0, len(self.arguments), _ARGUMENT_CHARS):
            yield self.arguments[start : start + _ARGUMENT_CHARS]


@dataclass(frozen=True, slots=True)
class DemoReply:
    """An answer: reasoning, text, then calls. `tokens` can be read once and may be endless."""

    tokens: Iterator[str]
    calls: Sequence[DemoCall]
    finish_reason: str
    reasoning: str = ""


def stage_of(request: Mapping[str, Any]) -> Stage:
    """Returns the stage of the run that sent the request."""
    return "extraction" if request.get("tools") and not _results(request["messages"]) else "synthesis"


def reply_to(request: Mapping[str, Any], script: DemoScript) -> DemoReply:
    """Returns the demo's answer to a request.

    Args:
        request: a chat completion request whose `messages` are a list of objects.
        script: the length and the number of calls.
    """
    reply = _reply_to(request, script)
    return replace(reply, reasoning=_REASONING) if script.reasoning else reply


def _reply_to(request: Mapping[str, Any], script: DemoScript) -> DemoReply:
    messages = request["messages"]
    results = _results(messages)
    calls = [] if results else _calls(request, script)
    if calls and not script.endless:
        tools = " and ".join(dict.fromkeys(call.name for call in calls))
        return DemoReply(_tokens(_CALLING.format(tools=tools)), calls, "tool_calls")
    text = _quote_all(messages, results) if results else _PLAIN.format(prompt=_clip(_prompt(messages)))
    if script.endless:
        return DemoReply(chain(_tokens(text), cycle(_filler())), [], "stop")
    return _cut_to_length(text, script.tokens, request.get("max_tokens") or request.get("max_completion_tokens"))


def _cut_to_length(text: str, wanted: int | None, limit: object) -> DemoReply:
    tokens = list(_tokens(text))
    length = len(tokens) if wanted is None else wanted
    is_cut = isinstance(limit, int) and 0 < limit < length
    length = limit if is_cut and isinstance(limit, int) else length
    return DemoReply(islice(chain(tokens, cycle(_filler())), length), [], "length" if is_cut else "stop")


def _tokens(text: str) -> Iterator[str]:
    return (match[0] for match in _TOKEN.finditer(text))


def _filler() -> list[str]:
    return [f" {word}" for word in _FILLER.split()]


def _calls(request: Mapping[str, Any], script: DemoScript) -> list[DemoCall]:
    functions = _functions(request.get("tools"))
    choice = request.get("tool_choice")
    if choice == "none":
        return []
    if isinstance(choice, dict):
        functions = {name: of for name, of in functions.items() if {"name": name} == choice.get("function")}
    if not functions:
        return []
    names, prompt = list(functions), _prompt(request["messages"])
    calls = _scripted_calls(names, script.calls) if script.calls is not None else _prompt_calls(functions, prompt)
    if not calls and (choice == "required" or isinstance(choice, dict)):
        calls = [_forced_call(functions[names[0]], prompt)]
    return calls[:1] if request.get("parallel_tool_calls") is False else calls


def _functions(tools: object) -> dict[str, Mapping[str, Any]]:
    """Returns the definition of each tool by its name."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            found[function["name"]] = function
    return found


def _forced_call(function: Mapping[str, Any], prompt: str) -> DemoCall:
    name = function["name"]
    if name == WEATHER_TOOL:
        return DemoCall(name, _first_object(prompt) or _weather_arguments(_PLACES[0], name))
    return DemoCall(name, _first_object(prompt) or write_arguments(function, prompt))


def _scripted_calls(names: list[str], number: int) -> list[DemoCall]:
    name = WEATHER_TOOL if WEATHER_TOOL in names else names[0]
    places = islice(cycle(_PLACES), min(number, CALLS_MAX))
    return [DemoCall(name, _weather_arguments(place, name)) for place in places]


def _weather_arguments(place: str, name: str) -> str:
    return json.dumps({"city": place}, ensure_ascii=False) if name == WEATHER_TOOL else "{}"


def _prompt_calls(functions: Mapping[str, Mapping[str, Any]], prompt: str) -> list[DemoCall]:
    names = list(functions)
    asked = _named_calls(functions, prompt) or list(_calls_by_phrase(names, prompt))
    if not asked:
        meant = [of for name, of in functions.items() if name not in _OWN_TOOLS and is_meant(of, prompt)]
        asked = [DemoCall(of["name"], write_arguments(of, prompt)) for of in meant]
    if asked or WEATHER_TOOL not in names:
        return asked
    return [DemoCall(WEATHER_TOOL, _weather_arguments(place, WEATHER_TOOL)) for place in places_in(prompt)]


def _calls_by_phrase(names: list[str], prompt: str) -> Iterator[DemoCall]:
    """Yields the calls that wait for a person."""
    if TABLE_TOOL in names and _BOOKING.search(prompt):
        guests = _GUESTS.search(prompt)
        arguments: dict[str, Any] = {"restaurant": next(iter(places_in(prompt)), _RESTAURANT)}
        if guests:
            word = guests[1].lower()
            arguments["guests"] = int(word) if word.isdecimal() else _NUMBER_WORDS.index(word) + 1
        yield DemoCall(TABLE_TOOL, json.dumps(arguments, ensure_ascii=False))
    if QUESTION_TOOL in names and _ASKING.search(prompt):
        yield DemoCall(QUESTION_TOOL, json.dumps({"question": _QUESTION}))


def _named_calls(functions: Mapping[str, Mapping[str, Any]], prompt: str) -> list[DemoCall]:
    """Returns one call for each occurrence of a tool's exact name in the prompt."""
    longest_first = sorted(functions, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")
    matches = list(pattern.finditer(prompt))[:CALLS_MAX]
    ends = [match.start() for match in matches[1:]] + [len(prompt)]
    return [
        DemoCall(match[0], _first_object(after) or write_arguments(functions[match[0]], after))
        for match, after in ((match, prompt[match.end() : end]) for match, end in zip(matches, ends, strict=False))
    ]


def _first_object(text: str) -> str | None:
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return json.dumps(value, ensure_ascii=False)


def _prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns the text of the last user message."""
    content = next((message.get("content") for message in reversed(messages) if message.get("role") == "user"), "")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _results(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the tool results at the end of the conversation."""
    results: list[Mapping[str, Any]] = []
    for message in reversed(messages):
        if message.get("role") != "tool":
            break
        results.append(message)
    return results[::-1]


def _quote_all(messages: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> str:
    name_by_id: dict[object, str] = {}
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                name_by_id[str(call.get("id"))] = str(call["function"].get("name"))
    sentences = (_quote(name_by_id.get(str(r.get("tool_call_id")), "tool"), str(r.get("content"))) for r in results)
    return _QUOTING.format(sentences=" ".join(sentences), close=_CLOSE)


def _quote(name: str, content: str) -> str:
    try:
        weather = json.loads(content)
        return (
            f"In {weather['place']} it is {weather['temperature_c']:g} °C with {weather['conditions']}, "
            f"and the wind blows at {weather['wind_kmh']:g} km/h."
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return f'The tool {name} said: "{_clip(content)}"'


def _clip(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= QUOTE_MAX_CHARS else text[:QUOTE_MAX_CHARS].rstrip() + " …"
