"""Checks before a process starts: the access settings of a gateway, and the names of variables."""

import logging
import os
from urllib.parse import urlsplit

from stagebus.shared.access_errors import AccessUnset, GatewayExposed
from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.misspelling import find_misspelt
from stagebus.shared.runtime.net import is_loopback

logger = logging.getLogger(__name__)


def warn_of_misspelt_variables() -> None:
    """Logs a warning for each environment variable whose name resembles a setting's. Call it once the log is set up."""
    fields = [name for name, field in Settings.model_fields.items() if field.validation_alias is None]
    for warning in find_misspelt(os.environ, [f"STAGEBUS_{name.upper()}" for name in fields]):
        logger.warning("%s", warning)


def check_exposure(settings: Settings, host: str) -> None:
    """Checks that a gateway without authentication listens on a loopback address only.

    Raises:
        GatewayExposed: other machines could reach it; the message says what to set.
    """
    if settings.auth == "open" and not settings.insecure and not is_loopback(host):
        raise GatewayExposed(host)


def check_access(settings: Settings) -> None:
    """Checks that the settings for authentication are complete.

    Raises:
        AccessUnset: a setting is missing; the message says which.
    """
    if settings.auth != "open" and not settings.secrets:
        raise AccessUnset(
            f"STAGEBUS_AUTH={settings.auth} needs STAGEBUS_SECRET, the same for all gateways; create one with: "
            "openssl rand -hex 32"
        )
    if settings.auth in ("jwt", "both"):
        missing = [name for name in ("jwt_jwks", "jwt_issuer", "jwt_audience") if not getattr(settings, name)]
        if missing:
            names = ", ".join(f"STAGEBUS_{name.upper()}" for name in missing)
            raise AccessUnset(f"STAGEBUS_AUTH={settings.auth} needs {names}")
        if settings.jwt_jwks and settings.jwt_jwks.startswith("http:") and not _is_loopback_url(settings.jwt_jwks):
            raise AccessUnset(
                "STAGEBUS_JWT_JWKS must be an https URL: on an http connection an attacker could replace the keys"
            )


def _is_loopback_url(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")
