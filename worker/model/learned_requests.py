"""Remembers how a provider's models refused requests, so that the next request is one that they accept; sans-IO.

    400 "… not supported in /v1/chat/completions. Please use /v1/responses instead"    the model is asked by /responses
    400 param "include": "Encrypted content is not supported with this model"           the field is left out

    400 "Conversation roles must alternate user/assistant/…"                            their messages are joined

They are learnt only about what the providers file leaves open: an API that it does not state, fields that Stagebus
adds by itself, and the order of roles. Each process learns for itself, at the price of one refused request for each model.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from stagebus.shared.config.providers import ModelRoute
from stagebus.shared.domain.model_items import Api
from stagebus.worker.model.alternation import demands_alternation, with_alternating_roles
from stagebus.worker.model.compat.error_shapes import ReportedError

# With a wildcard model, clients choose the names. At this number, everything is forgotten.
MODELS_MAX: Final = 1000

_STATUSES: Final = frozenset({400, 404, 422})
_USE_RESPONSES: Final = re.compile(r"\bv1/responses\b", re.IGNORECASE)
_BAD_ITEMS: Final = re.compile(
    r"encrypted.?content.{0,80}(?:verif|decrypt|pars|invalid)|invalid.{0,10}(?:encrypted.?content|signature)"
    r"|thinking.{0,40}blocks?.{0,80}(?:cannot be modified|invalid)|of type .reasoning. was provided without"
    r"|items are not persisted",
    re.IGNORECASE,
)
# Fields of a request that no run asked for.
_OWN_FIELDS: Final[Mapping[Api, frozenset[str]]] = {
    "chat": frozenset(),
    "responses": frozenset({"include", "prompt_cache_key"}),
    "messages": frozenset(),
}
_NAME: Final = re.compile(r"\w+")


def refuses_items(status: int, error: ReportedError) -> bool:
    """Returns whether a request was refused for what the model wrote for itself, such as reasoning by a key that is gone.

    OpenAI's code is `invalid_encrypted_content`, Anthropic says "Invalid `signature` in `thinking` block".
    """
    return status in _STATUSES and _BAD_ITEMS.search(f"{error.code} {error.message}") is not None


class LearnedRequests:
    """The lessons of one provider's refusals."""

    def __init__(self) -> None:
        self._asked_by_responses: set[str] = set()
        self._left_out: dict[str, frozenset[str]] = {}
        self._alternating: set[str] = set()

    def api_of(self, route: ModelRoute) -> Api:
        """Returns the API by which the model is asked."""
        return "responses" if route.model_id in self._asked_by_responses else route.api

    def adapt(self, route: ModelRoute, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the body without the fields that the model refused, and with the roles in the order that it needs."""
        if route.abilities.alternating_roles or route.model_id in self._alternating:
            body = with_alternating_roles(body)
        refused = self._left_out.get(route.model_id)
        return body if refused is None else {name: value for name, value in body.items() if name not in refused}

    def learn(self, route: ModelRoute, status: int, error: ReportedError) -> bool:
        """Learns from a refused request. Returns whether the next request to the model will be another one."""
        if status not in _STATUSES:
            return False
        if len(self._asked_by_responses) + len(self._left_out) + len(self._alternating) >= MODELS_MAX:
            self._asked_by_responses.clear()
            self._left_out.clear()
            self._alternating.clear()
        api = self.api_of(route)
        if api != "messages" and demands_alternation(error.message):
            is_new = not route.abilities.alternating_roles and route.model_id not in self._alternating
            self._alternating.add(route.model_id)
            return is_new
        if api == "chat" and not route.is_api_stated and _USE_RESPONSES.search(error.message):
            self._asked_by_responses.add(route.model_id)
            return True
        before = self._left_out.get(route.model_id, frozenset())
        named = _NAME.match(error.param)
        refused = {named[0]} if named else set(re.findall(r"['\"`](\w+)['\"`]", error.message))
        found = (refused & _OWN_FIELDS[api]) - before
        if found:
            self._left_out[route.model_id] = before | found
        return bool(found)
