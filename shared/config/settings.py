"""All settings, read once at start from the environment and passed down.

Names are `STAGEBUS_<FIELD>`; the three that other tools share have their own:
`OPENAI_BASE_URL`, `OPENAI_API_KEY`. docs/configuration.md is made from this class.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stagebus.shared.domain.limits import TenantLimits
from stagebus.shared.runtime.net import AllowedTarget

SECRET_MIN_CHARS: Final = 32


class Settings(BaseSettings):
    """One field a setting; a bad value stops the process with a message that names the variable."""

    model_config = SettingsConfigDict(
        env_prefix="STAGEBUS_",
        env_ignore_empty=True,  # a compose file passes on what is not set as empty
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        allow_inf_nan=False,  # no TTL and no time-out of Redis's is endless
    )

    # Redis
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="redis://, rediss:// or unix:// URL of the one Redis"
    )
    redis_connections_max: int = Field(64, ge=4, description="connections to Redis a process may open")
    redis_timeout_s: float = Field(5.0, gt=0, description="a command that takes longer counts as failed")

    # Model
    openai_base_url: str | None = Field(
        None, validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
        description="the provider's base URL, such as http://127.0.0.1:8000/v1",
    )  # fmt: skip
    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"), description="the provider's key"
    )
    providers: Path | None = Field(
        None, description="a providers file (TOML) for more than one provider; takes the place of OPENAI_BASE_URL"
    )
    model: str = Field("demo", min_length=1, description="the model of runs that name none")
    local_model: Path | None = Field(None, description="the GGUF file that `stagebus up --local` answers from")
    model_connect_timeout_s: float = Field(10.0, gt=0, description="to reach the provider")
    model_stall_timeout_s: float = Field(60.0, gt=0, description="silence of a provider before it counts as cut")
    model_retries_max: int = Field(
        3, ge=0, description="further goes at a stage whose provider failed in a way that may pass"
    )
    model_backoff_s: float = Field(
        0.5, gt=0, description="the first backoff; each further one is twice as long, with jitter"
    )
    model_backoff_max_s: float = Field(30.0, gt=0, description="the longest backoff, a provider's Retry-After included")
    model_output_max_bytes: int = Field(8 * 2**20, gt=0, description="model output of one stage")

    # Tools
    tools: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated module:function list of tools beside the built-in ones"
    )
    tools_file: Path | None = Field(
        None,
        description="a TOML file of MCP servers and OpenAPI documents whose tools workers have: docs/tool-sources.md",
    )
    tool_timeout_s: float = Field(30.0, gt=0, description="one tool call")
    tool_result_max_bytes: int = Field(
        64 * 2**10, ge=256, description="UTF-8 bytes of a result; the rest is cut, with a mark"
    )
    tool_threads: int = Field(32, ge=1, description="plain functions run in this many threads")
    tool_calls_max: int = Field(64, ge=1, description="calls of one round; further ones get an error result")
    tools_timeout_s: float = Field(
        300.0, gt=0, description="all calls of one round together; those without a result by then get an error result"
    )
    egress_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated networks, addresses and hosts, each with a port or not, that tools may reach "
        "although they are not public: 10.0.0.0/8,wiki.internal:443",
    )
    egress_response_max_bytes: int = Field(
        4 * 2**20, ge=2**10, description="an answer to a tool over HTTP, or an MCP server's message"
    )
    weather_geocoding_url: str = Field("https://geocoding-api.open-meteo.com", description="Open-Meteo's geocoding API")
    weather_forecast_url: str = Field("https://api.open-meteo.com", description="Open-Meteo's forecast API")
    approvals: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated names of tools whose calls wait for a person's approval, `*` as in file names"
    )
    ask_user: bool = Field(default=False, description="offer `ask_user` to runs that name no tools, too")

    # Runs
    run_timeout_s: float = Field(600.0, gt=0, description="a run's time limit where the request sets none")
    run_timeout_max_s: float = Field(3600.0, gt=0, description="the longest that a request may ask for")
    run_tries_max: int = Field(3, ge=1, description="claims after a worker's death before the run is given up")
    queue_wait_max_s: float = Field(86400.0, gt=0, description="a run that no worker took by then ends with an error")
    approval_wait_s: float = Field(
        86400.0, gt=0, description="a call that waits for a person counts as denied after this"
    )
    live_ttl_s: float = Field(
        172800.0, ge=60, description="TTL of a run's keys until it ends, renewed by its worker and by the sweep"
    )
    retention_s: float = Field(86400.0, gt=0, description="TTL of an ended run's keys")

    # Limits of each tenant
    tenant_requests_per_s: float = Field(
        0, ge=0, le=1e6, description="requests, over all gateways; 0: no limit, here and below"
    )
    tenant_streams_open: int = Field(0, ge=0, description="open streams; further ones are told to come back")
    tenant_runs_queued: int = Field(0, ge=0, description="runs that wait for a worker; a further POST is refused")
    tenant_runs_running: int = Field(0, ge=0, description="runs that workers hold; further ones wait in the queue")
    tenant_tokens_per_day: int = Field(
        0, ge=0, description="tokens of ended runs a day, UTC; once they are used, a further POST is refused"
    )

    # Worker
    worker_concurrency: int = Field(100, ge=1, description="runs that a worker holds at once")
    lease_s: float = Field(8.0, gt=0.2, le=300, description="a worker's right to a run, renewed every third of it")
    poll_s: float = Field(2.0, gt=0, description="the slow poll behind the doorbell")
    sweep_s: float = Field(20.0, gt=0, description="how often some worker looks for orphaned runs")
    loop_stall_max_s: float = Field(30.0, gt=0, description="an event loop stuck for longer loses its runs")
    drain_grace_s: float = Field(10.0, ge=0, description="text that streams at SIGTERM may go on for this long")
    pending_max_bytes: int = Field(
        4 * 2**20, gt=0, description="events of a run that wait for Redis before the model is held back"
    )

    worker_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="where a worker answers Prometheus; 0: nowhere. Each worker needs a port of its own",
    )
    worker_metrics_host: str = Field("127.0.0.1", min_length=1, description="the address of that port")

    # Gateway
    body_max_bytes: int = Field(2**20, gt=0, description="a request's body")
    body_timeout_s: float = Field(30.0, gt=0, description="from a request's headers to the end of its body")
    headers_max_bytes: int = Field(32 * 2**10, ge=1024, description="a request's URL and headers")
    headers_timeout_s: float = Field(10.0, gt=0, description="from a request's first byte to the end of its headers")
    connections_max: int = Field(25000, ge=1, description="connections that one gateway process takes")
    streams_max: int = Field(
        20000, ge=1, description="streams that one gateway process holds open; further ones are told to come back"
    )
    stream_buffer_max_bytes: int = Field(
        256 * 2**10, gt=0, description="live bytes kept for a slow client before it reads the log instead"
    )
    page_max_events: int = Field(500, ge=1, le=10000, description="events read from the log at once")
    ping_s: float = Field(10.0, gt=0, description="a comment on an idle stream this often")
    sse_retry_ms: int = Field(1000, ge=0, description="how soon a browser that lost its stream asks again")
    drain_spread_s: float = Field(3.0, ge=0, description="a gateway that shuts down ends its streams over this long")
    drain_delay_s: float = Field(0.0, ge=0, description="readyz fails for this long before a gateway stops listening")

    # Access
    auth: str = Field(
        "open", pattern="^(open|keys|jwt|both)$",
        description="who is let in: everybody on this machine, holders of API keys, of JWTs, or of either",
    )  # fmt: skip
    insecure: bool = Field(default=False, description="let an open gateway be reached from other machines: true, false")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated origins, such as https://app.example, whose pages may call this API"
    )
    secret: SecretStr | None = Field(
        None,
        description="signs tickets and sessions, at least 32 characters, the same for all gateways; several, separated "
        "by commas: the first signs, all are good",
    )

    ticket_ttl_s: float = Field(900.0, ge=10, description="a ticket for a run's stream, where the request says nothing")
    ticket_ttl_max_s: float = Field(604800.0, ge=10, description="the longest that a request may ask for")
    session_ttl_s: float = Field(43200.0, ge=60, description="a page's session, from its sign-in")
    jwt_jwks: str | None = Field(None, description="the issuer's key set: a https URL, or a file")
    jwt_issuer: str | None = Field(None, description="what `iss` has to be")
    jwt_audience: str | None = Field(None, description="what `aud` has to hold")
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="the claim that names the tenant")
    jwt_scopes_claim: str = Field("scope", min_length=1, description="the claim with the scopes: a text or a list")
    metrics_open: bool = Field(
        default=False, description="let everybody read /metrics; else it takes the scope `admin`: true, false"
    )

    # All
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="the least that is logged")
    data_dir: Path = Field(Path(".stagebus"), description="where `stagebus up` keeps the embedded Valkey's files")

    @property
    def tenant_limits(self) -> TenantLimits:
        """Those of a tenant that has none of its own."""
        return TenantLimits(*(getattr(self, f"tenant_{name}") for name in TenantLimits._fields))

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in ("tools", "approvals", "egress_allow", "cors_origins"):
            text = values.get(name)
            if isinstance(text, str):
                values[name] = _parts(text)
        return values

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and any(len(part) < SECRET_MIN_CHARS for part in _parts(secret.get_secret_value())):
            raise ValueError(
                f"at least {SECRET_MIN_CHARS} characters are needed; this makes them: openssl rand -hex 32"
            )
        return secret

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s*?#@]+", origin):
                raise ValueError(f"{origin!r} is no origin; one is such as https://app.example, with nothing behind it")
        return origins

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        # Not redis-py's own words: they might hold the password.
        try:
            parts = urlsplit(url.get_secret_value())
            is_good = parts.scheme in ("redis", "rediss", "unix") and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good:
            raise ValueError("no redis://[user:password@]host:port/0, rediss://… or unix://… URL of Redis")
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
            raise ValueError("STAGEBUS_POLL_S must not exceed STAGEBUS_LEASE_S: the poll finds leases that ran out")
        if self.run_timeout_s > self.run_timeout_max_s:
            raise ValueError("STAGEBUS_RUN_TIMEOUT_S must not exceed STAGEBUS_RUN_TIMEOUT_MAX_S")
        for variable, wait_s in (
            ("STAGEBUS_QUEUE_WAIT_MAX_S", self.queue_wait_max_s),
            ("STAGEBUS_APPROVAL_WAIT_S", self.approval_wait_s),
        ):
            if self.live_ttl_s < wait_s + self.run_timeout_max_s:
                raise ValueError(
                    f"STAGEBUS_LIVE_TTL_S must exceed {variable} and STAGEBUS_RUN_TIMEOUT_MAX_S "
                    "together: a run's keys must outlive its longest wait and its work"
                )
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """What signs, the one in use first."""
        text = "" if self.secret is None else self.secret.get_secret_value()
        return _parts(text)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SystemExit: a value does not hold; the message names its variable.
    """
    try:
        return Settings()
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            where = ".".join(str(part) for part in error["loc"])
            variable = where if where.isupper() or not where else f"STAGEBUS_{where.upper()}"
            lines.append(f"{variable}: {error['msg']}" if variable else error["msg"])
        raise SystemExit("stagebus: bad settings\n  " + "\n  ".join(lines)) from None
