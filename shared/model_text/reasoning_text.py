r"""Separates reasoning that a model's server leaves in the text; sans-IO.

    <think>…</think>Yes.                       DeepSeek R1, Qwen; also <thought> (Gemini), [THINK] (Mistral), …
    …\n</think>\n\nYes.                        if the template opened the reasoning in the prompt
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>Yes.    gpt-oss

Only reasoning at the start of an answer is separated. Later tags may be part of the answer, for example in code.
Spec: https://cookbook.openai.com/articles/openai-harmony
"""

import itertools
import re
from typing import Final

from stagebus.shared.model_text.code_spans import find_code_end

# The opening and closing tags. Only the first kind counts as reasoning if it is never closed.
_PAIRS: Final = (
    (r"<think>", r"</think>"),
    (r"<thinking>", r"</thinking>"),
    (r"<thought>", r"</thought>"),
    (r"<seed:think>", r"</seed:think>"),
    (r"<mm:think>", r"</mm:think>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
)
_OPENING: Final = re.compile(r"\s*(?:" + "|".join(f"({opening})" for opening, _ in _PAIRS) + ")")
_TAGS: Final = [re.compile(f"{opening}|({closing})") for opening, closing in _PAIRS]
# Some templates open the reasoning in the prompt, so that the answer contains only the closing tag. A tag between
# spaces, or after a quote or a bracket, is only mentioned.
_CLOSING_ALONE: Final = re.compile(r"""(?:\A\s*|\n[ \t]*|(?<=[^\s`"'(<>\[{/=]))</think>\s*""")
# Possessive (`*+`): none of the runs of spaces gives any back, so the time is linear.
_HARMONY: Final = re.compile(
    r"(?:<\|start\|>\w+)?(?:\s*+to=([\w.]+))?\s*+<\|channel\|>(\w+)(?:\s*+to=([\w.]+))?\s*+(?:<\|constrain\|>)?\s*+"
    r"(?:json)?\s*+"
    r"<\|message\|>((?:(?!<\|(?:end|call|return|start)\|>).)*)(?:<\|(?:end|call|return)\|>)?\s*",
    re.DOTALL,
)
# The tags of a kind and the blocks of reasoning that are looked at: real answers have one or two.
_TAGS_MAX: Final = 1_000
_BLOCKS_MAX: Final = 20
_HARMONY_STARTS: Final = ("<|channel|>", "<|start|>")


def split_reasoning(text: str) -> tuple[str, str]:
    """Splits a text into the answer and the reasoning at its start."""
    if text.lstrip().startswith(_HARMONY_STARTS):
        return _split_harmony(text)
    reasoning: list[str] = []
    start = 0
    while len(reasoning) < _BLOCKS_MAX and (opening := _OPENING.match(text, start)) is not None:
        end = _find_closing(text, opening)
        if end is None:
            break
        reasoning.append(text[opening.end() : end[0]].strip())
        start = end[1]
    text = text[start:].lstrip() if reasoning else text
    if not reasoning and "<think>" not in text:
        closing = _CLOSING_ALONE.search(text)
        if closing is not None and not find_code_end(text, 0, closing.end()):
            return text[closing.end() :], text[: closing.start()].strip()
    return text, "\n".join(reasoning)


def _find_closing(text: str, opening: re.Match[str]) -> tuple[int, int] | None:
    """Returns the start and the end of the closing tag, or None if the reasoning is not closed."""
    kind = (opening.lastindex or 1) - 1
    first: re.Match[str] | None = None
    depth = 1
    for tag in itertools.islice(_TAGS[kind].finditer(text, opening.end()), _TAGS_MAX):
        depth += -1 if tag[1] else 1
        if tag[1] and (not depth or _is_alone(text, tag)):
            return tag.span()
        if tag[1] and first is None:
            first = tag
    if first is not None:
        return first.span()  # the tags that opened inside were only mentioned
    return (len(text), len(text)) if kind == 0 else None


def _is_alone(text: str, tag: re.Match[str]) -> bool:
    """Returns whether the tag begins a line or a blank line follows. Then it is real, not mentioned."""
    return text[tag.start() - 1] == "\n" or text.startswith("\n\n", tag.end())


def _split_harmony(text: str) -> tuple[str, str]:
    """Separates the channels of the Harmony format. Calls are rewritten in the form of Hermes."""
    kept: list[str] = []
    reasoning: list[str] = []
    end = 0
    while (message := _HARMONY.match(text, end)) is not None:
        recipient = message[1] or message[3]
        if recipient:
            kept.append(f'<tool_call>{{"name": "{recipient}", "arguments": {message[4].strip() or "{}"}}}</tool_call>')
        else:
            (reasoning if message[2] == "analysis" else kept).append(message[4].strip())
        end = message.end()
    return "\n".join((*kept, text[end:])).strip(), "\n".join(reasoning)
