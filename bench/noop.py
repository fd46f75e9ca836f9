"""The HTTP side with one more endpoint, which takes what Stripe's webhook takes and does nothing.

`python -m bench.noop`. It is the same app with all that stands before its endpoints: server, middleware, log line.
"""

import asyncio

import uvicorn
from fastapi import Request

from runtime.logs import configure_logs
from runtime.settings import StarterSettings
from runtime.temporal import connect
from starter.app import create_app
from starter.models import WebhookAnswer
from starter.server import Server
from starter.services import Serving

PATH = "/stripe/nothing"


async def nothing(request: Request, _: Serving) -> WebhookAnswer:
    """Read the body, and do nothing with it."""
    await request.body()
    return WebhookAnswer(handled=True)


async def main() -> None:
    """Serve until told to stop."""
    settings = StarterSettings.load()
    app = create_app(settings, await connect(lazy=True))
    app.post(PATH)(nothing)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, server_header=False
    )
    await Server(config, app.state.services.live).serve()


if __name__ == "__main__":
    configure_logs("starter")
    asyncio.run(main())
