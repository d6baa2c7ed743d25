"""All settings, read once at start from environment variables and passed down.

The variables are called `STAGEBUS_<FIELD>`, except for `OPENAI_BASE_URL` and `OPENAI_API_KEY`, which other tools use,
too. docs/configuration.md is made from this class.
"""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stagebus.shared.config.host_names import check_hosts, check_origins
from stagebus.shared.config.redis_url import RedisUrl
from stagebus.shared.domain.call_results import EXPIRES_IN_MAX_S
from stagebus.shared.domain.limits import TenantLimits
from stagebus.shared.domain.model_items import Api
from stagebus.shared.observability.redaction import printable, remember
from stagebus.shared.runtime.net import AllowedTarget

SECRET_MIN_CHARS: Final = 32


class Settings(BaseSettings):
    """The settings of a process, one field for each. An invalid value stops the process with a message that names the variable."""

    model_config = SettingsConfigDict(
        env_prefix="STAGEBUS_",
        env_ignore_empty=True,  # a compose file passes unset variables as empty ones
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,  # Redis has no endless TTLs or timeouts
    )

    # Redis
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss:// or unix:// URL of the Redis server, `redis+cluster://host1,host2` of a cluster, or "
        "`redis+sentinel://host1,host2,host3/service/0`: [Sentinel](operations.md#sentinel)",
    )
    redis_connections_max: int = Field(64, ge=4, description="most connections to Redis of one process")
    redis_timeout_s: float = Field(5.0, gt=0, description="time limit of a Redis command")
    partitioned: bool = Field(default=False, description="32 queues, as on a cluster; equal in all processes")

    # Model
    openai_base_url: str | None = Field(
        None, validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
        description="base URL of the provider, such as http://127.0.0.1:8000/v1",
    )  # fmt: skip
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"), description="API key of the provider"
    )
    provider_api: Api | None = Field(
        None,
        description="API of the provider of OPENAI_BASE_URL: chat, responses or messages; default: chat, but responses for "
        "models at api.openai.com that need it",
    )
    providers: Path | None = Field(
        None, description="providers file (TOML), for more than one provider; replaces OPENAI_BASE_URL"
    )
    model: str = Field("demo", min_length=1, description="model of runs that name none")
    local_model: Path | None = Field(None, description="GGUF file of the model of `stagebus up --local`")
    model_connect_timeout_s: float = Field(10.0, gt=0, description="time limit for a connection to the provider")
    model_stall_timeout_s: float = Field(
        60.0, gt=0, description="a provider that sends nothing for this long counts as disconnected"
    )
    model_retries_max: int = Field(3, ge=0, description="retries of a stage after a temporary failure of the provider")
    model_backoff_s: float = Field(
        0.5, gt=0, description="wait before the first retry; it doubles with each further one, with jitter"
    )
    model_backoff_max_s: float = Field(
        30.0, gt=0, description="longest wait before a retry, even if the provider's Retry-After is longer"
    )
    model_output_max_bytes: int = Field(8 * 2**20, gt=0, description="most model output of one stage")
    history_max_bytes: int = Field(
        2**20,
        gt=0,
        description="most bytes of a thread's messages that a model gets; models whose context is stated in the providers "
        "file may get less",
    )

    # Tools
    tools: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="further tools: a comma-separated list of module:function"
    )
    tools_file: Path | None = Field(
        None,
        description="TOML file with MCP servers and OpenAPI documents that provide tools: docs/tool-sources.md",
    )
    tool_timeout_s: float = Field(30.0, gt=0, description="time limit of a tool call")
    tool_result_max_bytes: int = Field(
        64 * 2**10, ge=256, description="most UTF-8 bytes of a result; a longer one is cut and marked"
    )
    tool_schema_max_bytes: int = Field(
        64 * 2**10, ge=2**10, description="most bytes of the JSON Schema of an MCP server's or OpenAPI document's tool"
    )
    tool_threads: int = Field(32, ge=1, description="threads for tools that are not async")
    tool_calls_max: int = Field(64, ge=1, description="most tool calls of one round; further ones get an error result")
    tools_timeout_s: float = Field(
        300.0, gt=0, description="time limit of all calls of a round; unfinished ones get an error result"
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="private networks, addresses and hosts that tools may connect to, separated by commas, with an "
        "optional port: 10.0.0.0/8,wiki.internal:443",
    )
    egress_response_max_bytes: int = Field(
        4 * 2**20, ge=2**10, description="most bytes of an HTTP response to a tool, or of an MCP server's message"
    )
    weather_geocoding_url: str = Field(
        "https://geocoding-api.open-meteo.com", description="URL of Open-Meteo's geocoding API"
    )
    weather_forecast_url: str = Field("https://api.open-meteo.com", description="URL of Open-Meteo's forecast API")
    approvals: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="tools whose calls wait for a person's approval, separated by commas; `*` matches any characters",
    )
    ask_user: bool = Field(default=False, description="also offer `ask_user` to runs that name no tools")

    # Runs
    run_timeout_s: float = Field(600.0, gt=0, description="time limit of runs whose request sets none")
    run_timeout_max_s: float = Field(3600.0, gt=0, description="longest value that a request may set")
    run_tries_max: int = Field(
        3, ge=1, description="how often a run is started again after a worker's death before it fails"
    )
    queue_wait_max_s: float = Field(86400.0, gt=0, description="a run that no worker starts within this time fails")
    approval_wait_s: float = Field(
        86400.0, gt=0, description="a call that waits for a person is denied after this time"
    )
    call_wait_s: float = Field(
        86400.0,
        gt=0,
        le=EXPIRES_IN_MAX_S,
        description="a call that waits for the result of a client or of another system, and sets no time itself, gets an "
        "error after this time",
    )
    live_ttl_s: float = Field(
        172800.0,
        gt=0,
        description="TTL of a tenant's lists of runs and of scheduling keys from the last creation on, in addition to "
        "the retention; the keys of an active run have none",
    )
    retention_s: float = Field(86400.0, gt=0, description="TTL of the keys of an ended run")
    thread_retention_s: float = Field(
        2592000.0,
        gt=0,
        description="TTL of a thread's keys, with its messages, from its last activity on; at least STAGEBUS_LIVE_TTL_S",
    )
    sweep_s: float = Field(
        20.0, gt=0, description="interval at which one of the processes looks for orphaned and overdue runs"
    )

    # Limits of each tenant
    tenant_requests_per_s: float = Field(
        0, ge=0, le=1e6, description="requests per second over all gateways; 0: no limit, here and below"
    )
    tenant_ticket_requests_per_s: float = Field(
        20,
        ge=0,
        le=1e6,
        description="requests per second with one ticket, such as a shared link, over all gateways; they do not count "
        "against the tenant's",
    )
    tenant_streams_open: int = Field(0, ge=0, description="open streams; further ones must reconnect later")
    tenant_runs_queued: int = Field(0, ge=0, description="runs that wait for a worker; a further POST is rejected")
    tenant_runs_running: int = Field(0, ge=0, description="runs at work; further ones wait in the queue")
    tenant_tokens_per_day: int = Field(
        0,
        ge=0,
        description="tokens per UTC day; once runs have used or reserved them, a further POST is rejected, and a run that "
        "needs more ends with `budget_exceeded`",
    )

    # Webhooks
    webhooks: Path | None = Field(
        None, description="webhooks file (TOML), the same for all processes: docs/webhooks.md"
    )

    # Worker
    worker_concurrency: int = Field(100, ge=1, description="concurrent runs of a worker")
    lease_s: float = Field(
        8.0, gt=0.2, le=300, description="duration of a worker's lease on a run; renewed after a third of it"
    )
    poll_s: float = Field(
        2.0, gt=0, description="interval at which a worker polls the queue, in case it missed a notification"
    )
    loop_stall_max_s: float = Field(
        30.0, gt=0, description="a worker whose event loop is blocked for longer loses its runs"
    )
    drain_grace_s: float = Field(10.0, ge=0, description="time that a stage's stream may continue after SIGTERM")
    pending_max_bytes: int = Field(
        4 * 2**20,
        gt=0,
        description="bytes of a run's events that may wait for Redis before the model's stream is paused",
    )

    worker_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="port of a worker's Prometheus metrics; 0: none. Each worker needs its own port",
    )
    worker_metrics_host: str = Field("127.0.0.1", min_length=1, description="address of that port")

    # Gateway
    body_max_bytes: int = Field(2**20, gt=0, description="most bytes of a request body")
    body_timeout_s: float = Field(30.0, gt=0, description="time limit for a request body")
    headers_max_bytes: int = Field(32 * 2**10, ge=1024, description="most bytes of a request's URL and headers")
    headers_timeout_s: float = Field(10.0, gt=0, description="time limit for a request's headers, from the first byte")
    write_timeout_s: float = Field(
        60.0, gt=0.2, description="a client that takes nothing of a response or a stream for this long is disconnected"
    )
    connections_max: int = Field(25000, ge=1, description="most connections of one gateway process")
    streams_max: int = Field(
        20000, ge=1, description="most open streams of one gateway process; further ones must reconnect later"
    )
    stream_buffer_max_bytes: int = Field(
        256 * 2**10, gt=0, description="bytes buffered for a slow client before it reads the log instead"
    )
    page_max_events: int = Field(500, ge=1, le=10000, description="most events read from the log in one step")
    ping_s: float = Field(4.0, gt=0, description="interval of comments on an idle stream")
    long_poll_s: float = Field(20.0, gt=0, le=300, description="longest wait of a long poll of a durable stream")
    sse_retry_ms: int = Field(1000, ge=0, description="delay before a browser reconnects a lost stream")
    drain_spread_s: float = Field(3.0, ge=0, description="time over which a gateway that shuts down closes its streams")
    drain_delay_s: float = Field(0.0, ge=0, description="time for which readyz fails before a gateway stops listening")

    # Access
    auth: str = Field(
        "open", pattern="^(open|keys|jwt|both)$",
        description="who has access: everybody on this machine (open), holders of API keys, of JWTs, or of either",
    )  # fmt: skip
    insecure: bool = Field(
        default=False, description="allow access to an open gateway from other machines: true, false"
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, AfterValidator(check_hosts)] = Field(
        (),
        description="host names under which the gateway answers besides its addresses and localhost, separated by "
        "commas, such as bus.example. Not set: with authentication any name, without it none",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode, AfterValidator(check_origins)] = Field(
        (), description="origins whose pages may call the API, separated by commas, such as https://app.example"
    )
    public_url: str = Field(
        "",
        pattern=r"^(https?://[^/\s?#@]+(/[^\s?#]*)?)?$",
        description="the gateway's address as other systems reach it, such as https://bus.example; deferred tools get the "
        "URLs for their results from it",
    )
    secret: SecretStr | None = Field(
        None,
        description="key that signs tickets, sessions and call tokens; at least 32 characters, the same for all gateways, "
        "and for workers whose tools defer their results. Of several, "
        "separated by commas, the first signs and all are accepted",
    )
    ticket_ttl_s: float = Field(900.0, ge=10, description="lifetime of a ticket whose request sets none")
    ticket_ttl_max_s: float = Field(604800.0, ge=10, description="longest value that a request may set")
    session_ttl_s: float = Field(43200.0, ge=60, description="lifetime of a page's session, from its sign-in")
    jwt_jwks: str | None = Field(None, description="key set of the issuer of JWTs: an https URL or a file")
    jwt_issuer: str | None = Field(None, description="required value of `iss`")
    jwt_audience: str | None = Field(None, description="required value in `aud`")
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="claim with the name of the tenant")
    jwt_scopes_claim: str = Field("scope", min_length=1, description="claim with the scopes: a string or a list")
    metrics_open: bool = Field(
        default=False, description="allow everybody to read /metrics, which else needs the scope `admin`: true, false"
    )

    # Traces
    otel: bool = Field(
        default=False,
        description="send traces by OTLP; needs stagebus[otel], and OpenTelemetry's own variables such as "
        "OTEL_EXPORTER_OTLP_ENDPOINT: true, false",
    )
    otel_metrics: bool = Field(
        default=False, description="with STAGEBUS_OTEL, send the metrics of /metrics as well: true, false"
    )
    otel_content: bool = Field(
        default=False, description="put prompts, answers, and tools' arguments and results into spans: true, false"
    )
    baggage_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="entries of a request's W3C baggage that go on to providers and tools, separated by commas; default: none",
    )

    # All
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="lowest level that is logged")
    data_dir: Path = Field(Path(".stagebus"), description="folder of the embedded Valkey of `stagebus up`")

    @property
    def lists_ttl_s(self) -> float:
        """Returns the TTL of a tenant's lists and counts, from its last creation on."""
        return self.live_ttl_s + self.retention_s

    @property
    def call_wait_default_s(self) -> float:
        """Returns how long a call waits for its result if nothing says otherwise."""
        return min(self.call_wait_s, self.live_ttl_s - self.run_timeout_max_s)

    @property
    def call_wait_max_s(self) -> float:
        """Returns the longest time that a call may wait for its result."""
        return min(EXPIRES_IN_MAX_S, self.live_ttl_s)

    @property
    def has_webhooks(self) -> bool:
        """Returns whether webhooks are configured, so that what happens to runs has to be told."""
        return self.webhooks is not None

    @property
    def thread_ttl_s(self) -> float:
        """Returns the TTL of a thread's keys, from its last activity on."""
        return max(self.thread_retention_s, self.live_ttl_s)

    @property
    def tenant_limits(self) -> TenantLimits:
        """Returns the limits of a tenant that has none of its own."""
        return TenantLimits(*(getattr(self, f"tenant_{name}") for name in TenantLimits._fields))

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in ("tools", "approvals", "egress_allow", "cors_origins", "allowed_hosts", "baggage_keys"):
            text = values.get(name)
            if isinstance(text, str):
                values[name] = _parts(text)
        return values

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and any(len(part) < SECRET_MIN_CHARS for part in _parts(secret.get_secret_value())):
            raise ValueError(f"must have at least {SECRET_MIN_CHARS} characters; create one with: openssl rand -hex 32")
        return secret

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        RedisUrl.parse(url.get_secret_value())
        return url

    @field_validator("egress_allow")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            AllowedTarget.parse(target)
        return targets

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.poll_s > self.lease_s:
            raise ValueError("STAGEBUS_POLL_S must not exceed STAGEBUS_LEASE_S: the poll finds expired leases")
        if self.run_timeout_s > self.run_timeout_max_s:
            raise ValueError("STAGEBUS_RUN_TIMEOUT_S must not exceed STAGEBUS_RUN_TIMEOUT_MAX_S")
        for variable, wait_s in (
            ("STAGEBUS_QUEUE_WAIT_MAX_S", self.queue_wait_max_s),
            ("STAGEBUS_APPROVAL_WAIT_S", self.approval_wait_s),
            # Its default yields: older settings stay valid.
            *([("STAGEBUS_CALL_WAIT_S", self.call_wait_s)] if "call_wait_s" in self.model_fields_set else []),
        ):
            if self.live_ttl_s < wait_s + self.run_timeout_max_s:
                raise ValueError(
                    f"STAGEBUS_LIVE_TTL_S must exceed {variable} and STAGEBUS_RUN_TIMEOUT_MAX_S "
                    "together: the lists of runs must outlive a run's longest wait and its execution"
                )
        return self

    @model_validator(mode="after")
    def _mask_secrets(self) -> Self:
        """Masks the secrets among the settings in everything that this process logs."""
        redis_secrets = RedisUrl.parse(self.redis_url.get_secret_value()).secrets
        key = "" if self.openai_api_key is None else self.openai_api_key.get_secret_value()
        remember(*redis_secrets, key.strip(), *self.secrets)
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """Returns the keys for tickets and sessions; the first one signs."""
        return _parts("" if self.secret is None else self.secret.get_secret_value())


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load_settings() -> Settings:
    """Reads the settings of this process.

    Raises:
        SystemExit: a value is invalid; the message names the variable.
    """
    try:
        return Settings()
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            where = ".".join(str(part) for part in error["loc"])
            variable = where if where.isupper() or not where else f"STAGEBUS_{where.upper()}"
            lines.append(f"{variable}: {error['msg']}" if variable else error["msg"])
        raise SystemExit(printable("stagebus: bad settings\n  " + "\n  ".join(lines), keep="\n")) from None
