"""The delivery of one message: to every endpoint at once, each tried for days, none waiting for another."""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

from workflows import deliveries, policies
from workflows.activities import DeliveryActivities
from workflows.deliveries import DeliveryOrder, DeliveryOutcome, Parcel


@workflow.defn(name=deliveries.WORKFLOW)
class DeliveryWorkflow:
    """One message of the outbox on its way to the backend."""

    @workflow.run
    async def run(self, order: DeliveryOrder) -> list[str]:
        """Deliver the message; the answer is who has taken it.

        Raises:
            ApplicationError: an endpoint has not, and no more attempts are made.
        """
        endpoints = await workflow.execute_activity_method(
            DeliveryActivities.begin_delivery, order, summary="who has to hear of it?", **policies.BOOKKEEPING
        )
        problems = await asyncio.gather(*(self._deliver(order, endpoint) for endpoint in endpoints))
        given_up = {endpoint: why for endpoint, why in zip(endpoints, problems, strict=True) if why is not None}
        await workflow.execute_activity_method(
            DeliveryActivities.end_delivery,
            DeliveryOutcome(order.message_id, given_up),
            summary="write down how it ended",
            **policies.BOOKKEEPING,
        )
        if given_up:
            raise ApplicationError(f"given up: {given_up}", type="GivenUp", non_retryable=True)
        return endpoints

    async def _deliver(self, order: DeliveryOrder, endpoint: str) -> str | None:
        """Deliver to one endpoint; gives why it was given up, if it was."""
        try:
            await workflow.execute_activity_method(
                DeliveryActivities.deliver,
                Parcel(order.message_id, endpoint),
                task_queue=policies.delivery_queue(workflow.info().task_queue, endpoint),
                summary=f"send it to {endpoint}",
                **policies.DELIVERY,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return _why(error)
        return None


def _why(error: ActivityError) -> str:
    """The last thing that went wrong."""
    cause: BaseException | None = error.cause
    while cause is not None and isinstance(cause.__cause__, ApplicationError):
        cause = cause.__cause__
    return cause.message if isinstance(cause, ApplicationError) else "no answer in time"
