"""`python -m stagebus.gateway`: one gateway process, or several on one port."""

import argparse
import asyncio

import uvloop

from stagebus.gateway.server.prefork import bind_shared, serve_many
from stagebus.shared.config.settings import Settings, load_settings
from stagebus.shared.config.startup_checks import check_access, check_exposure, warn_of_misspelt_variables
from stagebus.shared.errors import StagebusError
from stagebus.shared.observability.logging import configure, log_uncaught_exceptions
from stagebus.shared.observability.redaction import printable
from stagebus.shared.runtime.gc_tuning import gc_paused
from stagebus.shared.storage import connections, redis_client
from stagebus.shared.storage.connections import check_storage


async def _main(settings: Settings, args: argparse.Namespace) -> None:
    with gc_paused():  # imported here: a parent process, or one with invalid settings, does not need them
        from stagebus.gateway.app import create_app
        from stagebus.gateway.server.uvicorn_server import GatewayServer
    redis = connections.connect(settings)
    try:
        await check_storage(redis)  # the app checks it, too, but its error would come with a traceback
    finally:
        await redis_client.close(redis)
    sockets = bind_shared(args.host, args.port) if args.shares_port else None
    await GatewayServer(create_app(settings), settings, args.host, args.port).serve(sockets)


def main() -> None:
    """Runs a gateway until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="gateway", description="Serve the HTTP API and the page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--insecure", action="store_true", help="serve other machines without authentication")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--workers", type=int, default=1, help="number of processes on the port")
    parser.add_argument("--shares-port", action="store_true", help=argparse.SUPPRESS)  # a child of --workers
    args = parser.parse_args()
    settings = load_settings()
    if args.insecure:
        settings = settings.model_copy(update={"insecure": True})
    configure(settings.log_level)
    log_uncaught_exceptions()
    if not args.shares_port:  # the parent has warned
        warn_of_misspelt_variables()
    try:
        check_access(settings)
        check_exposure(settings, args.host)
        if args.workers > 1:
            asyncio.run(serve_many(settings, args.host, args.port, args.workers))
        else:
            uvloop.run(_main(settings, args))
    except StagebusError as exc:
        raise SystemExit(printable(f"stagebus gateway: {exc}", keep="\n")) from None
    except KeyboardInterrupt:
        pass  # uvicorn has shut down and raises the signal again


if __name__ == "__main__":
    main()
