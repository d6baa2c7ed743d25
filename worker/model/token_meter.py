"""Counts the tokens of one request to a model while its answer streams; sans-IO.

The provider's count is used as soon as it comes. What is streamed before it, or after it, is estimated. So a request
that is cancelled or fails halfway has a count, too.
"""

from typing import Any

from stagebus.shared.domain.token_estimate import estimate_answer_tokens
from stagebus.shared.domain.usage import Usage
from stagebus.worker.model.compat.usage_fields import merge_usage, parse_usage


class TokenMeter:
    """The tokens of one request.

    Args:
        prompt_tokens: the estimate for the prompt. It counts once the provider has begun to answer.

    Attributes:
        output_bytes: the UTF-8 bytes of text, reasoning and calls streamed so far.
        has_answer: whether the provider has begun to answer.
    """

    def __init__(self, prompt_tokens: int = 0) -> None:
        self._prompt_tokens = prompt_tokens
        self.output_bytes = 0
        self.has_answer = False
        self._usage: dict[str, Any] | None = None
        self._usage_of_extension: dict[str, Any] | None = None
        self._reported_tokens = 0
        self._reported_at_bytes = -1

    @property
    def usage(self) -> dict[str, Any] | None:
        """The provider's usage object, merged if there were several; None until one comes."""
        return self._usage or self._usage_of_extension

    @property
    def is_reported(self) -> bool:
        """True if the provider has counted all that was streamed so far."""
        return self._reported_at_bytes == self.output_bytes

    def add_output(self, *texts: str) -> None:
        """Adds text that was streamed."""
        for text in texts:
            self.output_bytes += len(text) if text.isascii() else len(text.encode(errors="replace"))

    def report(self, usage: dict[str, Any]) -> None:
        """Adds a usage object of the provider."""
        self._usage = merge_usage(self._usage, usage)
        self._count(self._usage)

    def report_extension(self, usage: dict[str, Any]) -> None:
        """Adds a usage object from an extension of the format. It counts unless another one comes."""
        self._usage_of_extension = usage
        if self._usage is None:
            self._count(usage)

    def _count(self, usage: dict[str, Any]) -> None:
        self._reported_tokens = parse_usage(usage).total_tokens
        self._reported_at_bytes = self.output_bytes

    def usage_so_far(self) -> Usage | None:
        """Returns the tokens of a request that was stopped; None if the provider had not begun to answer."""
        if not self.tokens:
            return None
        if not self._reported_tokens or self.usage is None:
            answer_tokens = estimate_answer_tokens(self.output_bytes)
            counted = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=answer_tokens)
        else:
            counted = parse_usage(self.usage)
        further = self.tokens - counted.total_tokens if counted.total_tokens else 0
        return counted.model_copy(
            update={
                "completion_tokens": counted.completion_tokens + further,
                "total_tokens": self.tokens,
                "estimated": True if not self.is_reported else None,
            }
        )

    @property
    def tokens(self) -> int:
        """The tokens so far: as the provider counted them, or estimated."""
        if self._reported_tokens:
            return self._reported_tokens + estimate_answer_tokens(self.output_bytes - self._reported_at_bytes)
        if not self.has_answer:
            return 0
        return self._prompt_tokens + estimate_answer_tokens(self.output_bytes)
