"""A referral's way through its stages: reserved at signup, attributed, credited, settled (rules 3 to 16, 18 and 22)."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, exists, select
from sqlalchemy.dialects.postgresql import insert

from ledger import accounts, database, periods, queries
from ledger.database import Transaction
from ledger.tables import account, entry, grant, ledger_now, referral, referral_event
from program.cycles import bonus_expiry, expired, moved_expiry
from program.eligibility import LAPSED_WORDS, Signup, refusal_before_credit, refusal_of_signup
from program.payments import Attention, UnknownPriceError, first_paid_by, first_qualifying_payment
from program.plans import Plans
from program.referral import AttributionWindow, Role, Stage


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
    review_reason: Attention | None = None
    plan: str | None = None
    minutes: int = 0
    credited_at: datetime | None = None
    expires_at: dict[Role, datetime] | None = None


@dataclass(frozen=True, slots=True)
class ExpiryResult:
    """How both grants stand: minutes that expired of those that are over, and the end, and time left, of the others."""

    stage: Stage
    expired_minutes: dict[Role, int]
    open: dict[Role, tuple[datetime, timedelta]]


@dataclass(frozen=True, slots=True)
class OpenReferral:
    """A referral that waits for its referee's payment, with what its run needs to be started again."""

    referral_id: str
    referrer_id: str
    referee_id: str
    window: AttributionWindow
    stage: Stage


@dataclass(frozen=True, slots=True)
class MovedGrant:
    """A grant whose expiry moved (rule 9)."""

    referral_id: str
    role: Role
    expires_at: datetime


def derived_id(*parts: str) -> str:
    """A referral id that follows from other ids, so that saying the same thing again gives the same referral."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def new_id() -> str:
    """A fresh referral id."""
    return secrets.token_hex(12)


def _window(row: Row[Any]) -> AttributionWindow:
    return AttributionWindow(row.clicked_at, row.signup_until - row.clicked_at)


async def reserve(transaction: Transaction, click: ClickedLink, referrer_id: str, account_id: str) -> Reservation:
    """Reserve a click's referral for the account that signed up; the account exists already.

    The first account with a token has the click's own referral; another one gets a referral of its own (rule 16).
    The same account and token always get the same.
    """
    await accounts.lock(transaction, [account_id])
    for referral_id in (click.referral_id, derived_id(click.referral_id, account_id)):
        await transaction.execute(
            insert(referral)
            .values(
                referral_id=referral_id,
                code=click.code,
                channel=click.channel,
                referrer_id=referrer_id,
                referee_id=account_id,
                clicked_at=click.window.clicked_at,
                signup_until=click.window.closes_at,
                lapses_at=click.window.lapses_at,
                stage=Stage.CLICKED,
            )
            .on_conflict_do_nothing(index_elements=[referral.c.referral_id])
        )
        row = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).one()
        if row.referee_id == account_id:
            break
    return Reservation(row.referral_id, row.referrer_id, _window(row), Stage(row.stage))


async def reserved(transaction: Transaction, click: ClickedLink, account_id: str) -> Reservation | None:
    """The referral that is reserved already for this account with this click or code, if there is one."""
    ids = (click.referral_id, derived_id(click.referral_id, account_id))
    row = (
        await transaction.execute(
            select(referral).where(referral.c.referral_id.in_(ids), referral.c.referee_id == account_id)
        )
    ).first()
    return Reservation(row.referral_id, row.referrer_id, _window(row), Stage(row.stage)) if row else None


async def _locked(transaction: Transaction, referral_id: str) -> Row[Any]:
    """The referral, with both its accounts locked in the order of their ids.

    Raises:
        UnknownReferralError: no such referral has a signup.
    """
    parties = (
        await transaction.execute(
            select(referral.c.referrer_id, referral.c.referee_id).where(referral.c.referral_id == referral_id)
        )
    ).first()
    if parties is None:
        raise UnknownReferralError(referral_id)
    await accounts.lock(transaction, parties)
    return (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).one()


async def _move(
    transaction: Transaction, referral_id: str, stage: Stage, at: datetime, reason: str | None = None, **values: object
) -> None:
    """Take a referral to a stage, and write it into its story."""
    await transaction.execute(
        referral.update()
        .where(referral.c.referral_id == referral_id)
        .values(stage=stage, reason=reason, needs_attention=None, review_reasons=[], **values)
    )
    await transaction.execute(
        referral_event.insert().values(referral_id=referral_id, stage=stage, reason=reason, at=at)
    )


async def _signup(transaction: Transaction, row: Row[Any]) -> Signup:
    """What is known of a referral's signup."""
    referrer, referee = row.referrer_id, row.referee_id
    who = (
        await transaction.execute(
            select(account.c.created_at, account.c.erased_at).where(account.c.account_id == referee)
        )
    ).one()
    elsewhere = await transaction.execute(
        select(
            exists().where(
                referral.c.referee_id == referee,
                referral.c.referral_id != row.referral_id,
                referral.c.stage.in_([stage for stage in Stage if stage.attributed]),
            )
        )
    )
    payments = await periods.payments_of(transaction, referee)
    return Signup(
        created_at=who.created_at,
        clicked_at=row.clicked_at,
        same_account=referrer == referee,
        same_email=await accounts.share_identity(transaction, "email", referrer, referee),
        same_customer=await accounts.share_identity(transaction, "customer", referrer, referee),
        erased=who.erased_at is not None,
        already_referred=bool(elsewhere.scalar_one()),
        known_email=await accounts.known_before(transaction, "email", referee),
        known_customer=await accounts.known_before(transaction, "customer", referee),
        first_paid_at=first_paid_by(payments),
    )


async def attribute(transaction: Transaction, referral_id: str) -> AttributionResult:
    """Decide whether the reserved signup counts (rules 10, 15 and 18); decided once, it stays so.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await _locked(transaction, referral_id)
    at = await database.now(transaction)
    if Stage(row.stage) is Stage.CLICKED:
        signup = await _signup(transaction, row)
        refusal = refusal_of_signup(signup)
        if refusal is not None:
            await _move(transaction, referral_id, Stage.REFUSED, at, refusal.words, refusal=refusal)
        elif not _window(row).admits(signup.created_at):
            await _move(transaction, referral_id, Stage.LAPSED, at, LAPSED_WORDS)
        else:
            await _move(transaction, referral_id, Stage.SIGNED_UP, at, signed_up_at=at)
            await transaction.execute(
                account.update().where(account.c.account_id == row.referrer_id).values(invited=account.c.invited + 1)
            )
        row = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).one()
    paid = any(payment.amount_paid > 0 for payment in await periods.payments_of(transaction, row.referee_id))
    return AttributionResult(Stage(row.stage), row.reason, row.signed_up_at, paid)


async def lapse(transaction: Transaction, referral_id: str) -> Stage:
    """Write down that the run of a reserved signup was over before it heard of it (rules 15 and 22).

    Returns:
        The stage now: `lapsed`, or what it was already where the run had heard of the signup.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await _locked(transaction, referral_id)
    if Stage(row.stage) is not Stage.CLICKED:
        return Stage(row.stage)
    await _move(transaction, referral_id, Stage.LAPSED, await database.now(transaction), LAPSED_WORDS)
    return Stage.LAPSED


async def credit_both(transaction: Transaction, referral_id: str, plans: Plans) -> CreditResult:
    """Give both sides their bonus for the referee's first payment, in this one transaction (rules 3 to 9 and 14).

    Done once, it is read. With nothing paid that counts, the referral stays where it is.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await _locked(transaction, referral_id)
    if Stage(row.stage) is not Stage.SIGNED_UP:
        return await _credited(transaction, row)
    at = await database.now(transaction)
    refusal = refusal_before_credit(await _signup(transaction, row))
    if refusal is not None:
        await _move(transaction, referral_id, Stage.REFUSED, at, refusal.words, refusal=refusal)
        # It counted as invited since it was attributed; a refused one does not (rules 10 and 12).
        await transaction.execute(
            account.update().where(account.c.account_id == row.referrer_id).values(invited=account.c.invited - 1)
        )
        return CreditResult(Stage.REFUSED, refusal.words)
    try:
        qualifying = first_qualifying_payment(await periods.payments_of(transaction, row.referee_id), plans)
    except UnknownPriceError as error:
        attention = f"Paid, but no plan is known for {', '.join(sorted(error.prices))}: add it to the plans."
        return await _wait_for(transaction, referral_id, Attention.UNKNOWN_PRICE, attention)
    if qualifying is None:
        return await _wait_for(transaction, referral_id, None, None)
    if qualifying.payment.doubtful:
        attention = f"The payment {qualifying.payment.invoice} was refunded in part or is disputed: held."
        return await _wait_for(transaction, referral_id, Attention.DOUBTFUL_PAYMENT, attention)
    plan = qualifying.plan
    expires_at: dict[Role, datetime] = {}
    for role, account_id in ((Role.REFERRER, row.referrer_id), (Role.REFEREE, row.referee_id)):
        known = await periods.of_account(transaction, account_id, plans)
        expires_at[role] = bonus_expiry(at, known.periods)
        await _grant(transaction, referral_id, role, account_id, plan.bonus, at, expires_at[role])
    await transaction.execute(
        account.update().where(account.c.account_id == row.referrer_id).values(subscribed=account.c.subscribed + 1)
    )
    await _move(
        transaction,
        referral_id,
        Stage.CREDITED,
        at,
        plan=plan.id,
        bonus_minutes=plan.bonus,
        qualifying_invoice=qualifying.payment.invoice,
        credited_at=at,
    )
    return CreditResult(Stage.CREDITED, plan=plan.id, minutes=plan.bonus, credited_at=at, expires_at=expires_at)


async def _wait_for(
    transaction: Transaction, referral_id: str, review_reason: Attention | None, attention: str | None
) -> CreditResult:
    """Leave a referral where it is, and say what it needs to go on, if it needs anything."""
    reasons = [review_reason] if review_reason else []
    await transaction.execute(
        referral.update()
        .where(referral.c.referral_id == referral_id)
        .values(needs_attention=attention, review_reasons=reasons)
    )
    return CreditResult(Stage.SIGNED_UP, needs_attention=attention, review_reason=review_reason)


async def _grant(
    transaction: Transaction,
    referral_id: str,
    role: Role,
    account_id: str,
    minutes: int,
    at: datetime,
    expires_at: datetime,
) -> None:
    grant_id = f"{referral_id}-{role}"
    await transaction.execute(
        grant.insert().values(
            grant_id=grant_id,
            account_id=account_id,
            referral_id=referral_id,
            role=role,
            minutes=minutes,
            remaining=minutes,
            credited_at=at,
            expires_at=expires_at,
        )
    )
    await transaction.execute(
        entry.insert().values(
            grant_id=grant_id, account_id=account_id, kind="credit", delta=minutes, operation_key="credit", at=at
        )
    )
    await transaction.execute(
        account.update()
        .where(account.c.account_id == account_id)
        .values(minutes_earned=account.c.minutes_earned + minutes)
    )


async def _credited(transaction: Transaction, row: Row[Any]) -> CreditResult:
    grants = await _grants(transaction, row.referral_id)
    return CreditResult(
        Stage(row.stage),
        row.reason,
        plan=row.plan,
        minutes=row.bonus_minutes or 0,
        credited_at=row.credited_at,
        expires_at={Role(lot.role): lot.expires_at for lot in grants} or None,
    )


async def _grants(transaction: Transaction, referral_id: str) -> Sequence[Row[Any]]:
    rows = await transaction.execute(
        select(grant).where(grant.c.referral_id == referral_id).order_by(grant.c.account_id).with_for_update()
    )
    return rows.all()


async def expire(transaction: Transaction, referral_id: str, plans: Plans) -> ExpiryResult:
    """Expire what is unused of each grant that is due, and settle the referral once both are over (rules 7 and 9).

    Whether a grant is due is decided by the ledger's clock. One that is past its end is expired, however late its sweep
    comes and whatever became known meanwhile: otherwise minutes that were shown as gone would come back.

    Raises:
        UnknownReferralError: nothing is reserved under that id.
    """
    row = await _locked(transaction, referral_id)
    at = await database.now(transaction)
    expired_minutes: dict[Role, int] = {}
    still_open: dict[Role, tuple[datetime, timedelta]] = {}
    for lot in await _grants(transaction, referral_id):
        role = Role(lot.role)
        if lot.expired_at is not None or lot.voided_at is not None:
            expired_minutes[role] = await _expired_minutes(transaction, lot.grant_id)
            continue
        if not expired(lot.expires_at, at):
            expires_at = await _move_expiry(transaction, lot, plans)
            still_open[role] = (expires_at, expires_at - at)
            continue
        await transaction.execute(
            entry.insert().values(
                grant_id=lot.grant_id,
                account_id=lot.account_id,
                kind="expiry",
                delta=-lot.remaining,
                operation_key="expiry",
                at=at,
            )
        )
        await transaction.execute(
            grant.update().where(grant.c.grant_id == lot.grant_id).values(remaining=0, expired_at=at)
        )
        expired_minutes[role] = lot.remaining
    stage = Stage(row.stage)
    if stage is Stage.CREDITED and not still_open and expired_minutes:
        stage = Stage.SETTLED
        await _move(transaction, referral_id, stage, at)
    return ExpiryResult(stage, expired_minutes, still_open)


async def _expired_minutes(transaction: Transaction, grant_id: str) -> int:
    return (await transaction.execute(queries.expired_minutes(grant_id))).scalar_one()


async def _move_expiry(transaction: Transaction, lot: Row[Any], plans: Plans) -> datetime:
    """Where rule 9 puts a grant's expiry now, stored where it moved."""
    known = await periods.of_account(transaction, lot.account_id, plans)
    expires_at = moved_expiry(lot.expires_at, lot.credited_at, known.periods)
    if expires_at != lot.expires_at:
        await transaction.execute(grant.update().where(grant.c.grant_id == lot.grant_id).values(expires_at=expires_at))
    return expires_at


async def move_expiries(
    transaction: Transaction, account_id: str, plans: Plans, *, again: bool = False
) -> list[MovedGrant]:
    """Apply rule 9 to the open grants of an account, which is locked, after facts of its periods came in.

    Returns:
        The grants that moved; with `again`, the others as well, for they may have moved before without a word.
    """
    known = await periods.of_account(transaction, account_id, plans)
    lots = await transaction.execute(
        select(grant)
        .where(
            *queries.open_grants(account_id, ledger_now()),
        )
        .order_by(grant.c.grant_id)
    )
    moved: list[MovedGrant] = []
    for lot in lots.all():
        expires_at = moved_expiry(lot.expires_at, lot.credited_at, known.periods)
        if expires_at != lot.expires_at:
            await transaction.execute(
                grant.update().where(grant.c.grant_id == lot.grant_id).values(expires_at=expires_at)
            )
        if again or expires_at != lot.expires_at:
            moved.append(MovedGrant(lot.referral_id, Role(lot.role), expires_at))
    return moved


async def awaiting_payment(transaction: Transaction, account_id: str) -> list[OpenReferral]:
    """The referrals of a referee, whose account is locked, that a payment could still bring a bonus."""
    rows = await transaction.execute(
        select(referral).where(
            and_(
                referral.c.referee_id == account_id,
                referral.c.stage.in_([stage for stage in Stage if stage.awaits_payment]),
            )
        )
    )
    return [
        OpenReferral(row.referral_id, row.referrer_id, row.referee_id, _window(row), Stage(row.stage)) for row in rows
    ]
