"""What a gateway must have before it lets anybody in, and from where an open one may be reached."""

from urllib.parse import urlsplit

from stagebus.shared.access_errors import AccessUnset, GatewayExposed
from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.net import is_loopback


def check_exposure(settings: Settings, host: str) -> None:
    """Refuse to listen where others can reach a gateway that asks nobody who he is.

    Raises:
        GatewayExposed: it would be so; the message says what to set.
    """
    if settings.auth == "open" and not settings.insecure and not is_loopback(host):
        raise GatewayExposed(host)


def check_access(settings: Settings) -> None:
    """Refuse to start with half of what authentication needs.

    Raises:
        AccessUnset: something is missing; the message says what.
    """
    if settings.auth != "open" and not settings.secrets:
        raise AccessUnset(
            f"STAGEBUS_AUTH={settings.auth} needs STAGEBUS_SECRET, the same for all gateways; this makes one: "
            "openssl rand -hex 32"
        )
    if settings.auth in ("jwt", "both"):
        missing = [name for name in ("jwt_jwks", "jwt_issuer", "jwt_audience") if not getattr(settings, name)]
        if missing:
            names = ", ".join(f"STAGEBUS_{name.upper()}" for name in missing)
            raise AccessUnset(f"STAGEBUS_AUTH={settings.auth} needs {names}")
        if settings.jwt_jwks and settings.jwt_jwks.startswith("http:") and not _is_own(settings.jwt_jwks):
            raise AccessUnset(
                "STAGEBUS_JWT_JWKS has to be https: whoever stands on the way could put in keys of his own"
            )


def _is_own(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")
