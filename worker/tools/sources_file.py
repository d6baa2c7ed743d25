"""The schema of the tools file, `STAGEBUS_TOOLS_FILE`: the MCP servers and OpenAPI documents of a worker.

[mcp.files]
command = "npx"
args = ["-y", "@modelcontextprotocol/server-filesystem", "/srv/docs"]
include = ["read_*", "list_*", "write_file"]
requires_approval = ["write_*"]

[mcp.search]
url = "https://mcp.example.com/mcp"
headers = { Authorization = { env = "SEARCH_AUTHORIZATION" } }

[openapi.pets]
document = "pets.yaml"
operations = ["listPets", "GET /pets/{petId}"]
bearer = { file = "/run/secrets/pets" }
"""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, field_validator, model_validator

from stagebus.shared.config.config_file import ConfigEntry, ConfigKind, Secret
from stagebus.shared.domain.call_results import EXPIRES_IN_MAX_S
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.egress import HttpOrigin
from stagebus.worker.tools.tool_results import RESULT_MIN_BYTES

KIND: Final = ConfigKind("STAGEBUS_TOOLS_FILE", "docs/tool-sources.md", BadTool)
SOURCES_MAX: Final = 100
OPERATIONS_MAX: Final = 500

# No double underscore, which separates the source's name from the tool's.
SourceName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9-]{1,24}(_[a-zA-Z0-9-]{1,24})*$", max_length=32)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


def _check_url(url: str | None) -> str | None:
    if url is not None:
        HttpOrigin.of(url)
        if "@" in url.partition("//")[2].partition("/")[0]:
            raise ValueError("must not contain a password; use a key or headers")
    return url


class SourceEntry(ConfigEntry):
    """The keys of every source."""

    timeout_s: float | None = Field(
        default=None, gt=0, description="time limit of a call; default: STAGEBUS_TOOL_TIMEOUT_S"
    )
    concurrency: int | None = Field(default=None, ge=1, description="most concurrent calls of one worker")
    max_result_bytes: int | None = Field(
        default=None, ge=RESULT_MIN_BYTES, description="limit of a result; default: STAGEBUS_TOOL_RESULT_MAX_BYTES"
    )
    requires_approval: list[str] = Field(
        default=[], description="tools whose calls wait for a person's approval, by the source's names; * and ? match"
    )
    idempotent: list[str] | None = Field(
        default=None,
        description="tools whose calls may run again after a worker's death; overrides the source's own hints",
    )

    def needs_approval(self, *names: str) -> bool:
        """Returns whether calls of a tool with these names wait for a person's approval."""
        return any(_matches(name, self.requires_approval) for name in names)

    def may_repeat(self, *names: str, otherwise: bool) -> bool:
        """Returns whether a tool with these names is idempotent; `otherwise` is the source's hint."""
        return otherwise if self.idempotent is None else any(_matches(name, self.idempotent) for name in names)

    def unknown(self, patterns: Iterable[str], names: Collection[str]) -> list[str]:
        """Returns the patterns that match no tool of the source: misspelt, or the tool was removed."""
        return [pattern for pattern in dict.fromkeys(patterns) if not any(_matches(name, [pattern]) for name in names)]


class McpEntry(SourceEntry):
    """One MCP server: a command or a URL."""

    command: str | None = Field(default=None, min_length=1, description="program that speaks MCP over stdin and stdout")
    args: list[str] = Field(default=[], max_length=256, description="arguments of the command")
    env: dict[VariableName, Secret] = Field(
        default={},
        description="environment variables of the command; it inherits only PATH, HOME, USER, LOGNAME, SHELL and TERM",
    )
    cwd: Path | None = Field(default=None, description="working directory of the command")
    url: str | None = Field(default=None, description="URL of a server that speaks MCP over streamable HTTP")
    headers: dict[HeaderName, Secret] = Field(default={}, description="headers of each request")
    include: list[str] = Field(default=["*"], description="tools to offer, by the server's names; * and ? match")
    exclude: list[str] = Field(default=[], description="tools of `include` that are not offered")
    tasks: list[str] = Field(
        default=["*"],
        description="tools to run as tasks if the server leaves it to the client; [] also refuses tasks of the "
        "extension of 2026-07-28",
    )
    task_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=EXPIRES_IN_MAX_S,
        description="time limit of a call that runs as a task, and the `ttl` asked for; default: STAGEBUS_CALL_WAIT_S",
    )
    connect_timeout_s: float = Field(
        default=30.0, gt=0, description="time limit until a started server has listed its tools"
    )

    _check_url = field_validator("url")(_check_url)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("must have either a command or a url")
        if self.url is not None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd need a command, not a url")
        if self.command is not None and self.headers:
            raise ValueError("headers need a url, not a command")
        return self

    def offers(self, tool: str) -> bool:
        """Returns whether a tool of the server is offered."""
        return _matches(tool, self.include) and not _matches(tool, self.exclude)

    def takes_task(self, tool: str) -> bool:
        """Returns whether a tool of the server runs as a task if the client may choose."""
        return _matches(tool, self.tasks)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class BasicAuth(ConfigEntry):
    """Credentials of HTTP basic authentication."""

    user: str = Field(pattern=r"^[^:\x00-\x1f]{1,256}$")
    password: Secret


class OpenApiEntry(SourceEntry):
    """One OpenAPI document and the operations to offer."""

    document: str = Field(min_length=1, description="path or URL of the document, JSON or YAML")
    operations: list[str] = Field(
        min_length=1, max_length=OPERATIONS_MAX, description="operations to offer: operationIds, or GET /path"
    )
    base_url: str | None = Field(
        default=None, description="base URL of the service; default: the document's first server"
    )
    fixed: dict[str, Any] = Field(
        default={}, description="values of parameters and body properties that the model cannot see or set"
    )
    bearer: Secret | None = Field(default=None, description="token for the Authorization header")
    basic: BasicAuth | None = Field(default=None, description="user and password for the Authorization header")
    headers: dict[HeaderName, Secret] = Field(default={}, description="headers of each request, such as X-Api-Key")
    query: dict[str, Secret] = Field(default={}, description="query parameters of each request, such as api_key")
    idempotency_header: HeaderName | None = Field(
        default=None,
        description="header by which the service recognises a repeated call; makes every call repeatable",
    )

    _check_base_url = field_validator("base_url")(_check_url)

    @property
    def is_remote(self) -> bool:
        """Returns whether the document is at a URL."""
        return self.document.startswith(("http://", "https://"))

    @property
    def has_credentials(self) -> bool:
        """Returns whether requests carry values of the operator, which only a server of the operator's choice may get."""
        return bool(self.bearer or self.basic or self.headers or self.query or self.fixed)

    @model_validator(mode="after")
    def _check_document(self) -> Self:
        if self.is_remote:
            _check_url(self.document)
        if self.bearer is not None and self.basic is not None:
            raise ValueError("must not have both bearer and basic")
        return self


class SourcesFile(ConfigEntry):
    """The tools file."""

    mcp: dict[SourceName, McpEntry] = Field(default={}, max_length=SOURCES_MAX)
    openapi: dict[SourceName, OpenApiEntry] = Field(default={}, max_length=SOURCES_MAX)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        both = sorted(self.mcp.keys() & self.openapi.keys())
        if both:
            raise ValueError(f"mcp and openapi both define {', '.join(both)}; their tools would have the same names")
        return self
