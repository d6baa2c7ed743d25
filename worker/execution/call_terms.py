"""The terms under which the calls of a run's round wait for results from outside, and their tokens."""

from functools import partial
from urllib.parse import quote

from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.cursor import EventId
from stagebus.shared.domain.runs import RunRecord
from stagebus.shared.runtime.call_tokens import CallIdentity, CallToken, CallTokens
from stagebus.worker.stages.deferred_calls import NO_TOKEN, CallTerms


def call_terms(run: RunRecord, ref: EventId, settings: Settings) -> CallTerms:
    """Returns the terms of one round.

    Args:
        ref: the id of the event that completed the model's answer with the calls.
    """
    return CallTerms(
        ref=str(ref),
        wait_s=settings.call_wait_default_s,
        wait_max_s=settings.call_wait_max_s,
        token_of=partial(_token_of, run, ref, settings),
        result_url_of=partial(_result_url_of, run.run_id, settings.public_url.rstrip("/")),
    )


def _token_of(run: RunRecord, ref: EventId, settings: Settings, call_id: str) -> CallToken:
    """Returns the token of a call. It is the same in all attempts, so its end must be, too."""
    if not settings.secrets:
        return NO_TOKEN
    # An attempt's number is the ms from the run's creation to its claim.
    asked_at = (run.created_at + ref.attempt) / 1000
    longest_s = settings.run_timeout_max_s + settings.approval_wait_s + settings.call_wait_max_s
    identity = CallIdentity(run.tenant, run.run_id, call_id, str(ref))
    return CallTokens(settings.secrets).issue(identity, asked_at + longest_s)


def _result_url_of(run_id: str, public_url: str, call_id: str, token: str) -> str:
    """Returns the URL, without a ticket if there is no token: an open gateway asks for none."""
    if not public_url:
        return ""
    url = f"{public_url}/runs/{run_id}/calls/{quote(call_id, safe='')}/result"
    return f"{url}?ticket={token}" if token else url
