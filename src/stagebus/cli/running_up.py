"""Finds what a running `stagebus up` uses, for the operator's commands, if their own environment names nothing."""

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stagebus.shared.config.settings import Settings

_MODEL_VARIABLES: Final = (
    "OPENAI_BASE_URL", "OPENAI_API_KEY", "STAGEBUS_PROVIDER_API", "STAGEBUS_PROVIDERS", "STAGEBUS_MODEL",
)  # fmt: skip


def with_running_redis(settings: "Settings") -> "Settings":
    """Return the settings with the Redis of a running `stagebus up`, unless they name one."""
    from pydantic import SecretStr

    from stagebus.shared.local.running_system import find_environment

    url = find_environment(settings.data_dir).get("STAGEBUS_REDIS_URL")
    if url is None or "redis_url" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"redis_url": SecretStr(url)})


def adopt_running_model() -> None:
    """Set the environment's provider to that of a running `stagebus up`, unless it names one."""
    from stagebus.shared.config.settings import load_settings
    from stagebus.shared.local.running_system import find_environment

    settings = load_settings()
    if settings.openai_base_url or settings.providers is not None:
        return
    found = find_environment(settings.data_dir)
    os.environ.update({name: found[name] for name in _MODEL_VARIABLES if name in found})
