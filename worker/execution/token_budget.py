"""The token budget of one attempt: counts the run's tokens, and ends the run when it has used more than it may.

    max_total_tokens of the request     the run's own limit, checked here
    tokens_per_day of the tenant        checked in Redis: a run may use what is reserved for it (lua/reserve.lua)

A reservation is made when the run is created. The budget asks for more before a request that may need more, and when
a stream has used it up; the stream waits for the answer. Few runs ask at all.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.domain.token_estimate import DEFAULT_ANSWER_TOKENS
from stagebus.shared.errors import BudgetExceeded
from stagebus.shared.storage import queue_scripts
from stagebus.shared.storage.lua_script import ScriptConnection
from stagebus.shared.storage.redis_retry import retry_while_redis_is_down
from stagebus.shared.storage.run_scripts import Claim
from stagebus.worker.model.token_meter import TokenMeter

# A stream that has used up its reservation asks for this much more.
STEP_TOKENS: Final = DEFAULT_ANSWER_TOKENS


class TokenBudget:
    """Counts the tokens of a run's requests, one request at a time, and holds the run to its limits."""

    def __init__(
        self,
        connection: ScriptConnection,
        run: RunRecord,
        claim: Claim,
        settings: Settings,
    ) -> None:
        """Continues the count of the run's earlier attempts."""
        self._connection = connection
        self._run = run
        self._attempt = claim.attempt
        self._settings = settings
        self._max_total_tokens: int | None = run.request.get("max_total_tokens")
        self._counted = run.tokens  # without the open request
        self._allow(claim.reserved)
        self._limit = 0  # of the tenant, as Redis said last
        self._meter: TokenMeter | None = None

    @property
    def tokens(self) -> int:
        """The tokens of the run so far, over all attempts."""
        return self._counted if self._meter is None else self._counted + self._meter.tokens

    @asynccontextmanager
    async def request(self, prompt_tokens: int, answer_tokens: int) -> AsyncIterator[TokenMeter]:
        """Context manager: the meter of one request, whose tokens count however the request ends.

        Args:
            prompt_tokens: the estimate for its prompt.
            answer_tokens: the estimate for its answer.

        Raises:
            BudgetExceeded: the run may not use any further token.
            Fenced, RunEnded: another attempt owns the run, or it has ended.
        """
        await self._reserve(self._counted + prompt_tokens + answer_tokens)
        if self._counted >= self._allowed:
            raise self.failure()
        meter = self._meter = TokenMeter(prompt_tokens)
        try:
            yield meter
        finally:
            self._counted += meter.tokens
            self._meter = None

    @property
    def is_used_up(self) -> bool:
        """True if the run has used more than it may, unless more is reserved for it."""
        return self.tokens > self._allowed

    @property
    def is_stream_over(self) -> bool:
        """True if a stream has to stop, unless more is reserved. Read for each of its chunks.

        The usage usually comes last: it does not stop an answer that is complete. The check after the stage does.
        """
        meter = self._meter
        return meter is not None and self._counted + meter.tokens > self._allowed and not meter.is_reported

    async def check(self, further: int = 0) -> None:
        """Reserves what the run has used, if that is more than its reservation.

        Args:
            further: tokens to reserve beyond that.

        Raises:
            BudgetExceeded: the run has used more than it may.
            Fenced, RunEnded: as `request`.
        """
        if self.is_used_up:
            await self._reserve(self.tokens + further)
            if self.is_used_up:
                raise self.failure()

    def failure(self) -> BudgetExceeded:
        """Returns the error that ends the run."""
        if self._max_total_tokens is not None and self.tokens >= self._max_total_tokens:
            return BudgetExceeded(
                f"the run used {self.tokens} tokens, and its max_total_tokens is {self._max_total_tokens}"
            )
        return BudgetExceeded(
            f"the run used {self.tokens} tokens, and the rest of its tenant's {self._limit} tokens of the day is used or "
            "reserved by other runs; the day ends at midnight UTC"
        )

    def _allow(self, reserved: int) -> None:
        self._reserved = reserved
        self._allowed = reserved if self._max_total_tokens is None else min(reserved, self._max_total_tokens)

    async def _reserve(self, wanted: int) -> None:
        if self._max_total_tokens is not None:
            wanted = min(wanted, self._max_total_tokens)
        if wanted <= self._reserved:
            return
        reserve = partial(
            queue_scripts.reserve,
            self._connection,
            self._run.run_id,
            tenant=self._run.tenant,
            attempt=self._attempt,
            wanted=wanted,
            tokens_per_day=self._settings.tenant_tokens_per_day,
            life_s=self._settings.lists_ttl_s,
        )
        granted = await retry_while_redis_is_down(reserve, f"run {self._run.run_id}: its tokens")
        self._limit = granted.limit
        self._allow(granted.tokens)
