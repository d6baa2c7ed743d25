"""Settings out of the environment: names, refusals that name the variable, relations, secrets."""

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from stagebus.shared.config.settings import Settings, load_settings

SECRET = "hunter2-sk-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of ours."""
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    return monkeypatch


def variable_of(field: str) -> str:
    return field.upper() if field.startswith("openai_") else f"STAGEBUS_{field.upper()}"


def other_than(value: Any) -> str:
    """A value that holds, though it is not the default."""
    match value:
        case bool():
            return str(not value)
        case int() | float():
            return str(value + 1)
        case tuple():
            return "my.tools:1"
        case SecretStr():
            return "redis://elsewhere:6379/0"
        case None:
            return "elsewhere" * 4  # long enough for a secret
        case _:
            return {"open": "keys", "INFO": "DEBUG", "": "https://bus.example"}.get(value, "elsewhere")


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_read_from_its_variable(environment: pytest.MonkeyPatch, field: str) -> None:
    default = getattr(load_settings(), field)

    own_forms = {"cors_origins": "https://app.example", "allowed_hosts": "bus.example", "provider_api": "messages"}
    environment.setenv(variable_of(field), own_forms.get(field) or other_than(default))
    assert getattr(load_settings(), field) != default


def test_defaults_are_fit_for_a_first_look() -> None:
    settings = load_settings()

    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert (settings.openai_base_url, settings.openai_api_key, settings.tools) == (None, None, ())
    assert settings.lease_s + settings.poll_s <= 10, "a dead worker's runs move on within that"


def test_empty_variable_counts_as_not_set(environment: pytest.MonkeyPatch) -> None:
    """Compose files and unit files pass on what is not set in this form."""
    environment.setenv("STAGEBUS_REDIS_URL", "")
    settings = load_settings()

    assert settings.lease_s == Settings.model_fields["lease_s"].default
    assert "redis_url" not in settings.model_fields_set


def test_strange_variables_are_nothing_to_us(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STAGEBUS_NO_SUCH_SETTING", "1")
    environment.setenv("LEASE_S", "1")

    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STAGEBUS_LEASE_S", "soon"),
        ("STAGEBUS_LEASE_S", "0"),
        ("STAGEBUS_LEASE_S", "301"),
        ("STAGEBUS_WORKER_CONCURRENCY", "0"),
        ("STAGEBUS_WORKER_CONCURRENCY", "1.5"),
        ("STAGEBUS_LOG_LEVEL", "LOUD"),
        ("STAGEBUS_LOG_LEVEL", "INFO\n"),
        ("STAGEBUS_PING_S", "-1"),
        ("STAGEBUS_SECRET", "x" * 31),
        ("STAGEBUS_SECRET", "x" * 32 + ", short"),
        ("STAGEBUS_CORS_ORIGINS", "*"),
        ("STAGEBUS_CORS_ORIGINS", "https://app.example/"),
        ("STAGEBUS_CORS_ORIGINS", "app.example"),
        ("STAGEBUS_EGRESS_ALLOW", "10.0.0.1/8"),
        ("STAGEBUS_RETENTION_S", "nan"),
        ("STAGEBUS_RETENTION_S", "inf"),
        ("STAGEBUS_LIVE_TTL_S", "inf"),
        ("STAGEBUS_PAGE_MAX_EVENTS", "10001"),
    ],
)
def test_bad_value_stops_the_process_and_names_its_variable(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setenv(variable, value)

    with pytest.raises(SystemExit, match=rf"(?m)^  {variable}: ") as stopped:
        load_settings()
    assert str(stopped.value).startswith("stagebus: bad settings\n")


def test_every_bad_value_is_named_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STAGEBUS_LEASE_S", "x")
    environment.setenv("STAGEBUS_POLL_S", "y")

    with pytest.raises(SystemExit) as stopped:
        load_settings()
    assert {line.split(":")[0].strip() for line in str(stopped.value).splitlines()[1:]} == {
        "STAGEBUS_LEASE_S",
        "STAGEBUS_POLL_S",
    }


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LEASE_S": "2", "POLL_S": "2.1"}, ("STAGEBUS_POLL_S", "STAGEBUS_LEASE_S")),
        ({"RUN_TIMEOUT_S": "60", "RUN_TIMEOUT_MAX_S": "59"}, ("STAGEBUS_RUN_TIMEOUT_S", "STAGEBUS_RUN_TIMEOUT_MAX_S")),
        ({"LIVE_TTL_S": "89999"}, ("STAGEBUS_LIVE_TTL_S", "STAGEBUS_QUEUE_WAIT_MAX_S", "STAGEBUS_RUN_TIMEOUT_MAX_S")),
    ],
)
def test_values_that_do_not_go_together_name_each_other(
    environment: pytest.MonkeyPatch, variables: dict[str, str], named: tuple[str, ...]
) -> None:
    for name, value in variables.items():
        environment.setenv(f"STAGEBUS_{name}", value)

    with pytest.raises(SystemExit) as stopped:
        load_settings()
    assert all(name in str(stopped.value) for name in named)


@pytest.mark.parametrize(
    "variables",
    [{"LEASE_S": "2", "POLL_S": "2"}, {"RUN_TIMEOUT_S": "3600"}, {"LIVE_TTL_S": "90000"}],
)
def test_relations_hold_up_to_their_bounds(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(f"STAGEBUS_{name}", value)

    settings = load_settings()
    assert all(getattr(settings, name.lower()) == float(value) for name, value in variables.items())


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("", ()),
        (" , ,", ()),
        ("my.tools:pay", ("my.tools:pay",)),
        (" my.tools:pay ,my.tools:look,", ("my.tools:pay", "my.tools:look")),
        ('["a:b"]', ('["a:b"]',)),
    ],
)
def test_tools_are_a_comma_separated_list(environment: pytest.MonkeyPatch, text: str, tools: tuple[str, ...]) -> None:
    environment.setenv("STAGEBUS_TOOLS", text)

    assert load_settings().tools == tools


def test_secrets_are_shown_nowhere(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", SECRET)
    environment.setenv("STAGEBUS_REDIS_URL", f"redis://:{SECRET}@127.0.0.1:6379/0")
    settings = load_settings()
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"

    assert SECRET not in shown
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == SECRET


def test_refusal_shows_no_secret_either(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", SECRET)
    environment.setenv("STAGEBUS_REDIS_URL", f"redis://:{SECRET}@127.0.0.1:6379/0")
    environment.setenv("STAGEBUS_POLL_S", "999")

    with pytest.raises(SystemExit) as stopped:
        load_settings()
    assert SECRET not in str(stopped.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().lease_s = 1


def test_default_wait_of_a_call_yields_to_a_short_live_ttl(environment: pytest.MonkeyPatch) -> None:
    short = {
        "LIVE_TTL_S": "19",
        "QUEUE_WAIT_MAX_S": "16",
        "APPROVAL_WAIT_S": "16",
        "RUN_TIMEOUT_S": "3",
        "RUN_TIMEOUT_MAX_S": "3",
    }
    for name, value in short.items():
        environment.setenv(f"STAGEBUS_{name}", value)
    assert load_settings().call_wait_default_s == 16

    environment.setenv("STAGEBUS_CALL_WAIT_S", "17")
    with pytest.raises(SystemExit, match="STAGEBUS_CALL_WAIT_S"):
        load_settings()
