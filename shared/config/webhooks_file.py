"""The webhooks file: who is told of what happens to runs. All processes of a system have the same one.

    [endpoints.billing]
    url = "https://billing.example/hooks"
    secret = { env = "BILLING_WEBHOOK_SECRET" }
    events = ["run.ended"]
    tenants = ["acme"]

    [run_urls]
    origins = ["https://app.example"]
    secret = { env = "RUN_WEBHOOK_SECRET" }

Workers send; gateways need the file to check a run's `webhook_url`, and to have the outbox written for the runs that they
end. A secret is read at each try, so it may change.
Spec: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self
from urllib.parse import urlsplit

import orjson
from pydantic import Field, field_validator, model_validator

from stagebus.shared.config.config_file import ConfigEntry, ConfigKind, Secret
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.tenants import TENANT_PATTERN
from stagebus.shared.domain.webhook_messages import RUN_URL_PREFIX, WebhookType
from stagebus.shared.errors import KeyMissing
from stagebus.shared.runtime.net import normal_host
from stagebus.shared.webhook_errors import BadWebhooks

_KIND: Final = ConfigKind("STAGEBUS_WEBHOOKS", "docs/webhooks.md", BadWebhooks)
ENDPOINTS_MAX: Final = 50
ORIGINS_MAX: Final = 50
URL_MAX_CHARS: Final = 2048
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the spec's prefix
SECRET_MIN_BYTES, SECRET_MAX_BYTES = 24, 64
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# No characters by which two parsers of URLs could disagree about the host.
_URL: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:_]+(?:[/?][!-~]*)?")
_BACKSLASH_OR_FRAGMENT: Final = re.compile(r"[\\#]")

EndpointName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
TenantName = Annotated[str, Field(pattern=rf"^{TENANT_PATTERN}$")]


def origin_of(url: str) -> str:
    """Returns the origin of a URL, such as `https://app.example` or `http://10.0.0.7:8080`.

    Raises:
        ValueError: it is not an http or https URL without a password and a fragment.
    """
    if len(url) > URL_MAX_CHARS or not _URL.fullmatch(url) or _BACKSLASH_OR_FRAGMENT.search(url):
        raise ValueError("must be an http or https URL without a password and a fragment")
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("must contain a host")
    host = normal_host(parts.hostname)
    host = f"[{host}]" if ":" in host else host
    is_default = parts.port is None or parts.port == _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{parts.port}")


def decode_secret(text: str) -> bytes:
    """Decodes a secret of the form `whsec_<base64>`.

    Raises:
        KeyMissing: it has another form, or a length that the spec does not allow.
    """
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(SECRET_PREFIX) or not SECRET_MIN_BYTES <= len(key) <= SECRET_MAX_BYTES:
        raise KeyMissing(
            f"a webhook's secret must be {SECRET_PREFIX} and the base64 of {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes; "
            'create one with: echo "whsec_$(openssl rand -base64 32)"'
        )
    return key


class SigningKeys(ConfigEntry):
    """The keys with which messages are signed."""

    secret: Secret = Field(description="the secret of the signatures, `whsec_…`")
    previous_secret: Secret | None = Field(
        default=None, description="signs as well, while the receiver changes to a new secret"
    )

    def read_keys(self) -> list[bytes]:
        """Reads the keys, the current one first.

        Raises:
            KeyMissing: one is not set, or malformed.
        """
        secrets = (self.secret, self.previous_secret)
        return [decode_secret(secret.read()) for secret in secrets if secret is not None]


class WebhookEndpoint(SigningKeys):
    """One receiver."""

    url: str = Field(description="where messages are sent")
    events: list[WebhookType] = Field(default=list(WebhookType), min_length=1, description="kinds of messages to send")
    tenants: list[TenantName] = Field(default=[], description="tenants whose runs are told of; default: all")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        origin_of(url)
        return url

    def wants(self, message_type: str, tenant: str) -> bool:
        """Returns whether the endpoint gets messages of this type about this tenant's runs."""
        return message_type in self.events and (not self.tenants or tenant in self.tenants)


class RunUrls(SigningKeys):
    """The origins that a run's own `webhook_url` may have, and the keys that sign its messages."""

    origins: list[str] = Field(min_length=1, max_length=ORIGINS_MAX, description="such as https://app.example")

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin_of(origin) != origin.lower().rstrip("."):
                raise ValueError(f"must be written as an origin, {origin_of(origin)}")
        return [origin_of(origin) for origin in origins]


class WebhooksFile(ConfigEntry):
    """The webhooks file."""

    endpoints: dict[EndpointName, WebhookEndpoint] = Field(default={}, max_length=ENDPOINTS_MAX)
    run_urls: RunUrls | None = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.endpoints and self.run_urls is None:
            raise ValueError("has neither endpoints nor run_urls")
        return self


class WebhookTarget(NamedTuple):
    """The present URL of a delivery, and the keys that sign it."""

    url: str
    signing: SigningKeys


class WebhookConfig:
    """The configured receivers. Without a file there are none."""

    def __init__(self, file: WebhooksFile | None = None) -> None:
        self.endpoints: Mapping[str, WebhookEndpoint] = file.endpoints if file else {}
        self._run_urls = file.run_urls if file else None
        public = [
            [name, one.url, sorted(one.events), sorted(one.tenants)] for name, one in sorted(self.endpoints.items())
        ]
        # Shows whether two processes have the same file; of secrets it says nothing.
        self.digest = sha256(orjson.dumps([public, sorted(self.origins)])).hexdigest()[:12] if file else ""

    @classmethod
    def from_settings(cls, settings: Settings, *, reads_secrets: bool = False) -> Self:
        """Reads the file of the settings.

        Args:
            reads_secrets: also check the secrets: a worker needs them.

        Raises:
            BadWebhooks: the file is invalid, or a secret is missing or malformed; the message says what to change.
        """
        if settings.webhooks is None:
            return cls()
        path: Path = settings.webhooks
        file = _KIND.read(path, WebhooksFile)
        if reads_secrets:
            signing: dict[str, SigningKeys] = {f"endpoints.{name}": one for name, one in file.endpoints.items()}
            signing |= {"run_urls": file.run_urls} if file.run_urls else {}
            faults = [f"{where}: {fault}" for where, one in signing.items() if (fault := _fault_of(one))]
            if faults:
                raise _KIND.invalid(path, faults)
        return cls(file)

    @property
    def origins(self) -> list[str]:
        """Returns the origins that a run's own URL may have."""
        return self._run_urls.origins if self._run_urls else []

    def allows_url(self, url: str) -> bool:
        """Returns whether a run may have this URL as its own webhook."""
        try:
            return origin_of(url) in self.origins
        except ValueError:
            return False

    def receivers(self, message_type: str, tenant: str, run_url: str) -> list[str]:
        """Returns the endpoints that get a message; that of a run's own URL is named after its origin."""
        names = [name for name, one in self.endpoints.items() if one.wants(message_type, tenant)]
        if run_url and self.allows_url(run_url):
            names.append(RUN_URL_PREFIX + origin_of(run_url))
        return names

    def target_of(self, endpoint: str, run_url: str) -> WebhookTarget | None:
        """Returns where a delivery goes now; None if the endpoint or the origin is no longer configured."""
        if run_url:
            return WebhookTarget(run_url, self._run_urls) if self._run_urls and self.allows_url(run_url) else None
        one = self.endpoints.get(endpoint)
        return WebhookTarget(one.url, one) if one else None


def _fault_of(signing: SigningKeys) -> str:
    try:
        signing.read_keys()
    except KeyMissing as exc:
        return str(exc)
    return ""
