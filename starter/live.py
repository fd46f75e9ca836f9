"""Tells open dashboards when something that they show has changed.

One look a second for all of them together, in one query, and only while somebody watches. No connection is held for a
listener. Why not LISTEN and NOTIFY: docs/decisions/0011-live-dashboard.md.
"""

import asyncio
from contextvars import Context
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from ledger import portal_sessions
from ledger.database import Database
from ledger.portal_sessions import Session

LOOKS_EVERY_SECONDS = 1.0
"""How soon a change is told, at the latest."""

HEARTBEAT_SECONDS = 15.0
"""What stands between would take a stream for dead that is silent for longer."""

STREAMS_OF_ONE_ACCOUNT = 4
"""A browser opens six connections to a site at once, where it speaks HTTP/1.1: some stay free for everything else."""

STREAMS = 1000
"""How many streams a process serves; the pages of further ones are as they were when they were opened."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class TooManyStreamsError(Exception):
    """The account has as many streams as it may have."""


class FullError(Exception):
    """The process has as many streams as it serves, or is about to end."""


class News(Enum):
    """What a listener is told."""

    CHANGED = auto()
    EXPIRED = auto()
    CLOSING = auto()


@dataclass(eq=False)
class Listener:
    """One open dashboard.

    Args:
        session: whose it is.
        version: of what it shows, as far as it was told.
    """

    session: Session
    version: str

    def __post_init__(self) -> None:
        self._told = asyncio.Event()
        self._news: News | None = None

    def tell(self, news: News) -> None:
        """Let it know. Of several before it listens again, the last one counts: an end is never followed by more."""
        if self._news in (None, News.CHANGED):
            self._news = news
        self._told.set()

    async def listen(self, seconds: float) -> News | None:
        """The next news; none within these seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._told.wait()
        except TimeoutError:
            return None
        news = self._news
        if news is News.CHANGED:
            self._news = None
            self._told.clear()
        return news


class LiveUpdates:
    """Everybody who listens in this process, and who looks for them."""

    def __init__(self, database: Database, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        """Look into `database`, once somebody listens; no stream is silent for longer than its heartbeat."""
        self.heartbeat_seconds = heartbeat_seconds
        self._database = database
        self._listeners: set[Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self._away = False

    def watch(self, session: Session, version: str | None) -> Listener:
        """Have a dashboard told, from the next look on and until it leaves.

        Args:
            session: an open session.
            version: of what the dashboard shows already; where it is not known, the first look counts as news.

        Raises:
            TooManyStreamsError: the account has enough of them.
            FullError: the process does.
        """
        if self._closed or len(self._listeners) >= STREAMS:
            raise FullError
        if sum(each.session.account_id == session.account_id for each in self._listeners) >= STREAMS_OF_ONE_ACCOUNT:
            raise TooManyStreamsError
        listener = Listener(session, version or "")
        self._listeners.add(listener)
        if self._looking is None or self._looking.done():
            # It looks for everybody, and belongs to no request.
            self._looking = asyncio.create_task(self._look_while_somebody_listens(), context=Context())
        return listener

    def leave(self, listener: Listener) -> None:
        """Look for it no longer."""
        self._listeners.discard(listener)

    async def close(self) -> None:
        """End all streams, so that nobody waits for them."""
        self._closed = True
        for listener in self._listeners:
            listener.tell(News.CLOSING)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look_while_somebody_listens(self) -> None:
        while self._listeners:
            await self._look()
            await asyncio.sleep(LOOKS_EVERY_SECONDS)

    async def _look(self) -> None:
        listeners = list(self._listeners)
        try:
            async with self._database.transaction() as transaction:
                known = await portal_sessions.glances(
                    transaction, sorted({listener.session.secret_hash for listener in listeners})
                )
        except Exception as error:
            # Whatever it is, the streams stay open: what changes meanwhile is seen at the first look that succeeds.
            if not self._away:
                log.warning("dashboards are not told of news", error=type(error).__name__)
            self._away = True
            return
        self._away = False
        for listener in listeners:
            glance = known.get(listener.session.secret_hash)
            if glance is None:
                listener.tell(News.EXPIRED)
            elif glance.version != listener.version:
                listener.version = glance.version
                listener.tell(News.CHANGED)
