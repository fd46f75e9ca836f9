"""What becomes of Stripe's signatures, for operators: a secret that is not the endpoint's shows nowhere else."""

import time
from collections.abc import Callable

import structlog

from ledger import webhook_watch
from ledger.database import Database, TransactionFailedError

WRITTEN_EVERY_SECONDS = 10.0
"""What comes more often is written down together: whoever sends rubbish does not set the pace of the database."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Signatures:
    """Counts them, and writes down what it has counted now and then."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        """Write into `database`; `clock` gives seconds."""
        self._database = database
        self._clock = clock
        self._verified = False
        self._refused = 0
        self._written: tuple[bool, float] | None = None

    async def fitted(self) -> None:
        """One fitted."""
        self._verified, self._refused = True, 0
        await self._write(fitted=True)

    async def did_not_fit(self) -> None:
        """One did not."""
        self._refused += 1
        await self._write(fitted=False)

    async def _write(self, *, fitted: bool) -> None:
        now = self._clock()
        # After the other kind it is news, and is written at once.
        if self._written and self._written[0] is fitted and now - self._written[1] < WRITTEN_EVERY_SECONDS:
            return
        verified, refused = self._verified, self._refused
        self._written, self._verified, self._refused = (fitted, now), False, 0
        try:
            async with self._database.discreet_transaction() as transaction:
                await webhook_watch.saw(transaction, verified=verified, refused=refused)
        except TransactionFailedError as error:
            # Stripe's answer does not hang on it.
            log.warning("signatures not written down", error=str(error))
