"""One URL with all its methods, so that 405 and OPTIONS can name every one of them."""

import re
from collections.abc import Iterable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import Receive, Scope, Send

from stagebus.gateway.api.guard import Guarded

NOT_FOUND: Final = 404
METHOD_NOT_ALLOWED: Final = 405
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class MethodRouter:
    """An ASGI app that hands a request to its method's handler; HEAD is answered as GET is."""

    def __init__(self, **handlers: Guarded) -> None:
        """`handlers` are named by their methods: `GET=list_runs, POST=create_run`."""
        if "GET" in handlers:
            handlers.setdefault("HEAD", handlers["GET"])
        self.handlers = handlers
        self.methods = sorted([*handlers, "OPTIONS"])
        self._apps = {method: request_response(handler) for method, handler in handlers.items()}
        self._allow = {"Allow": ", ".join(self.methods)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        # A route's pattern ends before a last line feed: /metrics%0a would be /metrics, which a proxy did not see.
        if _CONTROL.search(scope["path"]):
            raise HTTPException(NOT_FOUND)
        app = self._apps.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=self._allow)(scope, receive, send)
        else:
            raise HTTPException(METHOD_NOT_ALLOWED, headers=self._allow)


def guards(routes: Iterable[BaseRoute]) -> tuple[tuple[str, str, Guarded], ...]:
    """What stands before each method of each path."""
    return tuple(
        (route.path_format, method, handler)
        for route in routes
        if isinstance(route, Route) and isinstance(route.endpoint, MethodRouter)
        for method, handler in route.endpoint.handlers.items()
    )
