"""How other programs reach a referral's run: start it with a click, report a signup, pass on news."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from program.eligibility import LAPSED_WORDS
from program.referral import Stage
from workflows import messages
from workflows.messages import (
    AccountErased,
    CycleMoved,
    PaymentReported,
    PaymentReversed,
    ReferralStart,
    ReviewStart,
    SignupReported,
)


class ReferralOverError(Exception):
    """The referral's run is closed: nothing can become of it any more."""


class UnreachableError(Exception):
    """Temporal could not be reached, or did not do what it was asked to; trying again later may help."""


@dataclass(frozen=True)
class Click:
    """What Temporal's description holds of a referral that nobody has signed up with.

    Args:
        stage: `clicked` or `lapsed`.
        referrer: the account whose link was followed.
        clicked_at: when, UTC.
        reason: why it ended, if it did (rule 22).
    """

    stage: Stage
    referrer: str
    clicked_at: datetime
    reason: str | None = None


class ReferralRuns:
    """The runs of all referrals, by referral id."""

    def __init__(self, client: Client, task_queue: str, *, timeout: timedelta = timedelta(seconds=5)) -> None:
        """Reach the runs through `client`; each call to Temporal gets `timeout`."""
        self._client = client
        self._task_queue = task_queue
        self._timeout = timeout

    async def clicked(self, start: ReferralStart, now: datetime, channel: str | None = None) -> None:
        """Start a referral's run at a click; it sleeps on the server until a signup, or until it lapses (rule 15).

        The same click again is no second start.

        Raises:
            ReferralOverError: the run was there and is closed.
            UnreachableError: Temporal could not be reached, or refused.
        """
        delay = start.lapses_at - now
        await self._start(start, channel, start_delay=max(delay, timedelta(0)) or None)

    async def signed_up(self, start: ReferralStart, account_id: str) -> None:
        """Report the signup, starting the run where the click never reached Temporal. Durable once it returns.

        Raises:
            ReferralOverError: the run is closed.
            UnreachableError: Temporal could not be reached, or refused.
        """
        await self._start(start, None, signup=SignupReported(account_id))

    async def payment_reported(self, start: ReferralStart, account_id: str, event_id: str) -> None:
        """Tell the run of an attributed signup that a payment of the friend is on record.

        A run that is missing is started with the signup: attributing it again finds the payment.

        Raises:
            ReferralOverError: the run is closed.
            UnreachableError: Temporal could not be reached, or refused.
        """
        if not await self._signal(start.referral_id, messages.PAYMENT, PaymentReported(event_id)):
            await self.signed_up(start, account_id)

    async def cycle_moved(self, referral_id: str, moved: CycleMoved) -> None:
        """Tell the run that a bonus's expiry moved (rule 9). A run that is over needs no telling.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        await self._signal(referral_id, messages.CYCLE_MOVED, moved)

    async def reversed(self, referral_id: str, payment: PaymentReversed) -> bool:
        """Tell the run that the qualifying payment was given back or is disputed (rule 20).

        Returns:
            Whether there is a run to tell; one that is closed hears nothing.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        return await self._signal(referral_id, messages.REVERSED, payment)

    async def review(self, start: ReviewStart) -> None:
        """Let an operator decide about a referral whose own run is closed (rule 20); one under way hears of it.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        reason = PaymentReversed(start.reasons[0]) if start.reasons else None
        try:
            async with _reaching_temporal(self._timeout):
                await self._client.start_workflow(
                    messages.REVIEW_WORKFLOW,
                    start,
                    id=messages.review_id(start.referral_id),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    start_signal=messages.REVERSED if reason else None,
                    start_signal_args=[reason] if reason else [],
                    static_summary=f"Review of referral-{start.referral_id}",
                    rpc_timeout=self._timeout,
                )
        except _NotFoundError as error:
            raise UnreachableError(str(error.__cause__)) from error

    async def account_erased(self, referral_id: str, erased: AccountErased) -> None:
        """Tell the run that an account of the referral was erased (rule 23). A run that is over needs no telling.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        await self._signal(referral_id, messages.ACCOUNT_ERASED, erased)

    async def click(self, referral_id: str) -> Click | None:
        """What is known of a mere click; none if Temporal does not know it, or no longer.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        try:
            async with _reaching_temporal(self._timeout):
                description = await self._handle(referral_id).describe(rpc_timeout=self._timeout)
        except _NotFoundError:
            return None
        return await _click(description)

    async def _start(
        self,
        start: ReferralStart,
        channel: str | None,
        *,
        start_delay: timedelta | None = None,
        signup: SignupReported | None = None,
    ) -> None:
        memo: Mapping[str, str] = {"clicked_at": start.clicked_at.isoformat()}
        try:
            async with _reaching_temporal(self._timeout):
                await self._client.start_workflow(
                    messages.WORKFLOW,
                    start,
                    id=messages.workflow_id(start.referral_id),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    start_delay=start_delay,
                    start_signal=messages.SIGNUP if signup else None,
                    start_signal_args=[signup] if signup else [],
                    memo=memo,
                    search_attributes=TypedSearchAttributes(
                        [
                            SearchAttributePair(messages.REFERRAL_STAGE, Stage.CLICKED),
                            SearchAttributePair(messages.REFERRER_ACCOUNT, start.referrer),
                        ]
                    ),
                    static_summary=f"Referral by {start.referrer}" + (f" ({channel})" if channel else ""),
                    rpc_timeout=self._timeout,
                )
        except WorkflowAlreadyStartedError as error:
            raise ReferralOverError(start.referral_id) from error
        except _NotFoundError as error:
            raise UnreachableError(str(error.__cause__)) from error

    async def _signal(self, referral_id: str, name: str, payload: object) -> bool:
        """Signal a run; false if there is none, or it is closed."""
        try:
            async with _reaching_temporal(self._timeout):
                await self._handle(referral_id).signal(name, payload, rpc_timeout=self._timeout)
        except _NotFoundError:
            return False
        return True

    def _handle(self, referral_id: str) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(messages.workflow_id(referral_id))


class _NotFoundError(Exception):
    """Temporal knows no such run, or it is closed."""


@asynccontextmanager
async def _reaching_temporal(patience: timedelta) -> AsyncIterator[None]:
    """Tell what is not there from what cannot be reached. A client that never connected raises a plain RuntimeError.

    The patience is for all of it: the timeout of a call does not hold for the connection that the first call makes.
    """
    try:
        async with asyncio.timeout(patience.total_seconds()):
            yield
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise _NotFoundError from error
        raise UnreachableError(str(error)) from error
    except (RuntimeError, TimeoutError) as error:
        raise UnreachableError(str(error)) from error


async def _click(description: WorkflowExecutionDescription) -> Click | None:
    attributes = description.typed_search_attributes
    referrer = attributes.get(messages.REFERRER_ACCOUNT)
    clicked_at = (await description.memo()).get("clicked_at")
    if referrer is None or clicked_at is None:
        return None
    # A run that was ended from outside has brought nothing either.
    stage = Stage(attributes.get(messages.REFERRAL_STAGE) or Stage.CLICKED)
    if description.status is not WorkflowExecutionStatus.RUNNING and stage.open:
        stage = Stage.LAPSED
    reason = LAPSED_WORDS if stage is Stage.LAPSED else None
    return Click(stage, referrer, datetime.fromisoformat(clicked_at), reason)
