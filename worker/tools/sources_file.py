"""The tools file, `STAGEBUS_TOOLS_FILE`: MCP servers and OpenAPI documents whose tools a worker has.

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
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.egress import HttpOrigin
from stagebus.worker.tools.tool_results import RESULT_MIN_BYTES

KIND: Final = ConfigKind("STAGEBUS_TOOLS_FILE", "docs/tool-sources.md", BadTool)
SOURCES_MAX: Final = 100
OPERATIONS_MAX: Final = 500

# No double underscore: that is what parts a source's name from a tool's.
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
    """What all sources may say."""

    timeout_s: float | None = Field(default=None, gt=0, description="one call; else STAGEBUS_TOOL_TIMEOUT_S")
    concurrency: int | None = Field(default=None, ge=1, description="calls that one worker has at work here at once")
    max_result_bytes: int | None = Field(
        default=None, ge=RESULT_MIN_BYTES, description="of a result; else STAGEBUS_TOOL_RESULT_MAX_BYTES"
    )
    requires_approval: list[str] = Field(
        default=[], description="the tools whose calls wait for a person, by the source's names; * and ? match"
    )
    idempotent: list[str] | None = Field(
        default=None,
        description="the tools whose calls may run again if a worker dies in them, in place of what the source says",
    )

    def needs_approval(self, *names: str) -> bool:
        """Whether calls of the tool of these names wait for a person."""
        return any(_matches(name, self.requires_approval) for name in names)

    def may_repeat(self, *names: str, otherwise: bool) -> bool:
        """Whether the tool of these names is idempotent; `otherwise`: what its source says."""
        return otherwise if self.idempotent is None else any(_matches(name, self.idempotent) for name in names)

    def unknown(self, patterns: Iterable[str], names: Collection[str]) -> list[str]:
        """Those of an option's patterns that are no tool of the source: written wrong, or the tool is gone."""
        return [pattern for pattern in dict.fromkeys(patterns) if not any(_matches(name, [pattern]) for name in names)]


class McpEntry(SourceEntry):
    """One MCP server: a command, or an address."""

    command: str | None = Field(default=None, min_length=1, description="a program that speaks MCP over its pipes")
    args: list[str] = Field(default=[], max_length=256, description="the command's arguments")
    env: dict[VariableName, Secret] = Field(
        default={},
        description="its environment, beside PATH, HOME, USER, LOGNAME, SHELL and TERM; no more is inherited",
    )
    cwd: Path | None = Field(default=None, description="the folder that it runs in")
    url: str | None = Field(default=None, description="a server that speaks MCP over streamable HTTP")
    headers: dict[HeaderName, Secret] = Field(default={}, description="headers of each request")
    include: list[str] = Field(default=["*"], description="the tools to offer, by the server's names; * and ? match")
    exclude: list[str] = Field(default=[], description="of those, the ones not to offer")
    connect_timeout_s: float = Field(
        default=30.0, gt=0, description="until a server that was started has told its tools"
    )

    _check_url = field_validator("url")(_check_url)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("has either a command or a url")
        if self.url is not None and (self.args or self.env or self.cwd):
            raise ValueError("args, env and cwd go with a command, not with a url")
        if self.command is not None and self.headers:
            raise ValueError("headers go with a url, not with a command")
        return self

    def offers(self, tool: str) -> bool:
        """Whether a tool of the server's is wanted."""
        return _matches(tool, self.include) and not _matches(tool, self.exclude)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class BasicAuth(ConfigEntry):
    """A user and a password."""

    user: str = Field(pattern=r"^[^:\x00-\x1f]{1,256}$")
    password: Secret


class OpenApiEntry(SourceEntry):
    """One OpenAPI document, and what of it is offered."""

    document: str = Field(min_length=1, description="the document, JSON or YAML: a file, or an address")
    operations: list[str] = Field(
        min_length=1, max_length=OPERATIONS_MAX, description="what becomes a tool: operationIds, or GET /path"
    )
    base_url: str | None = Field(default=None, description="where the service is; else the document's first server")
    fixed: dict[str, Any] = Field(
        default={}, description="parameters, and properties of bodies, that no model sees or sets"
    )
    bearer: Secret | None = Field(default=None, description="a token, for Authorization")
    basic: BasicAuth | None = Field(default=None, description="a user and a password, for Authorization")
    headers: dict[HeaderName, Secret] = Field(default={}, description="headers of each request, such as X-Api-Key")
    query: dict[str, Secret] = Field(default={}, description="query parameters of each request, such as api_key")
    idempotency_header: HeaderName | None = Field(
        default=None,
        description="the header by which the service knows a repeated call; then every call may be repeated",
    )

    _check_base_url = field_validator("base_url")(_check_url)

    @property
    def is_remote(self) -> bool:
        """Whether the document is at an address."""
        return self.document.startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _check_document(self) -> Self:
        if self.is_remote:
            _check_url(self.document)
        if self.bearer is not None and self.basic is not None:
            raise ValueError("has either bearer or basic")
        return self


class SourcesFile(ConfigEntry):
    """The whole file."""

    mcp: dict[SourceName, McpEntry] = Field(default={}, max_length=SOURCES_MAX)
    openapi: dict[SourceName, OpenApiEntry] = Field(default={}, max_length=SOURCES_MAX)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        both = sorted(self.mcp.keys() & self.openapi.keys())
        if both:
            raise ValueError(f"mcp and openapi both have {', '.join(both)}; their tools would be called alike")
        return self
