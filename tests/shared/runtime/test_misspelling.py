"""Misspelt environment variables."""

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.runtime.misspelling import CLIENT_VARIABLES, find_misspelt

SETTINGS = [f"STAGEBUS_{name.upper()}" for name, field in Settings.model_fields.items() if not field.validation_alias]


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("WORKER_CONCURENCY", "WORKER_CONCURRENCY"), ("LOGLEVEL", "LOG_LEVEL"), ("REDIS", "REDIS_URL"),
        ("REDIS_URI", "REDIS_URL"), ("SECRETS", "SECRET"), ("LEASE", "LEASE_S"), ("PROVIDERS_FILE", "PROVIDERS"),
        ("TENANT_RUN_RUNNING", "TENANT_RUNS_RUNNING"), ("EGRES_ALLOW", "EGRESS_ALLOW"),
    ],
)  # fmt: skip
def test_misspelt_setting_is_named_with_the_right_one(name: str, right: str) -> None:
    (said,) = find_misspelt([f"STAGEBUS_{name}", *SETTINGS, "PATH"], SETTINGS)

    assert said == f"STAGEBUS_{name} is not a variable of Stagebus and has no effect; did you mean STAGEBUS_{right}?"


@pytest.mark.parametrize("name", ["ULR", "API_KEYS", "APIKEY", "PROFIL"])
def test_misspelt_client_variable_is_named(name: str) -> None:
    assert len(list(find_misspelt([f"STAGEBUS_{name}"], CLIENT_VARIABLES))) == 1


def test_right_and_foreign_names_are_left_alone() -> None:
    foreign = ["STAGEBUS_SERVICE_HOST", "STAGEBUS_PORT", "STAGEBUS_PORT_80_TCP_ADDR", "STAGEBUS_OPENAI_KEY", "STAGE"]

    assert list(find_misspelt([*SETTINGS, *CLIENT_VARIABLES, *foreign], SETTINGS)) == []
    assert list(find_misspelt([*SETTINGS, *CLIENT_VARIABLES, *foreign], CLIENT_VARIABLES)) == []
