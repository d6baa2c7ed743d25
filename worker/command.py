"""What `python -m worker` does: one worker process."""

import uvloop

from shared.errors import StagebusError
from shared.logging import configure
from shared.settings import load_settings
from worker.app import WorkerApp


async def _main() -> None:
    await WorkerApp(load_settings()).run()


def main() -> None:
    """Run a worker until SIGTERM or SIGINT."""
    configure(load_settings().log_level)
    try:
        uvloop.run(_main())
    except StagebusError as exc:
        raise SystemExit(f"stagebus worker: {exc}") from None
