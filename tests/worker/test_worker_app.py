"""The identity of a worker process."""

from stagebus.shared.config.settings import Settings
from stagebus.worker.worker_app import WorkerApp


async def test_restarted_worker_has_another_name(settings: Settings) -> None:
    """A container keeps its host name and process id, and a claim under the same name would not count as a retry."""
    settings = settings.model_copy(update={"openai_base_url": "http://127.0.0.1:1/v1"})

    assert WorkerApp(settings).name != WorkerApp(settings).name
