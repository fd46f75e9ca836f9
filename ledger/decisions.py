"""Carries out what operators decide about doubtful referrals: once, whatever is repeated (rules 19, 20 and 22)."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.dialects.postgresql import insert

from ledger import grants, referrals
from ledger.database import Transaction
from ledger.happenings import What, happened
from ledger.referrals import CreditResult
from ledger.tables import referral, review
from program.cycles import expired
from program.doubts import Action, Doubt, in_words
from program.eligibility import TAKEN_BACK_WORDS, VOIDED_WORDS, Refusal
from program.plans import Plans
from program.referral import Role, Stage
from program.signals import SignalPolicy


class ImpossibleError(Exception):
    """What was decided cannot be: the message says why, for the operator."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What an operator decided.

    Args:
        referral_id: about which referral.
        decision_id: under which id; the same one again changes nothing.
        action: what.
        by: who, by an id of the operator's.
        note: why.
    """

    referral_id: str
    decision_id: str
    action: Action
    by: str
    note: str


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """What a decision led to: how the referral stands, when it was made, and what was taken back of each grant."""

    result: CreditResult
    at: datetime
    voided_minutes: dict[Role, int] = field(default_factory=dict)


async def decide(transaction: Transaction, decision: Decision, plans: Plans, policy: SignalPolicy) -> DecisionResult:
    """Carry out a decision, and write down who made it, why, and what was known.

    Approved, a referral that is held is credited as of now; a mark is cleared. Rejected, it is refused. Voided before
    the credit it ends; after it, what is unused of both grants goes, and what was used stays used.

    Raises:
        UnknownReferralError: nobody signed up with it.
        ImpossibleError: as the referral stands, that cannot be decided.
        CardCheckNeededError: cards are compared, and those of this payment have not been yet (rule 19).
    """
    row = await referrals.locked(transaction, decision.referral_id)
    known = (
        await transaction.execute(
            select(review.c.at, review.c.minutes_voided).where(
                review.c.referral_id == decision.referral_id, review.c.decision_id == decision.decision_id
            )
        )
    ).first()
    if known is not None:
        voided = {Role(role): minutes for role, minutes in known.minutes_voided.items()}
        return DecisionResult(await referrals.result_of(transaction, row), known.at, voided)
    if flaw := _impossible(row, decision.action):
        raise ImpossibleError(flaw)
    at = row.now
    match decision.action:
        case Action.APPROVE:
            made = DecisionResult(await _approve(transaction, row, at, plans, policy), at)
        case Action.REJECT:
            made = DecisionResult(await _reject(transaction, row, at), at)
        case Action.VOID:
            made = await _void(transaction, row, at)
    await _record(transaction, row, decision, made)
    return made


async def impossible(transaction: Transaction, referral_id: str, action: Action) -> str | None:
    """Why something cannot be decided about a referral as it stands; none if it can.

    Raises:
        UnknownReferralError: nobody signed up with it.
    """
    return _impossible(await referrals.locked(transaction, referral_id), action)


async def foreseen(transaction: Transaction, referral_ids: Collection[str], action: Action) -> dict[str, str]:
    """Those of some referrals about which that cannot be decided as they stand now, and why. Nothing is locked."""
    rows = await transaction.execute(select(referral).where(referral.c.referral_id.in_(sorted(referral_ids))))
    return {row.referral_id: flaw for row in rows if (flaw := _impossible(row, action))}


async def made(transaction: Transaction, referral_id: str, update_id: str) -> bool:
    """Whether the decision that an update of that id brought is carried out, in whichever run of the referral."""
    found = await transaction.execute(
        select(review.c.at).where(
            review.c.referral_id == referral_id, review.c.decision_id.endswith(f"/{update_id}", autoescape=True)
        )
    )
    return found.first() is not None


def _impossible(row: Row[Any], action: Action) -> str | None:
    stage, held = Stage(row.stage), Stage(row.stage) is Stage.IN_REVIEW
    match action:
        case Action.APPROVE if not held and (not _doubts(row) or row.credited_at is None):
            return f"nothing is in doubt: the referral is {stage}"
        case Action.REJECT if row.credited_at is not None:
            return "the bonus was credited already: void it, or approve it"
        case Action.REJECT if not held:
            return f"nothing is held for review: the referral is {stage}"
        case Action.VOID if row.voided_at is not None:
            return "there is nothing to void: the referral is void"
        case Action.VOID if stage not in (Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED):
            return f"there is nothing to void: the referral is {stage}"
    return None


async def _approve(
    transaction: Transaction, row: Row[Any], at: datetime, plans: Plans, policy: SignalPolicy
) -> CreditResult:
    doubts = _doubts(row)
    if Stage(row.stage) is Stage.IN_REVIEW:
        return await referrals.approve(transaction, row.referral_id, at, plans, policy, frozenset(doubts))
    await transaction.execute(
        referral.update()
        .where(referral.c.referral_id == row.referral_id)
        .values(needs_attention=None, review_reasons=[])
    )
    cleared = await referrals.result_of(transaction, row)
    return replace(cleared, needs_attention=None, review_reasons=())


async def _reject(transaction: Transaction, row: Row[Any], at: datetime) -> CreditResult:
    return await referrals.refuse_attributed(transaction, row, Refusal.DECLINED, at, why=in_words(_doubts(row)))


async def _void(transaction: Transaction, row: Row[Any], at: datetime) -> DecisionResult:
    stage = Stage(row.stage)
    if stage in (Stage.SIGNED_UP, Stage.IN_REVIEW):
        await referrals.move(transaction, row.referral_id, Stage.VOIDED, at, VOIDED_WORDS, voided_at=at)
        return DecisionResult(CreditResult(Stage.VOIDED, VOIDED_WORDS), at)
    taken: dict[Role, int] = {}
    for lot in await grants.of_referral(transaction, row.referral_id):
        # One that is due has expired, also where its sweep is late (rule 7): its run will expire it.
        if lot.expired_at is None and lot.voided_at is None:
            if expired(lot.expires_at, at):
                await grants.expire_open(transaction, lot, at)
            else:
                taken[Role(lot.role)] = await grants.void_open(transaction, lot, at)
    await referrals.move(transaction, row.referral_id, stage, at, TAKEN_BACK_WORDS, voided_at=at)
    voided = await referrals.result_of(transaction, row)
    result = replace(voided, reason=TAKEN_BACK_WORDS, needs_attention=None, review_reasons=())
    return DecisionResult(result, at, taken)


def _doubts(row: Row[Any]) -> list[Doubt]:
    return [Doubt(reason) for reason in row.review_reasons if reason in set(Doubt)]


async def _record(transaction: Transaction, row: Row[Any], decision: Decision, made: DecisionResult) -> None:
    await transaction.execute(
        insert(review).values(
            referral_id=decision.referral_id,
            decision_id=decision.decision_id,
            action=decision.action,
            decided_by=decision.by,
            note=decision.note,
            reasons=_doubts(row),
            invoice_id=row.qualifying_invoice,
            minutes_voided={str(role): minutes for role, minutes in made.voided_minutes.items()},
            at=made.at,
        )
    )
    happened(transaction, What.DECIDED, action=decision.action)
