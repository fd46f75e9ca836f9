"""A referral's way through its stages: reserved at signup, attributed, credited, settled (rules 3 to 16, 18 and 22)."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from psycopg.sql import SQL, Identifier, Placeholder
from sqlalchemy import Row, or_, select

from ledger import accounts, database, grants, outbox, periods, reviews, signals
from ledger.database import Question, Transaction
from ledger.happenings import What, happened
from ledger.periods import Told
from ledger.tables import account, referral
from program.cycles import bonus_expiry, expired
from program.doubts import Doubt, holds, in_words, undecided
from program.eligibility import (
    LAPSED_WORDS,
    Refusal,
    Signup,
    becomes_of_signup,
    refusal_before_credit,
    refusal_of_signup,
)
from program.payments import (
    Attention,
    QualifyingPayment,
    UnknownPriceError,
    first_paid_by,
    first_qualifying_payment,
)
from program.plans import Plans
from program.referral import AttributionWindow, Role, Stage
from program.signals import SignalPolicy


class UnknownReferralError(Exception):
    """No signup is known for that referral id."""


@dataclass(frozen=True, slots=True)
class ClickedLink:
    """One click, as the signed token of the visitor tells it, or the use of a code at signup.

    Args:
        referral_id: the referral that the click began.
        code: whose link it was.
        channel: by which way the link had come.
        window: when it was clicked, and for how long that counts.
    """

    referral_id: str
    code: str
    channel: str
    window: AttributionWindow


@dataclass(frozen=True, slots=True)
class Reservation:
    """The referral that a signup belongs to, and how far it is.

    Args:
        referral_id: the click's own, or one derived for a second person with the same token (rule 16).
        referrer_id: whose link it was.
        window: when it was clicked, and for how long that counts.
        stage: how far it is already, where the same signup was reported before.
    """

    referral_id: str
    referrer_id: str
    window: AttributionWindow
    stage: Stage


@dataclass(frozen=True, slots=True)
class AttributionResult:
    """What became of a signup: the stage now, why if it ended, when, and whether a payment is on record already."""

    stage: Stage
    reason: str | None
    signed_up_at: datetime | None
    payment_known: bool


@dataclass(frozen=True, slots=True)
class CreditResult:
    """What became of a credit; without a plan nothing was credited (yet)."""

    stage: Stage
    reason: str | None = None
    needs_attention: str | None = None
    review_reasons: tuple[Doubt | Attention, ...] = ()
    plan: str | None = None
    minutes: int = 0
    credited_at: datetime | None = None
    expires_at: dict[Role, datetime] | None = None


@dataclass(frozen=True, slots=True)
class ExpiryResult:
    """How both grants stand: minutes that expired, or were voided, and the end, and time left, of the others."""

    stage: Stage
    expired_minutes: dict[Role, int]
    voided_minutes: dict[Role, int]
    open: dict[Role, tuple[datetime, timedelta]]


@dataclass(frozen=True, slots=True)
class OpenReferral:
    """A referral that waits for its referee's payment, with what its run needs to be started again."""

    referral_id: str
    referrer_id: str
    referee_id: str
    window: AttributionWindow
    stage: Stage


def derived_id(*parts: str) -> str:
    """A referral id that follows from other ids, so that saying the same thing again gives the same referral."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def new_id() -> str:
    """A fresh referral id."""
    return secrets.token_hex(12)


def window_of(row: Any) -> AttributionWindow:
    """When a referral was clicked, and for how long that counts (rule 15)."""
    return AttributionWindow(row.clicked_at, row.signup_until - row.clicked_at)


def reservation_of(row: Any) -> Reservation:
    """A reserved referral, by its row or by what :func:`asking_reserved` gives."""
    return Reservation(row.referral_id, row.referrer_id, window_of(row), Stage(row.stage))


async def reserve(transaction: Transaction, click: ClickedLink, referrer_id: str, account_id: str) -> Reservation:
    """Reserve a click's referral for the account that signed up; the account exists already.

    The first account with a token has the click's own referral; another one gets a referral of its own (rule 16).
    The same account and token always get the same.
    """
    await accounts.lock(transaction, [account_id])
    *_, rows = await database.at_once(transaction, *reserving(click, referrer_id, account_id))
    return reservation_of(rows[0])


def reserving(click: ClickedLink, referrer_id: str, account_id: str) -> tuple[Question, ...]:
    """Reserves it, as :func:`reserve` does, for an account that is locked; the last one is :func:`asking_reserved`."""
    ids = _ids_of(click, account_id)
    values = {
        "ids": ids,
        "code": click.code,
        "channel": click.channel,
        "referrer": referrer_id,
        "referee": account_id,
        "clicked_at": click.window.clicked_at,
        "signup_until": click.window.closes_at,
        "lapses_at": click.window.lapses_at,
        "stage": str(Stage.CLICKED),
    }
    return *((_RESERVE, {**values, "referral": each}) for each in ids), asking_reserved(click, account_id)


def asking_reserved(click: ClickedLink, account_id: str) -> Question:
    """Asks for the referral that is reserved for this account with this click or code, if there is one."""
    return _RESERVED, {"ids": _ids_of(click, account_id), "referee": account_id}


def _ids_of(click: ClickedLink, account_id: str) -> list[str]:
    """The referrals that an account may have by a click, in the order in which they are tried."""
    return [click.referral_id, derived_id(click.referral_id, account_id)]


# Whoever comes second with a token waits for the first one's row, and finds the id taken: the next statement sees that.
_RESERVE = """
INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at, stage)
SELECT %(referral)s, %(code)s, %(channel)s, %(referrer)s, %(referee)s, %(clicked_at)s, %(signup_until)s, %(lapses_at)s,
    %(stage)s
WHERE NOT EXISTS (SELECT FROM referral WHERE referral_id = ANY(%(ids)s) AND referee_id = %(referee)s)
ON CONFLICT (referral_id) DO NOTHING
"""
_RESERVED = """
SELECT referral_id, referrer_id, clicked_at, signup_until, stage FROM referral
WHERE referral_id = ANY(%(ids)s) AND referee_id = %(referee)s
"""


async def standing(transaction: Transaction, account_id: str) -> Reservation | None:
    """The referral that stands for an account as the friend: the one it is attributed to, else one not decided yet."""
    undecided = referral.c.stage == Stage.CLICKED
    row = (
        await transaction.execute(
            select(referral)
            .where(
                referral.c.referee_id == account_id,
                or_(undecided, referral.c.stage.in_([stage for stage in Stage if stage.attributed])),
            )
            .order_by(undecided, referral.c.clicked_at.desc())
            .limit(1)
        )
    ).first()
    return reservation_of(row) if row else None


async def locked(transaction: Transaction, referral_id: str) -> Any:
    """The referral, with both its accounts locked in the order of their ids; `now` is the ledger's clock after that.

    Raises:
        UnknownReferralError: no such referral has a signup.
    """
    _, found = await database.at_once(transaction, *_locking(referral_id))
    return _the_one(found, referral_id)


def _the_one(found: Sequence[Any], referral_id: str) -> Any:
    if not found:
        raise UnknownReferralError(referral_id)
    return found[0]


# Both accounts exist: the row refers to them.
_LOCK = """
SELECT account_id, erased_at FROM account WHERE account_id IN (
    SELECT unnest(ARRAY[referrer_id, referee_id]) FROM referral WHERE referral_id = %(referral)s)
ORDER BY account_id FOR NO KEY UPDATE
"""
_LOCKED = "SELECT *, ledger_now() AS now FROM referral WHERE referral_id = %(referral)s"


def _locking(referral_id: str) -> tuple[Question, Question]:
    """Locks both accounts, and says which of them were erased; then reads the referral, and the clock."""
    values = {"referral": referral_id}
    return (_LOCK, values), (_LOCKED, values)


async def move(
    transaction: Transaction, referral_id: str, stage: Stage, at: datetime, reason: str | None = None, **values: object
) -> None:
    """Take a referral, whose accounts are locked, to a stage, and write it into its story."""
    [[event]] = await database.at_once(transaction, _moving(referral_id, stage, at, reason, **values))
    await outbox.stage_reached(transaction, event.event_id, referral_id, stage, at, reason)


def _moving(referral_id: str, stage: Stage, at: datetime, reason: str | None = None, **values: object) -> Question:
    """Does so; gives the id of the story's entry."""
    changes: dict[str, Any] = {"stage": stage, "reason": reason, "needs_attention": None, "review_reasons": []} | values
    return _setting(tuple(changes)), {"referral": referral_id, "at": at, **changes}


@lru_cache
def _setting(columns: tuple[str, ...]) -> str:
    """The statement that changes these columns. They are the same few each time: composing it is a tenth of a step."""
    assignments = SQL(", ").join(SQL("{} = {}").format(Identifier(name), Placeholder(name)) for name in columns)
    return _MOVE.format(assignments).as_string()


_MOVE = SQL("""
WITH moved AS (UPDATE referral SET {} WHERE referral_id = %(referral)s)
INSERT INTO referral_event (referral_id, stage, reason, at) VALUES (%(referral)s, %(stage)s, %(reason)s, %(at)s)
RETURNING event_id
""")


async def refuse_attributed(
    transaction: Transaction, row: Row[Any], refusal: Refusal, at: datetime, *, why: str = ""
) -> CreditResult:
    """End an attributed referral, whose accounts are locked, without a bonus.

    It counted as invited since it was attributed; a refused one does not (rules 10 and 12).
    """
    words = f"{refusal.words} {why}".strip()
    await move(transaction, row.referral_id, Stage.REFUSED, at, words, refusal=refusal)
    happened(transaction, What.REFUSED, reason=refusal)
    await transaction.execute(
        account.update().where(account.c.account_id == row.referrer_id).values(invited=account.c.invited - 1)
    )
    return CreditResult(Stage.REFUSED, words)


_SIGNUP = f"""
SELECT who.created_at, who.erased_at,
    EXISTS (SELECT FROM referral other WHERE other.referee_id = this.referee_id
        AND other.referral_id <> this.referral_id AND other.stage = ANY(%(attributed)s)) AS elsewhere,
    {accounts.share_identity("email", "this.referrer_id", "this.referee_id")} AS same_email,
    {accounts.share_identity("customer", "this.referrer_id", "this.referee_id")} AS same_customer,
    {accounts.known_before("email", "this.referee_id")} AS known_email,
    {accounts.known_before("customer", "this.referee_id")} AS known_customer
FROM referral this JOIN account who ON who.account_id = this.referee_id WHERE this.referral_id = %(referral)s
"""  # noqa: S608 - of our own words


def _asking(referral_id: str) -> tuple[Question, Question]:
    """Asks for what Stripe told of both sides, and for what is known of the signup."""
    attributed = [str(stage) for stage in Stage if stage.attributed]
    return (
        (periods.TOLD, {"accounts": None, "referral": referral_id}),
        (_SIGNUP, {"referral": referral_id, "attributed": attributed}),
    )


def _signup(row: Any, who: Any, told: Told) -> Signup:
    return Signup(
        created_at=who.created_at,
        clicked_at=row.clicked_at,
        same_account=row.referrer_id == row.referee_id,
        same_email=who.same_email,
        same_customer=who.same_customer,
        erased=who.erased_at is not None,
        already_referred=who.elsewhere,
        known_email=who.known_email,
        known_customer=who.known_customer,
        first_paid_at=first_paid_by(told.payments(row.referee_id)),
    )


async def signup_as_known(transaction: Transaction, row: Row[Any]) -> Signup:
    """What is known by now of a referral's signup, with nothing locked."""
    rows, [who] = await database.at_once(transaction, *_asking(row.referral_id))
    return _signup(row, who, await periods.understood(transaction, rows))


@dataclass(frozen=True, slots=True)
class _Seen:
    """A referral with both its accounts locked, and all that decides about it.

    Args:
        row: the referral.
        erased: when each of its accounts was erased, if it was.
        told: what Stripe told of both sides.
        signup: what is known of the signup.
    """

    row: Any
    erased: Mapping[str, datetime | None]
    told: Told
    signup: Signup


async def _see(transaction: Transaction, referral_id: str, plans: Plans | None = None) -> _Seen:
    """Lock a referral's accounts, and read all about it in one journey; `plans` as in `periods.understood`.

    Raises:
        UnknownReferralError: no such referral has a signup.
    """
    parties, found, rows, known = await database.at_once(transaction, *_locking(referral_id), *_asking(referral_id))
    row = _the_one(found, referral_id)
    told = await periods.understood(transaction, rows, plans)
    [who] = known
    erased = {each.account_id: each.erased_at for each in parties}
    return _Seen(row, erased, told, _signup(row, who, told))


async def refusal_as_it_stands(transaction: Transaction, referral_id: str) -> Refusal | None:
    """Why a reserved signup would be refused if it were decided now; none if it would not (rules 10 and 18).

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    return refusal_of_signup((await _see(transaction, referral_id)).signup)


async def attribute(transaction: Transaction, referral_id: str, *, last: bool = False) -> AttributionResult:
    """Decide whether the reserved signup counts (rules 10, 15 and 18); decided once, it stays so.

    Args:
        transaction: within which.
        referral_id: whose signup.
        last: nothing is asked in the transaction afterwards, so that it may be committed together with what is written.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    seen = await _see(transaction, referral_id)
    row = seen.row
    paid = any(payment.amount_paid > 0 for payment in seen.told.payments(row.referee_id))
    if Stage(row.stage) is not Stage.CLICKED:
        return AttributionResult(Stage(row.stage), row.reason, row.signed_up_at, paid)
    at = row.now
    stage, refusal = becomes_of_signup(seen.signup, window_of(row))
    happened(transaction, What.SIGNUP_DECIDED, outcome=stage)
    if refusal is not None:
        # The friend did sign up: the referrer sees that, and why it brings nothing (rule 22).
        await move(transaction, referral_id, Stage.REFUSED, at, refusal.words, refusal=refusal, signed_up_at=at)
        happened(transaction, What.REFUSED, reason=refusal)
        return AttributionResult(Stage.REFUSED, refusal.words, at, paid)
    if stage is Stage.LAPSED:
        await move(transaction, referral_id, Stage.LAPSED, at, LAPSED_WORDS)
        return AttributionResult(Stage.LAPSED, LAPSED_WORDS, None, paid)
    *_, new = await database.at_once(
        transaction,
        _moving(referral_id, Stage.SIGNED_UP, at, signed_up_at=at),
        ("UPDATE account SET invited = invited + 1 WHERE account_id = %(whose)s", {"whose": row.referrer_id}),
        outbox.writing(outbox.signed_up(row, at)),
        commit=last,
    )
    outbox.announce(transaction, new)
    return AttributionResult(Stage.SIGNED_UP, None, at, paid)


async def lapse(transaction: Transaction, referral_id: str) -> Stage:
    """Write down that the run of a reserved signup was over before it heard of it (rules 15 and 22).

    Returns:
        The stage now: `lapsed`, or what it was already where the run had heard of the signup.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await locked(transaction, referral_id)
    if Stage(row.stage) is not Stage.CLICKED:
        return Stage(row.stage)
    await move(transaction, referral_id, Stage.LAPSED, row.now, LAPSED_WORDS)
    happened(transaction, What.SIGNUP_DECIDED, outcome=Stage.LAPSED)
    return Stage.LAPSED


async def credit_both(
    transaction: Transaction, referral_id: str, plans: Plans, policy: SignalPolicy, *, last: bool = False
) -> CreditResult:
    """Give both sides their bonus for the referee's first payment, in this one transaction (rules 3 to 9 and 14).

    Done once, it is read. With nothing paid that counts, the referral stays where it is. A doubtful one is held until
    an operator decides, and whatever is found meanwhile is added to why (rule 19).

    Args:
        transaction: within which.
        referral_id: which.
        plans: the plans on sale.
        policy: the signs that are turned on.
        last: nothing is asked in the transaction afterwards, so that it may be committed together with what is written.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
        CardCheckNeededError: cards are compared, and those of this payment have not been yet (rule 19).
    """
    seen = await _see(transaction, referral_id, plans)
    if Stage(seen.row.stage) not in (Stage.SIGNED_UP, Stage.IN_REVIEW):
        return await result_of(transaction, seen.row)
    return await _credit_seen(transaction, seen, seen.row.now, plans, policy, last=last)


async def approve(
    transaction: Transaction,
    referral_id: str,
    at: datetime,
    plans: Plans,
    policy: SignalPolicy,
    approved: frozenset[Doubt],
) -> CreditResult:
    """Credit a referral that is held, whose accounts are locked, unless something else is in the way (rule 19).

    Args:
        transaction: within which.
        referral_id: the referral, in review.
        at: now, by the ledger's clock, UTC.
        plans: the plans on sale.
        policy: the signs that are turned on.
        approved: what an operator has just approved of.

    Raises:
        CardCheckNeededError: cards are compared, and those of this payment have not been yet (rule 19).
    """
    return await _credit_seen(transaction, await _see(transaction, referral_id, plans), at, plans, policy, approved)


async def _credit_seen(
    transaction: Transaction,
    seen: _Seen,
    at: datetime,
    plans: Plans,
    policy: SignalPolicy,
    approved: frozenset[Doubt] = frozenset(),
    *,
    last: bool = False,
) -> CreditResult:
    """Credit an attributed referral, unless something is in the way; one in review needs approval."""
    row, payments = seen.row, seen.told.payments(seen.row.referee_id)
    refusal = refusal_before_credit(seen.signup)
    if refusal is not None:
        return await refuse_attributed(transaction, row, refusal, at)
    held_already = Stage(row.stage) is Stage.IN_REVIEW and not approved
    try:
        qualifying = first_qualifying_payment(payments, plans)
    except UnknownPriceError as error:
        if held_already:
            return await result_of(transaction, row)
        attention = f"Paid, but no plan is known for {', '.join(sorted(error.prices))}: add it to the plans."
        return await _wait_for(transaction, row, at, (Attention.UNKNOWN_PRICE,), attention)
    if qualifying is None:
        return await (result_of(transaction, row) if held_already else _wait_for(transaction, row, at, (), None))
    invoice = qualifying.payment.invoice
    found = (*qualifying.payment.findings, *await signals.findings(transaction, row, invoice, policy))
    if found:
        found = undecided(found, await reviews.approvals(transaction, row, approved), invoice)
    if held_already or holds(found):
        return await _hold(transaction, row, at, invoice, {finding.doubt for finding in found})
    marks = sorted(finding.doubt for finding in found)
    return await _credit(transaction, seen, at, plans, qualifying, marks, last=last)


async def _credit(
    transaction: Transaction,
    seen: _Seen,
    at: datetime,
    plans: Plans,
    qualifying: QualifyingPayment,
    marks: Sequence[Doubt],
    *,
    last: bool,
) -> CreditResult:
    row, plan, bonus = seen.row, qualifying.plan, qualifying.plan.bonus
    sides = ((Role.REFEREE, row.referee_id), (Role.REFERRER, row.referrer_id))
    expires_at = {role: bonus_expiry(at, seen.told.periods(account_id, plans).periods) for role, account_id in sides}
    lots = [
        outbox.Credited(
            grant_id=grants.lot_id(row.referral_id, role),
            account_id=account_id,
            role=role,
            plan=plan.id,
            minutes=bonus,
            remaining=bonus,
            expires_at=expires_at[role],
            erased_at=seen.erased[account_id],
        )
        for role, account_id in sides
    ]
    stage = _moving(
        row.referral_id,
        Stage.CREDITED,
        at,
        plan=plan.id,
        bonus_minutes=bonus,
        qualifying_invoice=qualifying.payment.invoice,
        credited_at=at,
        review_reasons=[str(mark) for mark in marks],
    )
    messages = outbox.bonuses_credited(lots, row, at)
    [known], *_, new = await database.at_once(
        transaction,
        (_ALL_KNOWN_AT, {"invoice": qualifying.payment.invoice, "signed_up_at": row.signed_up_at}),
        grants.credit_both(row, bonus, at, expires_at),
        stage,
        outbox.writing(messages),
        commit=last,
    )
    outbox.announce(transaction, new)
    happened(transaction, What.CREDITED, plan=plan.id)
    for role, _ in sides:
        happened(transaction, What.MINUTES_CREDITED, bonus, role=role)
    for doubt in marks:
        happened(transaction, What.MARKED, reason=doubt)
    if not row.review_reasons:
        # What waited for an operator, or for a price to be named, says nothing of how quick the program is.
        happened(transaction, What.CREDITED_AFTER, max((at - known.at).total_seconds(), 0))
    return CreditResult(
        Stage.CREDITED,
        review_reasons=tuple(marks),
        plan=plan.id,
        minutes=bonus,
        credited_at=at,
        expires_at=expires_at,
    )


# When the last came of all that a credit needs: Stripe's event, the customer's account, the signup.
_ALL_KNOWN_AT = """
SELECT greatest(coalesce(told_at, paid_at), linked_at, %(signed_up_at)s::timestamptz) AS at
FROM paid_period JOIN customer USING (customer_id) WHERE invoice_id = %(invoice)s
"""


async def _hold(transaction: Transaction, row: Row[Any], at: datetime, invoice: str, found: set[Doubt]) -> CreditResult:
    """Hold a referral for an operator, with all that was ever found of this payment (rule 19)."""
    known = {Doubt(reason) for reason in row.review_reasons if reason in set(Doubt)}
    held = Stage(row.stage) is Stage.IN_REVIEW
    doubts = sorted(found | known if held else found)
    words = in_words(doubts)
    attention = f"Held for review: {words}"
    if not held or doubts != sorted(known) or invoice != row.qualifying_invoice:
        await move(
            transaction,
            row.referral_id,
            Stage.IN_REVIEW,
            at,
            words,
            needs_attention=attention,
            review_reasons=doubts,
            qualifying_invoice=invoice,
        )
        for doubt in set(doubts) - (known if held else set()):
            happened(transaction, What.HELD, reason=doubt)
    return CreditResult(Stage.IN_REVIEW, words, attention, tuple(doubts))


async def _wait_for(
    transaction: Transaction,
    row: Row[Any],
    at: datetime,
    reasons: tuple[Doubt | Attention, ...],
    attention: str | None,
) -> CreditResult:
    """Let a referral wait for the first real payment, and say what it needs to go on, if it needs anything."""
    waiting: dict[str, Any] = {"needs_attention": attention, "review_reasons": list(reasons)}
    if Stage(row.stage) is Stage.IN_REVIEW:
        # What was approved of was given back meanwhile: the first real payment after it counts (rule 14).
        await move(transaction, row.referral_id, Stage.SIGNED_UP, at, qualifying_invoice=None, **waiting)
    else:
        await transaction.execute(referral.update().where(referral.c.referral_id == row.referral_id).values(**waiting))
    return CreditResult(Stage.SIGNED_UP, needs_attention=attention, review_reasons=reasons)


async def result_of(transaction: Transaction, row: Row[Any]) -> CreditResult:
    """What became of a referral so far, read."""
    lots = await grants.of_referral(transaction, row.referral_id)
    return CreditResult(
        Stage(row.stage),
        row.reason,
        row.needs_attention,
        tuple(row.review_reasons),
        plan=row.plan,
        minutes=row.bonus_minutes or 0,
        credited_at=row.credited_at,
        expires_at={Role(lot.role): lot.expires_at for lot in lots} or None,
    )


async def expire(transaction: Transaction, referral_id: str, plans: Plans) -> ExpiryResult:
    """Expire what is unused of each grant that is due, and settle the referral once both are over (rules 7 and 9).

    Whether a grant is due is decided by the ledger's clock. One that is past its end is expired, however late its sweep
    comes and whatever became known meanwhile: otherwise minutes that were shown as gone would come back.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await locked(transaction, referral_id)
    at = row.now
    expired_minutes: dict[Role, int] = {}
    voided_minutes: dict[Role, int] = {}
    still_open: dict[Role, tuple[datetime, timedelta]] = {}
    for lot in await grants.of_referral(transaction, referral_id):
        role = Role(lot.role)
        if lot.voided_at is not None:
            voided_minutes[role] = await grants.voided_minutes(transaction, lot)
        elif lot.expired_at is not None:
            expired_minutes[role] = await grants.expired_minutes(transaction, lot)
        elif expired(lot.expires_at, at):
            expired_minutes[role] = await grants.expire_open(transaction, lot, at)
        else:
            expires_at = await grants.move_expiry(transaction, lot, plans)
            still_open[role] = (expires_at, expires_at - at)
    stage = Stage(row.stage)
    # One that was voided as a whole stays what it was (rule 20).
    if stage is Stage.CREDITED and not still_open and row.voided_at is None:
        stage = Stage.SETTLED
        # What an operator has not decided yet stays to be decided (rule 20).
        undecided = {"needs_attention": row.needs_attention, "review_reasons": row.review_reasons}
        await move(transaction, referral_id, stage, at, **undecided)
        happened(transaction, What.SETTLED)
    return ExpiryResult(stage, expired_minutes, voided_minutes, still_open)


def open_referral(row: Any) -> OpenReferral:
    """A referral that a payment could still bring a bonus, from its row."""
    return OpenReferral(row.referral_id, row.referrer_id, row.referee_id, window_of(row), Stage(row.stage))
