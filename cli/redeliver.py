"""Having a message delivered once more, because somebody asks for it."""

import asyncio
from collections.abc import Sequence

from temporalio.client import Client

from ledger import outbox
from ledger.database import Database
from workflows.deliveries import DeliveryOrder, run_id
from workflows.delivery_client import DeliveryRuns

AT_ONCE = 200
"""How many messages are read at once."""

STARTED_AT_ONCE = 8
"""How many deliveries are started at once."""


async def redeliver(
    client: Client, database: Database, task_queue: str, delivery_id: str, endpoints: Sequence[str] = ()
) -> str:
    """Deliver a message again, under the id that it has; one that is under way begins anew.

    Args:
        client: connected to the workers' namespace.
        database: with the outbox.
        task_queue: that of the referrals.
        delivery_id: of the message, `msg_…`, or of its run, `delivery-msg_…`.
        endpoints: by name; none for all.

    Returns:
        The id of the run.

    Raises:
        UnknownMessageError: the outbox holds no such message, or no longer.
        TransactionFailedError: the database refused, or could not be reached.
        RPCError: Temporal refused, or could not be reached.
    """
    message_id = delivery_id.removeprefix(run_id(""))
    async with database.discreet_transaction() as transaction:
        await outbox.message(transaction, message_id)
    await DeliveryRuns(client, task_queue).start(DeliveryOrder(message_id, again=True, endpoints=list(endpoints)))
    return run_id(message_id)


async def redeliver_waiting(client: Client, database: Database, task_queue: str) -> int:
    """Deliver now what waits for its next attempt, to those that have not taken it yet.

    Args:
        client: connected to the workers' namespace.
        database: with the outbox.
        task_queue: that of the referrals.

    Returns:
        How many messages that were.

    Raises:
        TransactionFailedError: the database refused, or could not be reached.
        RPCError: Temporal refused, or could not be reached.
    """
    runs, number, last = DeliveryRuns(client, task_queue), 0, ""
    while True:
        async with database.discreet_transaction() as transaction:
            page = await outbox.undelivered(transaction, AT_ONCE, last)
        for first in range(0, len(page), STARTED_AT_ONCE):
            part = page[first : first + STARTED_AT_ONCE]
            await asyncio.gather(*(runs.start(DeliveryOrder(message_id), anew=True) for message_id in part))
        number += len(page)
        if len(page) < AT_ONCE:
            return number
        last = page[-1]
