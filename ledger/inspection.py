"""What operators look at: the whole story of one referral, and lists of many. Account ids only (rule 24)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, or_, select, tuple_

from ledger import periods, queries
from ledger.database import Transaction
from ledger.queries import Step
from ledger.tables import (
    account,
    attribution,
    card_check,
    delivery,
    entry,
    grant,
    identity,
    outbox,
    referral,
    review,
)
from program.doubts import Action
from program.payments import Payment, plan_paid_for
from program.plans import Plans
from program.referral import Role, Stage


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of a grant: signed minutes, what for, and when (UTC)."""

    kind: str
    delta: int
    operation_key: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Grant:
    """One side's bonus minutes with their journal; times are UTC."""

    grant_id: str
    account_id: str
    role: Role
    minutes: int
    remaining: int
    credited_at: datetime
    expires_at: datetime
    expired_at: datetime | None
    voided_at: datetime | None
    journal: list[Entry]


@dataclass(frozen=True, slots=True)
class PaidPrice:
    """What a line of an invoice was for: the Stripe price, what is known of it, and the plan that it sells."""

    price_id: str
    lookup_key: str | None
    product_id: str | None
    plan: str | None


@dataclass(frozen=True, slots=True)
class Paid:
    """A paid invoice of the friend's.

    Args:
        invoice_id: Stripe's id of it.
        paid_at: when, UTC.
        amount_paid: in the currency's smallest unit.
        plan: the plan that it pays for; none where none is known.
        prices: what it was for.
        refunded: how much of it was given back.
        disputed: whether the payer disputes it.
        same_card: whether it was paid with a card of the referrer's; none where nobody has looked (rule 19).
        qualifying: whether it is the payment that brought the bonus, or that is held.
    """

    invoice_id: str
    paid_at: datetime
    amount_paid: int
    plan: str | None
    prices: list[PaidPrice]
    refunded: int
    disputed: bool
    same_card: bool | None
    qualifying: bool


@dataclass(frozen=True, slots=True)
class Review:
    """What an operator decided, who, why, when (UTC), what was in doubt, and what it took back of each side."""

    action: Action
    by: str
    note: str
    at: datetime
    reasons: list[str]
    invoice_id: str | None
    minutes_voided: dict[str, int]


@dataclass(frozen=True, slots=True)
class Attributed:
    """Who vouched for a signup whose report never came, why, and when (UTC)."""

    by: str
    note: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Delivered:
    """How the delivery of a message to an endpoint ended; times are UTC."""

    endpoint: str
    state: str
    problem: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Told:
    """A message to the backend. While it is under way, `due_at` says when somebody looks after it (UTC)."""

    message_id: str
    type: str
    account_id: str | None
    created_at: datetime
    due_at: datetime | None
    deliveries: list[Delivered]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a referral stands in the ledger; times are UTC."""

    referral_id: str
    stage: Stage
    reason: str | None
    refusal: str | None
    needs_attention: str | None
    review_reasons: list[str]
    referrer_account_id: str
    referee_account_id: str
    code: str
    channel: str
    plan: str | None
    bonus_minutes: int | None
    clicked_at: datetime
    signup_until: datetime
    lapses_at: datetime
    reserved_at: datetime | None
    signed_up_at: datetime | None
    credited_at: datetime | None
    voided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Shared:
    """Another account that has, or had, the friend's e-mail or Stripe customer (rules 10 and 18).

    Args:
        kind: `email` or `customer`.
        account_id: the other account.
        first: whether it was the other's before it was the friend's.
        erased: whether the other account was erased.
    """

    kind: str
    account_id: str
    first: bool
    erased: bool


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that the ledger knows of a referral, each list in the order in which it happened."""

    referral: Standing
    steps: list[Step]
    attributed: Attributed | None
    payments: list[Paid]
    reviews: list[Review]
    grants: list[Grant]
    messages: list[Told]
    shared: list[Shared]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which referrals are listed: those to which all that is given applies.

    Args:
        stages: at one of these; none for all.
        referrer_id: by this account's link.
        reason: refused for it, or held, marked or waiting for it: a word such as `same-email`.
        needs_attention: only what waits for a person, or for something that a person has to mend.
        referee_id: whose friend this account is.
    """

    stages: Sequence[Stage] = ()
    referrer_id: str | None = None
    reason: str | None = None
    needs_attention: bool = False
    referee_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of referrals, the newest click first, and where the next one begins, if there is one."""

    referrals: list[Standing]
    next: tuple[datetime, str] | None


def _standing(row: Row[Any]) -> Standing:
    return Standing(
        referral_id=row.referral_id,
        stage=Stage(row.stage),
        reason=row.reason,
        refusal=row.refusal,
        needs_attention=row.needs_attention,
        review_reasons=list(row.review_reasons),
        referrer_account_id=row.referrer_id,
        referee_account_id=row.referee_id,
        code=row.code,
        channel=row.channel,
        plan=row.plan,
        bonus_minutes=row.bonus_minutes,
        clicked_at=row.clicked_at,
        signup_until=row.signup_until,
        lapses_at=row.lapses_at,
        reserved_at=row.reserved_at,
        signed_up_at=row.signed_up_at,
        credited_at=row.credited_at,
        voided_at=row.voided_at,
    )


async def standing(transaction: Transaction, referral_id: str) -> Standing | None:
    """How a referral stands; none where nobody signed up with it."""
    row = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).first()
    return _standing(row) if row else None


async def story(transaction: Transaction, referral_id: str, plans: Plans) -> Story | None:
    """The whole story of a referral, read in one snapshot; none where nobody signed up with it."""
    row = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).first()
    if row is None:
        return None
    vouched = (await transaction.execute(select(attribution).where(attribution.c.referral_id == referral_id))).first()
    return Story(
        referral=_standing(row),
        steps=await queries.story(transaction, referral_id),
        attributed=Attributed(vouched.decided_by, vouched.note, vouched.at) if vouched else None,
        payments=await _payments(transaction, row, plans),
        reviews=await _reviews(transaction, referral_id),
        grants=await _grants(transaction, referral_id),
        messages=await _messages(transaction, referral_id),
        shared=await _shared(transaction, row.referee_id),
    )


async def _shared(transaction: Transaction, account_id: str) -> list[Shared]:
    own, other = identity.alias("own"), identity.alias("other")
    rows = await transaction.execute(
        select(
            other.c.kind,
            other.c.account_id,
            (tuple_(other.c.first_seen_at, other.c.account_id) < tuple_(own.c.first_seen_at, own.c.account_id)).label(
                "first"
            ),
            account.c.erased_at.is_not(None).label("erased"),
        )
        .select_from(own)
        .join(other, and_(other.c.kind == own.c.kind, other.c.hash == own.c.hash))
        .join(account, account.c.account_id == other.c.account_id)
        .where(own.c.account_id == account_id, other.c.account_id != account_id)
        .order_by(other.c.first_seen_at, other.c.account_id, other.c.kind)
    )
    return [Shared(row.kind, row.account_id, row.first, row.erased) for row in rows]


async def _payments(transaction: Transaction, row: Row[Any], plans: Plans) -> list[Paid]:
    checked = await transaction.execute(
        select(card_check.c.invoice_id, card_check.c.same_card).where(card_check.c.referral_id == row.referral_id)
    )
    same_card = {each.invoice_id: each.same_card for each in checked}
    payments = await periods.payments_of(transaction, row.referee_id)
    payments.sort(key=lambda payment: (payment.paid_at, payment.invoice))
    return [
        Paid(
            invoice_id=payment.invoice,
            paid_at=payment.paid_at,
            amount_paid=payment.amount_paid,
            plan=plan.id if (plan := plan_paid_for(payment, plans)) else None,
            prices=_prices(payment, plans),
            refunded=payment.refunded,
            disputed=payment.disputed,
            same_card=same_card.get(payment.invoice),
            qualifying=payment.invoice == row.qualifying_invoice,
        )
        for payment in payments
    ]


def _prices(payment: Payment, plans: Plans) -> list[PaidPrice]:
    prices = {line.price.id: line.price for line in payment.lines}
    return [
        PaidPrice(price.id, price.lookup_key, price.product, plan.id if (plan := plans.sold_by(price)) else None)
        for price in prices.values()
    ]


async def _reviews(transaction: Transaction, referral_id: str) -> list[Review]:
    rows = await transaction.execute(select(review).where(review.c.referral_id == referral_id).order_by(review.c.at))
    return [
        Review(
            Action(row.action),
            row.decided_by,
            row.note,
            row.at,
            list(row.reasons),
            row.invoice_id,
            dict(row.minutes_voided),
        )
        for row in rows
    ]


async def _grants(transaction: Transaction, referral_id: str) -> list[Grant]:
    lots = await transaction.execute(
        select(grant).where(grant.c.referral_id == referral_id).order_by(grant.c.role.desc())
    )
    entries = await transaction.execute(
        select(entry)
        .join(grant, grant.c.grant_id == entry.c.grant_id)
        .where(grant.c.referral_id == referral_id)
        .order_by(entry.c.entry_id)
    )
    journal: dict[str, list[Entry]] = {}
    for row in entries:
        journal.setdefault(row.grant_id, []).append(Entry(row.kind, row.delta, row.operation_key, row.at))
    return [
        Grant(
            lot.grant_id,
            lot.account_id,
            Role(lot.role),
            lot.minutes,
            lot.remaining,
            lot.credited_at,
            lot.expires_at,
            lot.expired_at,
            lot.voided_at,
            journal.get(lot.grant_id, []),
        )
        for lot in lots
    ]


async def _messages(transaction: Transaction, referral_id: str) -> list[Told]:
    rows = await transaction.execute(
        select(outbox).where(outbox.c.referral_id == referral_id).order_by(outbox.c.created_at, outbox.c.message_id)
    )
    ended = await transaction.execute(
        select(delivery)
        .join(outbox, outbox.c.message_id == delivery.c.message_id)
        .where(outbox.c.referral_id == referral_id)
        .order_by(delivery.c.endpoint)
    )
    deliveries: dict[str, list[Delivered]] = {}
    for each in ended:
        deliveries.setdefault(each.message_id, []).append(Delivered(each.endpoint, each.state, each.problem, each.at))
    return [
        Told(row.message_id, row.type, row.account_id, row.created_at, row.due_at, deliveries.get(row.message_id, []))
        for row in rows
    ]


async def find(transaction: Transaction, wanted: Wanted, limit: int, after: tuple[datetime, str] | None = None) -> Page:
    """A page of the referrals with a signup that are wanted, the newest click first.

    Args:
        transaction: within which.
        wanted: which.
        limit: how many at most.
        after: where the page before ended.
    """
    query = select(referral).where(*_conditions(wanted))
    if after is not None:
        query = query.where(tuple_(referral.c.clicked_at, referral.c.referral_id) < tuple_(*after))
    query = query.order_by(referral.c.clicked_at.desc(), referral.c.referral_id.desc()).limit(limit + 1)
    rows = (await transaction.execute(query)).all()
    page = rows[:limit]
    more = (page[-1].clicked_at, page[-1].referral_id) if len(rows) > limit else None
    return Page([_standing(row) for row in page], more)


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.stages:
        conditions.append(referral.c.stage.in_(list(wanted.stages)))
    if wanted.referrer_id is not None:
        conditions.append(referral.c.referrer_id == wanted.referrer_id)
    if wanted.referee_id is not None:
        conditions.append(referral.c.referee_id == wanted.referee_id)
    if wanted.reason is not None:
        conditions.append((referral.c.refusal == wanted.reason) | referral.c.review_reasons.any(wanted.reason))
    if wanted.needs_attention:
        conditions.append(or_(referral.c.needs_attention.is_not(None), func.cardinality(referral.c.review_reasons) > 0))
    return conditions


async def among(transaction: Transaction, referral_ids: Collection[str], wanted: Wanted) -> list[Standing]:
    """Those of some referrals that are wanted, in the order of their ids; mere clicks are unknown here."""
    ids = referral.c.referral_id.in_(sorted(referral_ids))
    rows = await transaction.execute(select(referral).where(ids, *_conditions(wanted)).order_by(referral.c.referral_id))
    return [_standing(row) for row in rows]
