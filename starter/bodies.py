"""No request of the API is long, nor a page's form: a body without end is not read to its end, whoever sends it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

LARGEST_BODY = 65_536
"""In bytes; the longest request that is as it should be has some thousand."""

_LIMITED = ("/v1/", "/portal")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyLimit:
    """Wraps an app. Stripe's webhook has a limit of its own, for its signature is over the whole body."""

    def __init__(self, app: App) -> None:
        """Limit the bodies of the requests to `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; one that is too long is answered 413 as soon as that is known."""
        if scope["type"] != "http" or not scope["path"].startswith(_LIMITED):
            await self._app(scope, receive, send)
            return
        read = 0

        async def count() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise HTTPException(413, f"The body is longer than {LARGEST_BODY} bytes.")
            return message

        await self._app(scope, count, send)
