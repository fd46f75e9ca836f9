"""Carries out what an operator decides about a referral, and waits for what becomes of it (rules 19 and 20)."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client

from cli.waiting import waited_for
from ledger import decisions, inspection
from ledger.database import Database
from ledger.inspection import Standing
from program.doubts import Action, Doubt, flaw_of
from program.referral import Stage
from workflows.client import DecisionRefusedError, ReferralOverError, ReferralRuns
from workflows.messages import Outcome, Review, ReviewStart, Void, review_id, workflow_id


@dataclass(frozen=True)
class Decided:
    """What a decision led to, and in which run it was carried out."""

    referral_id: str
    action: Action
    by: str
    note: str
    run: str
    outcome: Outcome


def asked_for(action: Action, by: str, note: str) -> Review | Void:
    """The decision as a run is told of it."""
    match action:
        case Action.APPROVE:
            return Review("approve", by, note)
        case Action.REJECT:
            return Review("reject", by, note)
        case Action.VOID:
            return Void(by, note)


async def decide(
    client: Client,
    database: Database,
    task_queue: str,
    referral_id: str,
    action: Action,
    by: str,
    note: str,
    say: Callable[[str], None],
    patience: timedelta,
    decision_id: str | None = None,
) -> Decided:
    """Decide about a referral: in its own run, or where that is closed in a review.

    Args:
        client: connected to the workers' namespace.
        database: the ledger, for what becomes of a closed run is known there alone.
        task_queue: that of the referrals.
        referral_id: which.
        action: what.
        by: who, by an id of the operator's.
        note: why.
        say: hears what keeps it.
        patience: how long it is waited for.
        decision_id: the same one again is the same decision; a new one unless told.

    Raises:
        DecisionRefusedError: it cannot be decided; the message says why.
        NoAnswerError: no worker has answered in time.
        UnreachableError: Temporal could not be reached, or refused.
    """
    async with database.discreet_transaction() as transaction:
        stands = await inspection.standing(transaction, referral_id)
    if stands is None:
        raise DecisionRefusedError("nobody is known to have signed up with that referral")
    runs, asked = ReferralRuns(client, task_queue), asked_for(action, by, note)
    update_id = decision_id or secrets.token_hex(8)

    async def in_its_run() -> Decided:
        outcome = await runs.decide(referral_id, asked, update_id)
        return Decided(referral_id, action, by, note, workflow_id(referral_id), outcome)

    async def in_a_review() -> Decided:
        if flaw := flaw_of(by, note):
            raise DecisionRefusedError(flaw)
        outcome = await runs.decide_afterwards(await _review_of(database, stands, action), asked, update_id)
        return Decided(referral_id, action, by, note, review_id(referral_id), outcome)

    async def problem(*, review: bool) -> str | None:
        run = await runs.run(referral_id, review=review)
        return run.problem if run else None

    try:
        return await waited_for(in_its_run(), lambda: problem(review=False), say, patience=patience)
    except ReferralOverError:
        pass
    try:
        return await waited_for(in_a_review(), lambda: problem(review=True), say, patience=patience)
    except ReferralOverError:
        raise DecisionRefusedError("another decision was made at the same moment: look again") from None


async def _review_of(database: Database, stands: Standing, action: Action) -> ReviewStart:
    """What a review begins with; none is begun for what cannot be, for it would wait for ever.

    Raises:
        DecisionRefusedError: as the referral stands, that cannot be decided.
    """
    referral_id = stands.referral_id
    async with database.discreet_transaction() as transaction:
        impossible = await decisions.impossible(transaction, referral_id, action)
        now = await inspection.standing(transaction, referral_id)
    if impossible is not None or now is None:
        raise DecisionRefusedError(impossible or "there is no such referral any more")
    if action is Action.APPROVE and now.stage is Stage.IN_REVIEW:
        raise DecisionRefusedError(
            f"its run was ended from outside, and nobody would expire the bonus: reset {workflow_id(referral_id)} first"
        )
    doubts = [Doubt(reason) for reason in now.review_reasons if reason in set(Doubt)]
    return ReviewStart(referral_id, now.referrer_account_id, now.referee_account_id, now.stage, doubts)


def in_words(decided: Decided) -> str:
    """What became of a decision, in a line for a person."""
    outcome = decided.outcome
    said = f"{decided.referral_id}: {decided.action}, by {decided.by}; the referral is {outcome.stage}"
    taken = [f"{minutes} of the {role}" for role, minutes in sorted(outcome.minutes_voided.items())]
    if taken:
        said += f"; unused minutes taken back: {', '.join(taken)}"
    return f"{said}. {outcome.reason}" if outcome.reason else said
