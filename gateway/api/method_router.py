"""Routes from endpoints: one route for each path, with all of its methods, so that 405 and OPTIONS list them all."""

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, request_response
from starlette.types import Receive, Scope, Send

from stagebus.gateway.api.endpoint import Endpoint

NOT_FOUND: Final = 404
METHOD_NOT_ALLOWED: Final = 405
# Path parameters that may be any text.
CLIENT_TEXTS: Final = ("{thread_id}",)
_COMPRESSED: Final = (Middleware(GZipMiddleware),)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class MethodRouter:
    """ASGI app that dispatches a request by its method. HEAD is handled like GET."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        """Takes all endpoints of one path."""
        self.endpoints = endpoints
        self.by_method = {one.method: one for one in endpoints}
        if "GET" in self.by_method:
            self.by_method["HEAD"] = self.by_method["GET"]
        self._apps = {method: request_response(one.guard) for method, one in self.by_method.items()}
        self._allow = {"Allow": ", ".join(sorted([*self.by_method, "OPTIONS"]))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        # The pattern of a route ignores a final line feed: /metrics%0a would reach /metrics past a proxy that blocks it.
        if _CONTROL.search(scope["path"]):
            raise HTTPException(NOT_FOUND)
        app = self._apps.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=self._allow)(scope, receive, send)
        else:
            raise HTTPException(METHOD_NOT_ALLOWED, headers=self._allow)


class ClientTextRoute(Route):
    """A route whose path contains a text that the client chose, percent-encoded as one segment.

    It is matched before it is decoded: an id may be `a/events`, which is another path than that of the events of `a`.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Matches the path as it was sent, and decodes the parameters."""
        raw_path = scope.get("raw_path")
        if raw_path is None:  # the server does not tell; ids with slashes are not found then
            return super().matches(scope)
        path: str = raw_path.decode("latin-1")
        if (root_path := scope.get("root_path", "").rstrip("/")) and scope["path"].startswith(f"{root_path}/"):
            path = "/" + path.split("/", root_path.count("/") + 1)[-1]
        match, child_scope = super().matches({**scope, "path": path, "root_path": ""})
        if match is not Match.NONE:
            try:
                params = {name: unquote(text, errors="strict") for name, text in child_scope["path_params"].items()}
            except UnicodeDecodeError:
                return Match.NONE, {}
            child_scope["path_params"] = params
        return match, child_scope


def build_routes(endpoints: Iterable[Endpoint]) -> tuple[BaseRoute, ...]:
    """Returns one route for each path, in the order of the first endpoint of each."""
    by_path: dict[str, list[Endpoint]] = {}
    for one in endpoints:
        by_path.setdefault(one.path, []).append(one)
    return tuple(
        (ClientTextRoute if any(name in path for name in CLIENT_TEXTS) else Route)(
            path, MethodRouter(those), middleware=_COMPRESSED if any(one.is_compressed for one in those) else None
        )
        for path, those in by_path.items()
    )


def endpoints_of(routes: Iterable[BaseRoute]) -> tuple[Endpoint, ...]:
    """Returns the endpoints behind an app's routes."""
    return tuple(
        one
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, MethodRouter)
        for one in route.endpoint.endpoints
    )


def endpoint_of(scope: Scope) -> Endpoint | None:
    """Returns the endpoint that a request was routed to; None if no route or no method matched."""
    router = scope.get("endpoint")
    return router.by_method.get(scope["method"]) if isinstance(router, MethodRouter) else None
