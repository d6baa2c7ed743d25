"""Checks of the access settings before a gateway starts."""

from urllib.parse import urlsplit

from stagebus.shared.access_errors import AccessUnset, GatewayExposed
from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.net import is_loopback


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
