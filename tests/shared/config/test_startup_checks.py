import pytest

from stagebus.shared.access_errors import AccessUnset, GatewayExposed
from stagebus.shared.config.settings import Settings
from stagebus.shared.config.startup_checks import check_access, check_exposure, warn_of_misspelt_variables
from stagebus.shared.runtime.net import is_loopback


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.7", False), ("localhost.evil.example", False),
     ("127.0.0.1.evil.example", False), ("example.org", False)],
)  # fmt: skip
def test_own_addresses_are_told_from_others(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own


def test_gateway_without_auth_needs_insecure_for_a_public_address() -> None:
    with pytest.raises(GatewayExposed, match=r"STAGEBUS_AUTH.*--insecure"):
        check_exposure(Settings(), "0.0.0.0")
    check_exposure(Settings(), "127.0.0.1")
    check_exposure(Settings(insecure=True), "0.0.0.0")
    check_exposure(Settings(auth="keys"), "0.0.0.0")


JWT = {"auth": "jwt", "secret": "x" * 32, "jwt_issuer": "i", "jwt_audience": "a"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"auth": "keys"}, "needs STAGEBUS_SECRET"),
        (JWT, "needs STAGEBUS_JWT_JWKS"),
        ({**JWT, "jwt_jwks": "http://login.example/jwks"}, "must be an https URL"),
    ],
)
def test_incomplete_access_settings_are_an_error(settings: dict[str, str], said: str) -> None:
    with pytest.raises(AccessUnset, match=said):
        check_access(Settings(**settings))


def test_complete_configuration_may_start() -> None:
    check_access(Settings())
    check_access(Settings(auth="keys", secret="x" * 32))
    for source in ("https://login.example/jwks", "http://127.0.0.1:1/jwks", "jwks.json"):
        check_access(Settings(**JWT, jwt_jwks=source))


def test_misspelt_variable_is_named_at_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("STAGEBUS_WORKER_CONCURENCY", "5")
    warn_of_misspelt_variables()

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "did you mean STAGEBUS_WORKER_CONCURRENCY?" in record.message
