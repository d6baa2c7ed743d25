r"""Thoughts that a model's server leaves in the text; sans-IO.

    <think>…</think>Yes.                       DeepSeek R1, Qwen; also <thought> (Gemini), [THINK] (Mistral), …
    …\n</think>\n\nYes.                        where the template opened them in the prompt
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>Yes.    gpt-oss

They are thoughts only where the answer opens with them: one may be about thoughts, or show such tags in code.
Spec: https://cookbook.openai.com/articles/openai-harmony
"""

import re
from typing import Final

from stagebus.worker.model.compat.code_spans import find_code_end

# How each pair opens and closes. Only the first is taken for thoughts where it never closes.
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
_MARKS: Final = [re.compile(f"{opening}|({closing})") for opening, closing in _PAIRS]
# Some templates open the thoughts in the prompt, so that the answer holds nothing but their end. One between
# spaces, or behind a quote or a bracket, is spoken of.
_END_ALONE: Final = re.compile(r"""(?:\A\s*|\n[ \t]*|(?<=[^\s`"'(<>\[{/=]))</think>\s*""")
_HARMONY: Final = re.compile(
    r"(?:<\|start\|>\w+)?(?:\s*to=([\w.]+))?\s*<\|channel\|>(\w+)(?:\s*to=([\w.]+))?\s*(?:<\|constrain\|>)?\s*(?:json)?\s*"
    r"<\|message\|>((?:(?!<\|(?:end|call|return|start)\|>).)*)(?:<\|(?:end|call|return)\|>)?\s*",
    re.DOTALL,
)
_HARMONY_STARTS: Final = ("<|channel|>", "<|start|>")


def split_reasoning(text: str) -> tuple[str, str]:
    """A text's answer and the thoughts that it opens with."""
    if text.lstrip().startswith(_HARMONY_STARTS):
        return _split_harmony(text)
    thoughts = []
    while (opening := _OPENING.match(text)) is not None:
        end = _closing(text, opening)
        if end is None:
            break
        thoughts.append(text[opening.end() : end[0]].strip())
        text = text[end[1] :].lstrip()
    if not thoughts and "<think>" not in text:
        end_alone = _END_ALONE.search(text)
        if end_alone is not None and not find_code_end(text, 0, end_alone.end()):
            return text[end_alone.end() :], text[: end_alone.start()].strip()
    return text, "\n".join(thoughts)


def _closing(text: str, opening: re.Match[str]) -> tuple[int, int] | None:
    """Where thoughts close, and where the text goes on."""
    kind = (opening.lastindex or 1) - 1
    first: re.Match[str] | None = None
    depth = 1
    for mark in _MARKS[kind].finditer(text, opening.end()):
        depth += -1 if mark[1] else 1
        if mark[1] and (not depth or _is_alone(text, mark)):
            return mark.span()
        if mark[1] and first is None:
            first = mark
    if first is not None:
        return first.span()  # what opened within was only spoken of
    return (len(text), len(text)) if kind == 0 else None


def _is_alone(text: str, mark: re.Match[str]) -> bool:
    """On a line of its own a tag is the real one, whatever the thoughts say of tags."""
    return text[mark.start() - 1] == "\n" or text.startswith("\n\n", mark.end())


def _split_harmony(text: str) -> tuple[str, str]:
    """Channels apart: calls become such as other models write."""
    kept: list[str] = []
    thoughts: list[str] = []
    end = 0
    while (message := _HARMONY.match(text, end)) is not None:
        recipient = message[1] or message[3]
        if recipient:
            kept.append(f'<tool_call>{{"name": "{recipient}", "arguments": {message[4].strip() or "{}"}}}</tool_call>')
        else:
            (thoughts if message[2] == "analysis" else kept).append(message[4].strip())
        end = message.end()
    return "\n".join((*kept, text[end:])).strip(), "\n".join(thoughts)
