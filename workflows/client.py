"""How other programs reach a referral's run: start it with a click, report a signup, pass on news."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetActivityRequest
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
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
    LookAgain,
    Outcome,
    PaymentReported,
    PaymentReversed,
    ReferralStart,
    ReferralState,
    Review,
    ReviewStart,
    SignupReported,
    Void,
)

AT_ONCE = 100
"""About how many runs Temporal's list is asked in one question."""


class ReferralOverError(Exception):
    """The referral's run is closed: nothing can become of it any more."""


class UnreachableError(Exception):
    """Temporal could not be reached, or did not do what it was asked to; trying again later may help."""


class DecisionRefusedError(Exception):
    """What an operator decided cannot be: the message says why."""


@dataclass(frozen=True)
class Run:
    """How a run stands, as Temporal's description tells.

    Args:
        workflow_id: of the run.
        run_id: of the newest, where it went on in several.
        status: `RUNNING`, or how it ended.
        stage: the referral's stage, as the run knows it.
        started_at: when the newest began, UTC.
        closed_at: when it ended, UTC.
        events: how long its history is.
        problem: what keeps it from going on; none where nothing does.
        under_way: whether it is in the middle of a step, or about to take one.
    """

    workflow_id: str
    run_id: str
    status: str
    stage: Stage | None
    started_at: datetime
    closed_at: datetime | None
    events: int
    problem: str | None
    under_way: bool = False

    @property
    def open(self) -> bool:
        """Whether it goes on."""
        return self.status == WorkflowExecutionStatus.RUNNING.name


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


@dataclass(frozen=True)
class Failing:
    """A run whose step keeps failing, as Temporal's list has it.

    Args:
        referral_id: of the referral.
        workflow_id: of the run: the referral's own, or its review.
        stage: the referral's stage, as the run knows it.
        referrer: whose link it was.
        referee: who followed it; none before the signup is decided.
    """

    referral_id: str
    workflow_id: str
    stage: Stage | None
    referrer: str | None
    referee: str | None


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

    async def look_again(self, referral_id: str, asked_id: str) -> bool:
        """Let the run look at once whether it can go on; what was done already is read, not done again.

        Args:
            referral_id: of a referral with a signup; asked of a mere click, it would be kept until that lapses.
            asked_id: of the asking, for the reader of the history.

        Returns:
            Whether there is a run that hears it.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        return await self._signal(referral_id, messages.LOOK_AGAIN, LookAgain(asked_id))

    async def retry_steps(self, referral_id: str, *, review: bool = False) -> list[str]:
        """Have the steps of a run, or of its review, that failed tried again at once instead of at their time.

        Returns:
            The names of these steps; none where none waits to be tried again.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        name = messages.review_id(referral_id) if review else messages.workflow_id(referral_id)
        tried: list[str] = []
        try:
            async with _reaching_temporal(self._timeout):
                described = await self._client.get_workflow_handle(name).describe(rpc_timeout=self._timeout)
                for step in described.raw_description.pending_activities:
                    if not step.HasField("last_failure"):
                        continue
                    await self._client.workflow_service.reset_activity(
                        ResetActivityRequest(
                            namespace=self._client.namespace,
                            execution=WorkflowExecution(workflow_id=name, run_id=described.run_id),
                            identity=self._client.identity,
                            id=step.activity_id,
                        ),
                        timeout=self._timeout,
                    )
                    tried.append(step.activity_type.name)
        except _NotFoundError:
            return tried
        return tried

    async def state(self, referral_id: str) -> ReferralState | None:
        """What the run knows, of one that is over too; none if Temporal does not know it, or no longer.

        It takes a worker to answer.

        Raises:
            UnreachableError: Temporal could not be reached, or refused, or no worker answered.
        """
        try:
            async with _reaching_temporal(self._timeout):
                known: ReferralState = await self._handle(referral_id).query(
                    messages.STATE, result_type=ReferralState, rpc_timeout=self._timeout
                )
        except _NotFoundError:
            return None
        return known

    async def failing(self, limit: int) -> list[Failing]:
        """The open runs, and reviews, whose step keeps failing, by Temporal's list, which is a moment behind.

        Args:
            limit: how many at most.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        query = f"{messages.REVIEW_REASONS.name} = '{messages.STEP_FAILING}' AND ExecutionStatus = 'Running'"
        found: list[Failing] = []
        try:
            async with _reaching_temporal(self._timeout):
                async for run in self._client.list_workflows(query, limit=limit, rpc_timeout=self._timeout):
                    attributes = run.typed_search_attributes
                    stage = attributes.get(messages.REFERRAL_STAGE)
                    found.append(
                        Failing(
                            messages.referral_of(run.id),
                            run.id,
                            Stage(stage) if stage else None,
                            attributes.get(messages.REFERRER_ACCOUNT),
                            attributes.get(messages.REFEREE_ACCOUNT),
                        )
                    )
        except _NotFoundError as error:
            raise UnreachableError(str(error.__cause__)) from error
        return found

    async def found_by(self, query: str) -> AsyncIterator[str]:
        """The referrals whose runs, or reviews, a visibility query finds; one may come more than once.

        Args:
            query: in the language of Temporal's lists.

        Raises:
            UnreachableError: Temporal could not be reached, or refused, the query for example.
        """
        types = f"'{messages.WORKFLOW}', '{messages.REVIEW_WORKFLOW}'"
        runs = self._client.list_workflows(f"WorkflowType IN ({types}) AND ({query})", rpc_timeout=self._timeout)
        while True:
            try:
                async with _reaching_temporal(self._timeout):
                    run = await anext(runs, None)
            except _NotFoundError as error:
                raise UnreachableError(str(error.__cause__)) from error
            if run is None:
                return
            yield messages.referral_of(run.id)

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

    async def decide(self, referral_id: str, asked: Review | Void, decision_id: str) -> Outcome:
        """Let the referral's run carry out what an operator decided, and wait for what becomes of it.

        That takes a worker, and as long as it takes: who has no patience ends the waiting. A decision that no worker
        has taken up by then is forgotten; one that was taken up is carried out.

        Args:
            referral_id: of a referral with a signup; asked of a mere click, it would wake its run for nothing.
            asked: what was decided, by whom and why.
            decision_id: the same one again is the same decision.

        Raises:
            DecisionRefusedError: it cannot be decided.
            ReferralOverError: the run is closed, or there is none.
            UnreachableError: Temporal could not be reached, or refused.
        """
        name = messages.VOID if isinstance(asked, Void) else messages.REVIEW
        async with _deciding(referral_id):
            outcome: Outcome = await self._handle(referral_id).execute_update(
                name, asked, id=decision_id, result_type=Outcome
            )
        return outcome

    async def decide_afterwards(self, start: ReviewStart, asked: Review | Void, decision_id: str) -> Outcome:
        """Let a review carry out what an operator decided about a referral whose own run is closed (rule 20).

        The review is started if none is under way. Arguments and errors are those of :meth:`decide`.
        """
        name = messages.VOID if isinstance(asked, Void) else messages.REVIEW
        review: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            messages.REVIEW_WORKFLOW,
            start,
            id=messages.review_id(start.referral_id),
            task_queue=self._task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"Review of referral-{start.referral_id}",
        )
        async with _deciding(start.referral_id):
            outcome: Outcome = await self._client.execute_update_with_start_workflow(
                name, asked, start_workflow_operation=review, id=decision_id, result_type=Outcome
            )
        return outcome

    async def run(self, referral_id: str, *, review: bool = False) -> Run | None:
        """How the run of a referral, or its review, stands; none if Temporal does not know it, or no longer.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        run_id = messages.review_id(referral_id) if review else messages.workflow_id(referral_id)
        try:
            async with _reaching_temporal(self._timeout):
                handle = self._client.get_workflow_handle(run_id)
                description = await handle.describe(rpc_timeout=self._timeout)
        except _NotFoundError:
            return None
        stage = description.typed_search_attributes.get(messages.REFERRAL_STAGE)
        return Run(
            description.id,
            description.run_id,
            description.status.name if description.status else "UNKNOWN",
            Stage(stage) if stage else None,
            description.start_time,
            description.close_time,
            description.history_length,
            holding_up(description),
            bool(description.raw_description.pending_activities)
            or description.raw_description.HasField("pending_workflow_task"),
        )

    async def open_among(self, referral_ids: Collection[str]) -> dict[str, Stage]:
        """Those of the referrals, at most :data:`AT_ONCE`, whose runs are open, with the stages that the runs know.

        Temporal's lists are a moment behind: what they say is to be looked at again.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        names = ", ".join(f"'{messages.workflow_id(referral_id)}'" for referral_id in sorted(referral_ids))
        return {name: stage async for name, stage in self._open(f"WorkflowId IN ({names})")} if names else {}

    def open_attributed(self) -> AsyncIterator[tuple[str, Stage]]:
        """Every referral whose run is open and beyond the click, with the stage that the run knows; likewise behind.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        stages = ", ".join(f"'{stage}'" for stage in Stage if stage.open and stage is not Stage.CLICKED)
        return self._open(f"{messages.REFERRAL_STAGE.name} IN ({stages})")

    async def _open(self, which: str) -> AsyncIterator[tuple[str, Stage]]:
        query = f"WorkflowType = '{messages.WORKFLOW}' AND ExecutionStatus = 'Running' AND {which}"
        runs = self._client.list_workflows(query, rpc_timeout=self._timeout)
        while True:
            try:
                async with _reaching_temporal(self._timeout):
                    run = await anext(runs, None)
            except _NotFoundError as error:
                raise UnreachableError(str(error.__cause__)) from error
            if run is None:
                return
            stage = run.typed_search_attributes.get(messages.REFERRAL_STAGE)
            yield run.id.removeprefix(messages.workflow_id("")), Stage(stage or Stage.CLICKED)

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


@asynccontextmanager
async def _deciding(referral_id: str) -> AsyncIterator[None]:
    try:
        yield
    except WorkflowUpdateFailedError as error:
        raise DecisionRefusedError(getattr(error.cause, "message", str(error.cause))) from None
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise ReferralOverError(referral_id) from error
        raise UnreachableError(str(error)) from error


def holding_up(description: WorkflowExecutionDescription) -> str | None:
    """What keeps a run from going on, as Temporal sees it; none where nothing does."""
    for step in description.raw_description.pending_activities:
        if step.HasField("last_failure"):
            return f"{step.activity_type.name} failed: {step.last_failure.message}; it is tried again"
        if not step.HasField("last_started_time"):
            return "no worker takes up its steps; are the workers running?"
    if description.raw_description.HasField("pending_workflow_task"):
        task = description.raw_description.pending_workflow_task
        if task.attempt > 1:
            return f"its next step failed {task.attempt - 1} times, and is tried again: see the workers' log"
        return "no worker takes it up; are the workers running?"
    return None


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
