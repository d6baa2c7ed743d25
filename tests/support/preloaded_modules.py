"""Imports the modules of gateways, workers and the demo model, once, in the server that forks them for the tests."""

import gc
from importlib import import_module
from typing import Final

MODULES: Final = (
    "stagebus.gateway.app",
    "stagebus.gateway.server.uvicorn_server",
    "stagebus.worker.worker_app",
    "stagebus.worker.demo.demo_model",
    "tests.support.fault_tools",
    "anyio._backends._asyncio",
    "openai.resources.chat",
    "openai.resources.responses",
)

for _module in MODULES:
    import_module(_module)
# Otherwise the first collection in each process would copy every page that it shares with the others.
gc.collect()
gc.freeze()
