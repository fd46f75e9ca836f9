"""Having a message delivered once more, because somebody asks for it."""

from collections.abc import Sequence

from temporalio.client import Client

from ledger import outbox
from ledger.database import Database
from workflows.deliveries import DeliveryOrder, run_id
from workflows.delivery_client import DeliveryRuns


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
