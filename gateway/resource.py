"""One URL with all its methods, so that 405 and OPTIONS can name every one of them."""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response
from starlette.types import Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]

METHOD_NOT_ALLOWED: Final = 405


class Resource:
    """An ASGI app that hands a request to its method's handler; HEAD is answered as GET is."""

    def __init__(self, **handlers: Handler) -> None:
        """`handlers` are named by their methods: `GET=list_runs, POST=create_run`."""
        if "GET" in handlers:
            handlers.setdefault("HEAD", handlers["GET"])
        self.methods = sorted([*handlers, "OPTIONS"])
        self._apps = {method: request_response(handler) for method, handler in handlers.items()}
        self._allow = {"Allow": ", ".join(self.methods)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._apps.get(scope["method"])
        if app is not None:
            await app(scope, receive, send)
        elif scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=self._allow)(scope, receive, send)
        else:
            raise HTTPException(METHOD_NOT_ALLOWED, headers=self._allow)
