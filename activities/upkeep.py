"""What Schedules have done regularly, carried out on the ledger in small transactions."""

from datetime import timedelta
from time import monotonic

import structlog
from temporalio import activity

from ledger import database, outbox, portal_sessions, upkeep
from ledger.database import Database
from ledger.outbox import Lot
from workflows.activities import UpkeepActivities
from workflows.deliveries import DeliveryOrder
from workflows.delivery_client import DeliveryRuns

PAGE = 200
"""How many rows a transaction looks at."""

BATCH = 50
"""How many deliveries are taken in hand at once."""

SWEEPS_FOR = timedelta(seconds=45)
"""How long one sweep goes on; the next one takes what is left."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LedgerUpkeep(UpkeepActivities):
    """The steps, with what they need."""

    def __init__(self, database: Database, deliveries: DeliveryRuns | None) -> None:
        """Carry the steps out on `database`; `deliveries` are started where there is an endpoint to deliver to."""
        self._database = database
        self._deliveries = deliveries

    @activity.defn
    async def remind_of_reviews(self) -> int:
        """Write a log line for each referral that waits for an operator (rules 19 and 20); gives how many there are."""
        number, last = 0, ""
        while True:
            async with self._database.discreet_transaction() as transaction:
                now = await database.now(transaction)
                page = await upkeep.held(transaction, PAGE, last)
            for referral in page:
                log.warning(
                    "referral waits for an operator",
                    referral_id=referral.referral_id,
                    stage=referral.stage,
                    reasons=list(referral.reasons),
                    days=(now - referral.since).days,
                )
            number += len(page)
            if len(page) < PAGE:
                return number
            last = page[-1].referral_id
            activity.heartbeat(number)

    @activity.defn
    async def remind_of_expiring(self) -> int:
        """Tell the owner of each bonus that ends within three days; gives how many bonuses were looked at."""
        number = 0
        last: Lot | None = None
        while True:
            async with self._database.discreet_transaction() as transaction:
                page = await outbox.ending_soon(transaction, await database.now(transaction), PAGE, last)
            for lot in page:
                async with self._database.discreet_transaction() as transaction:
                    await outbox.remind_owner(transaction, lot)
                activity.heartbeat(number)
            number += len(page)
            if len(page) < PAGE:
                return number
            last = page[-1]

    @activity.defn
    async def start_deliveries(self) -> int:
        """Have delivered what nobody seems to deliver; gives how many deliveries were started."""
        started, until = 0, monotonic() + SWEEPS_FOR.total_seconds()
        while self._deliveries is not None and monotonic() < until:
            async with self._database.discreet_transaction() as transaction:
                due = await outbox.take_due(transaction, BATCH)
            for message_id in due:
                await self._deliveries.start(DeliveryOrder(message_id))
                activity.heartbeat(started)
            started += len(due)
            if len(due) < BATCH:
                break
        return started

    @activity.defn
    async def tidy_outbox(self) -> None:
        """Throw away old messages and sessions."""
        until = monotonic() + SWEEPS_FOR.total_seconds()
        for tidy in (outbox.tidy, portal_sessions.tidy):
            while monotonic() < until:
                async with self._database.discreet_transaction() as transaction:
                    tidied = await tidy(transaction, PAGE)
                activity.heartbeat()
                if tidied < PAGE:
                    break
