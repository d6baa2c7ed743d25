"""What a worker is before it starts."""

from stagebus.shared.config.settings import Settings
from stagebus.worker.worker_app import WorkerApp


async def test_worker_that_is_started_again_has_another_name(settings: Settings) -> None:
    """Else a run that kills its worker would cost no try in a container: its host and process id stay the same."""
    settings = settings.model_copy(update={"openai_base_url": "http://127.0.0.1:1/v1"})

    assert WorkerApp(settings).name != WorkerApp(settings).name
