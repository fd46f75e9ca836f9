"""`python -m starter`: serves the HTTP side until told to stop."""

import asyncio
import sys
from dataclasses import replace

import structlog
import uvicorn

from ledger.database import Database
from program.plans import PlansError
from runtime.logs import configure_logs
from runtime.settings import SettingsError, StarterSettings
from runtime.temporal import connect
from runtime.tracing import tracing
from starter.app import create_app
from starter.server import GRACEFUL_SHUTDOWN_SECONDS, Patience, Server, room_for

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def main() -> None:
    """Run until told to stop.

    Raises:
        SettingsError: the environment lacks something.
        PlansError: the plans file cannot be used.
    """
    settings = StarterSettings.load()
    # Temporal may be away when the program starts: /readyz says so, and clicks are made up for at signup.
    traced = tracing("starter")
    client = await connect(lazy=True, interceptors=[traced.interceptor] if traced else [])
    app = create_app(settings, client)
    if traced:
        traced.watch_app(app)
        database: Database = app.state.services.database
        traced.watch_database(database.engine)
        database.watch_journeys(traced.journey)
    patience = Patience()
    patience = replace(
        patience,
        connections=room_for(patience.connections),
        # All of a proxy's visitors come from one address.
        connections_of_one=None if settings.trusted_proxies else patience.connections_of_one,
    )
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            # The app itself believes the proxies that its settings name; the server's default would be this machine.
            proxy_headers=False,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
        ),
        app.state.services.live,
        patience,
        traced.close if traced else None,
    )
    await server.serve()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    configure_logs("starter")
    try:
        asyncio.run(main())
    except (SettingsError, PlansError) as error:
        log.error("starter cannot run", error=str(error))  # noqa: TRY400
        sys.exit(1)
