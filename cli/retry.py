"""Has a referral's run look again at once, and tells what became of it. What was done already is only read."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from rich.console import Console
from temporalio.client import Client

from activities.telling import start_of
from cli.answers import row, table
from cli.runs import waits_for_its_run
from cli.waiting import waited_for
from ledger import inspection
from ledger.database import Database, TransactionFailedError
from ledger.inspection import Standing
from ledger.referrals import Reservation
from program.referral import AttributionWindow, Stage
from workflows.client import Failing, ReferralOverError, ReferralRuns, UnreachableError
from workflows.messages import ReferralState, workflow_id

LOOK = timedelta(milliseconds=200)
"""How often it is looked whether the run has looked."""


class NothingToRetryError(Exception):
    """There is nothing that a run could look at again: the message says why."""


class Nudge(StrEnum):
    """How a run was brought to look again."""

    STEPS = "the step that failed is tried again at once"
    LOOK = "the run was asked to look again"
    STARTED = "the run was started anew"


@dataclass(frozen=True)
class Nudged:
    """How a run was brought to look again, which steps of it are tried, and whether it is the review's run."""

    how: Nudge
    steps: list[str]
    review: bool = False


@dataclass(frozen=True)
class Retried:
    """What became of it.

    Args:
        referral_id: which.
        how: the run was brought to look again.
        steps: that failed and were tried again.
        stage: of the referral now, as the run knows it; none of a run that has not said.
        reason: why, where it ended.
        needs_attention: what it still waits for, where a person has to do something about it.
    """

    referral_id: str
    how: str
    steps: list[str]
    stage: Stage | None
    reason: str | None
    needs_attention: str | None


async def nudge(runs: ReferralRuns, database: Database, referral_id: str, asked_id: str) -> Nudged:
    """Bring a referral's run to look again, in whichever way it can hear.

    Args:
        runs: all runs.
        database: the ledger; where it is away, what failed is tried again all the same.
        referral_id: which.
        asked_id: of the asking, for the reader of the history.

    Raises:
        NothingToRetryError: nothing of it waits to be looked at.
        UnreachableError: Temporal could not be reached, or refused.
    """
    for review in (False, True):
        if steps := await runs.retry_steps(referral_id, review=review):
            return Nudged(Nudge.STEPS, steps, review)
    try:
        async with database.discreet_transaction() as transaction:
            stands = await inspection.standing(transaction, referral_id)
    except TransactionFailedError as error:
        run = await runs.run(referral_id)
        if run is None or not run.open or run.stage in (None, Stage.CLICKED):
            raise NothingToRetryError(f"no step of it fails, and the ledger does not say more: {error}") from None
        await runs.look_again(referral_id, asked_id)
        return Nudged(Nudge.LOOK, [])
    if stands is None:
        raise NothingToRetryError("nobody is known to have signed up with that referral")
    waits = stands.stage is Stage.CLICKED or waits_for_its_run(stands.stage, voided=stands.voided_at is not None)
    run = await runs.run(referral_id)
    if run is not None and run.open:
        if stands.stage is Stage.CLICKED:
            # The report of the signup was cut short, and no other signal wakes a run that waits for it.
            await _report_signup(runs, stands)
        elif not await runs.look_again(referral_id, asked_id):
            raise NothingToRetryError(f"its run has just ended: the referral is {stands.stage}")
        return Nudged(Nudge.LOOK, [])
    if not waits:
        raise NothingToRetryError(f"it is over: the referral is {stands.stage}")
    if run is not None:
        raise NothingToRetryError(f"its run was ended from outside: reset {workflow_id(referral_id)} first")
    await _report_signup(runs, stands)
    return Nudged(Nudge.STARTED, [])


async def _report_signup(runs: ReferralRuns, stands: Standing) -> None:
    window = AttributionWindow(stands.clicked_at, stands.signup_until - stands.clicked_at)
    reserved = Reservation(stands.referral_id, stands.referrer_account_id, window, stands.stage)
    try:
        await runs.signed_up(start_of(reserved), stands.referee_account_id)
    except ReferralOverError:
        raise NothingToRetryError(f"its run has just ended: the referral is {stands.stage}") from None


async def retry(
    client: Client,
    database: Database,
    task_queue: str,
    referral_id: str,
    say: Callable[[str], None],
    patience: timedelta,
) -> Retried:
    """Bring a referral's run to look again, and wait until it has.

    Args:
        client: connected to the workers' namespace.
        database: the ledger.
        task_queue: that of the referrals.
        referral_id: which.
        say: hears what keeps it.
        patience: how long it is waited for.

    Raises:
        NothingToRetryError: nothing of it waits to be looked at.
        NoAnswerError: it has not looked in time; the message says what keeps it.
        UnreachableError: Temporal could not be reached, or refused.
    """
    runs = ReferralRuns(client, task_queue)
    nudged = await nudge(runs, database, referral_id, f"retry-{secrets.token_hex(8)}")

    async def problem() -> str | None:
        run = await runs.run(referral_id, review=nudged.review)
        return run.problem if run else None

    looked = _looked(runs, referral_id, review=nudged.review)
    state = await waited_for(looked, problem, say, look=timedelta(seconds=1), patience=patience)
    stage, reason, attention = (state.stage, state.reason, state.needs_attention) if state else (None, None, None)
    return Retried(referral_id, nudged.how.value, nudged.steps, stage, reason, attention)


async def _looked(runs: ReferralRuns, referral_id: str, *, review: bool) -> ReferralState | None:
    """Wait until nothing is under way in a run; gives what it knows then."""
    while True:
        try:
            # In this order: what a run takes up after it has answered is seen as under way.
            state = await runs.state(referral_id)
            run = await runs.run(referral_id, review=review)
        except UnreachableError:
            # No worker answers: what keeps it is told meanwhile.
            run, state = None, None
        else:
            if run is None or not run.open or (not run.under_way and (review or _caught_up(state))):
                return state
        await asyncio.sleep(LOOK.total_seconds())


def _caught_up(state: ReferralState | None) -> bool:
    """Whether a run has looked at everything that it was told of."""
    if state is None or state.stage is Stage.CLICKED:
        return state is None
    if state.stage.awaits_payment:
        return state.payments_looked_at >= state.payments_reported
    return not state.bonuses_to_look_at


def in_words(retried: Retried) -> str:
    """What became of it, in a line for a person."""
    steps = f" ({', '.join(retried.steps)})" if retried.steps else ""
    said = f"{retried.referral_id}: {retried.how}{steps}"
    if retried.stage:
        said += f"; the referral is {retried.stage}"
    if retried.needs_attention:
        return f"{said}, and still needs attention. {retried.needs_attention}"
    return f"{said}. {retried.reason}" if retried.reason else said


def render_failing(failing: list[Failing], to: Console) -> None:
    """Show the runs whose step keeps failing."""
    found = table("run", "stage", "referrer", "friend")
    for each in failing:
        row(found, each.workflow_id, each.stage, each.referrer, each.referee)
    to.print(found if failing else "no step keeps failing")
