"""The tools of one OpenAPI document: its chosen operations, called through the egress guard.

A file is read before the worker starts, so an invalid one stops the start. A document at a URL is fetched until it is
available; meanwhile the worker runs without its tools.
"""

import asyncio
import base64
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool, KeyMissing
from stagebus.shared.json_schema.schema_validator import SchemaValidator
from stagebus.shared.observability import trace
from stagebus.shared.observability.redaction import remember
from stagebus.shared.runtime.tasks import cancel_and_wait
from stagebus.worker.tools.call_limiter import CallLimiter
from stagebus.worker.tools.egress import Egress, EgressRefused, HttpOrigin
from stagebus.worker.tools.openapi.document_process import DocumentReading
from stagebus.worker.tools.openapi.openapi_document import OpenApiOperation
from stagebus.worker.tools.openapi.openapi_request import OperationRequest, build_request
from stagebus.worker.tools.signature import BadArguments
from stagebus.worker.tools.sources import SourcedTool
from stagebus.worker.tools.sources_file import OpenApiEntry
from stagebus.worker.tools.tool import ToolError
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_names import name_tools
from stagebus.worker.tools.tool_results import ToolReply

logger = logging.getLogger(__name__)

# A worker waits this long for a document before it takes runs without its tools.
FETCH_MAX_S: Final = 10.0
BACKOFF_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
# What the web uses. Python has further codecs, such as punycode, which takes minutes for 4 MB.
_CHARSET: Final = re.compile(
    r"(?:utf|iso|latin|windows|cp|gb|euc|koi8|shift|mac)[-_]?[0-9a-z]{1,8}(?:[-_][0-9a-z]{1,5}){0,2}|us-ascii|ascii|big5|sjis",
    re.IGNORECASE,
)


class OpenApiSource:
    """The operations of one document, and an HTTP client for each of their origins."""

    def __init__(self, name: str, entry: OpenApiEntry, settings: Settings, egress: Egress) -> None:
        """Raises BadTool if the document is an invalid file."""
        self.name = name
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False
        self._entry = entry
        self._egress = egress
        self._timeout_s = entry.timeout_s or settings.tool_timeout_s
        self._limiter = CallLimiter(entry.concurrency)
        self._tools: list[SourcedTool] = []
        self._clients: dict[HttpOrigin, httpx2.AsyncClient] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._schema_max_bytes = settings.tool_schema_max_bytes
        if not entry.is_remote:
            text = _read_file(Path(entry.document), settings.egress_response_max_bytes)
            with self._naming_errors():
                self._offer(self._reading("").read(text))

    def tools(self) -> list[SourcedTool]:
        """Returns a tool for each chosen operation, once the document is available."""
        return self._tools

    async def start(self) -> None:
        """Starts to fetch the document unless it is a file, and waits for the first try."""
        if self._entry.is_remote:
            self._fetching = asyncio.create_task(self._fetch_until_available())
            with suppress(TimeoutError):
                async with asyncio.timeout(FETCH_MAX_S):
                    await self._tried.wait()

    async def aclose(self) -> None:
        """Closes all connections."""
        if self._fetching is not None:
            await cancel_and_wait(self._fetching)
        for client in self._clients.values():
            await client.aclose()

    # --- the document --------------------------------------------------------

    async def _fetch_until_available(self) -> None:
        backoff_s = BACKOFF_S
        while True:
            try:
                await self._fetch_once()
                return
            except Exception as exc:  # noqa: BLE001 - the server may answer anything, and the fetching must continue
                reason = str(exc) or type(exc).__name__
                logger.warning(
                    "openapi.%s: cannot get the document: %s; next try in %.0f s", self.name, reason, backoff_s
                )
            finally:
                self._tried.set()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _fetch_once(self) -> None:
        async with asyncio.timeout(FETCH_MAX_S):
            text, location = await self._fetch()
        with self._naming_errors():
            self._offer(await self._reading(location).read_in_child(text))
        self.on_change()

    async def _fetch(self) -> tuple[bytes, str]:
        async with self._egress.client([self._entry.document], timeout_s=FETCH_MAX_S) as client:
            response = await client.get(self._entry.document)
            if not response.is_success:
                raise BadTool(f"its URL answered {response.status_code}")
            return response.content, str(response.url)

    def _reading(self, location: str) -> DocumentReading:
        entry = self._entry
        return DocumentReading(entry.operations, entry.base_url, location, entry.fixed, self._schema_max_bytes)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Adds the name of the source to the message of an invalid document."""
        try:
            yield
        except BadTool as exc:
            raise BadTool(f"openapi.{self.name}: {exc}") from exc

    def _offer(self, operations: list[OpenApiOperation]) -> None:
        _check_names(self._entry, operations)
        _check_origins(self._entry, operations)
        for operation in operations:
            origin = HttpOrigin.of(operation.base_url)
            if origin not in self._clients:
                self._clients[origin] = self._egress.client([operation.base_url], timeout_s=self._timeout_s)
        named = name_tools(self.name, [operation.name for operation in operations])
        self._tools = [self._tool(named[operation.name], operation) for operation in operations]
        self.is_known = True

    def _tool(self, name: str, operation: OpenApiOperation) -> SourcedTool:
        validator = SchemaValidator(operation.schema)
        entry = self._entry
        is_idempotent = operation.is_idempotent or entry.idempotency_header is not None
        return SourcedTool(
            name=name,
            description=operation.description,
            parameters=operation.schema,
            call=partial(self._call, operation),
            idempotent=entry.may_repeat(*operation.names, otherwise=is_idempotent),
            timeout_s=entry.timeout_s,
            result_max_bytes=entry.max_result_bytes,
            requires_approval=entry.needs_approval(*operation.names),
            limiter=self._limiter,
            check=partial(_check, name, validator, operation),
        )

    # --- calls ---------------------------------------------------------------

    async def _call(self, operation: OpenApiOperation, arguments: dict[str, Any], context: ToolContext) -> ToolReply:
        client = self._clients[HttpOrigin.of(operation.base_url)]
        try:
            request = build_request(operation, arguments, {n: v.read() for n, v in self._entry.query.items()})
            response = await client.request(
                request.method, request.url, headers=self._headers(request, context), content=request.body
            )
        except KeyMissing as exc:
            logger.warning("openapi.%s: %s", self.name, exc)
            raise ToolError("the operator's key for this service is missing") from exc
        except httpx2.TooManyRedirects as exc:
            raise ToolError("the service sent too many redirects") from exc
        except EgressRefused as exc:
            raise ToolError(f"the service may not be reached: {exc}") from exc
        except httpx2.ConnectError as exc:
            raise ToolError("the service cannot be reached") from exc
        except httpx2.HTTPError as exc:
            unknown = "" if operation.is_idempotent else "; whether it took effect is unknown"
            words = "did not answer in time" if isinstance(exc, httpx2.TimeoutException) else f"broke off: {exc}"
            raise ToolError(f"the service {words}{unknown}") from exc
        return _reply_of(response)

    def _headers(self, request: OperationRequest, context: ToolContext) -> httpx2.Headers:
        """Returns the headers of the request; those of the operator override those of the model."""
        entry = self._entry
        headers = httpx2.Headers(trace.current().headers())
        headers.update(request.headers)
        if entry.idempotency_header is not None:
            headers[entry.idempotency_header] = context.idempotency_key
        if entry.bearer is not None:
            headers["Authorization"] = f"Bearer {entry.bearer.read()}"
        if entry.basic is not None:
            pair = f"{entry.basic.user}:{entry.basic.password.read()}"
            encoded = base64.b64encode(pair.encode()).decode()
            remember(encoded)
            headers["Authorization"] = f"Basic {encoded}"
        headers.update({name: value.read() for name, value in entry.headers.items()})
        return headers


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
    except OSError as exc:
        raise BadTool(f"{path}, named by the tools file, cannot be read ({exc.strerror})") from exc
    if len(text) > max_bytes:
        raise BadTool(f"{path} is larger than {max_bytes} bytes (STAGEBUS_EGRESS_RESPONSE_MAX_BYTES)")
    return text


def _check_origins(entry: OpenApiEntry, operations: list[OpenApiOperation]) -> None:
    """Checks that a document at a URL does not decide where the operator's keys and fixed values are sent."""
    named = HttpOrigin.of(entry.document) if entry.is_remote and entry.base_url is None else None
    for operation in operations:
        try:
            origin = HttpOrigin.of(operation.base_url)
        except ValueError as exc:
            raise BadTool(f"operation {operation.name!r}: its server {operation.base_url!r} is {exc}") from None
        if named is not None and entry.has_credentials and origin not in (named, named.upgraded()):
            raise BadTool(
                f"operation {operation.name!r}: its server {operation.base_url} has another origin than the document, and "
                "keys and fixed values are only sent where the tools file says; set base_url to that server to allow it"
            )


def _check_names(entry: OpenApiEntry, operations: list[OpenApiOperation]) -> None:
    patterns = [*entry.requires_approval, *(entry.idempotent or ())]
    if unknown := entry.unknown(patterns, [name for operation in operations for name in operation.names]):
        raise BadTool(f"no chosen operation is called {unknown[0]!r}")


async def _check(name: str, validator: SchemaValidator, operation: OpenApiOperation, arguments: dict[str, Any]) -> None:
    verdict = await validator.validate(arguments)  # the service checks what could not be decided
    if verdict.errors:
        raise BadArguments("\n".join([f"The arguments do not fit {name}:", *(f"- {text}" for text in verdict.errors)]))
    build_request(operation, arguments, {})


def _reply_of(response: httpx2.Response) -> ToolReply:
    """Returns the status of a response, and its body if it is text."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip() or "no type"
    body = response.content
    charset = response.charset_encoding or ""
    try:
        text = body.decode(charset if _CHARSET.fullmatch(charset) else "utf-8")
    except (UnicodeDecodeError, LookupError):
        text = "\0"
    if "\0" in text:
        text = f"[{kind}, {len(body)} bytes, not shown]"
    return ToolReply(
        f"HTTP {response.status_code}\n{text}" if text else f"HTTP {response.status_code}", not response.is_success
    )
