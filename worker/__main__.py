"""`python -m stagebus.worker`: runs one worker process."""

import argparse

import uvloop

from stagebus.shared.config.settings import load_settings
from stagebus.shared.config.startup_checks import warn_of_misspelt_variables
from stagebus.shared.errors import StagebusError
from stagebus.shared.observability.logging import configure, log_uncaught_exceptions
from stagebus.shared.observability.redaction import printable
from stagebus.shared.runtime.gc_tuning import gc_paused


async def _main() -> None:
    with gc_paused():
        from stagebus.worker.worker_app import WorkerApp
    await WorkerApp(load_settings()).run()


def main() -> None:
    """Runs a worker until SIGTERM or SIGINT."""
    argparse.ArgumentParser(prog="worker", description="Execute runs.").parse_args()
    configure(load_settings().log_level)
    log_uncaught_exceptions()
    warn_of_misspelt_variables()
    try:
        uvloop.run(_main())
    except StagebusError as exc:
        raise SystemExit(printable(f"stagebus worker: {exc}", keep="\n")) from None


if __name__ == "__main__":
    main()
