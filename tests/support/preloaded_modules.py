"""The modules that gateways, workers and the demo model import. The server that forks them imports this one, once."""

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
