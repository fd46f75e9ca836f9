"""What reconciliation asks the ledger: how far Stripe's events were read, what is known, who still waits."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from ledger import database, periods
from ledger.database import Transaction
from ledger.tables import customer, paid_period, referral, stripe_cursor, stripe_event
from program.payments import UnknownPriceError, first_qualifying_payment
from program.plans import Plans
from program.referral import Stage

_EVENTS = "events"
_WAITING = "waiting referrals"
_AWAITING = (Stage.SIGNED_UP.value, Stage.IN_REVIEW.value)


@dataclass(frozen=True, slots=True)
class Untold:
    """An event that was applied, and of which nobody knows whether all concerned were told."""

    event_id: str
    type: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A referral that waits for its referee's payment.

    Args:
        referral_id: the referral.
        referee_id: the friend's account.
        customers: the referee's Stripe customers.
        clicked_at: nothing that was paid before counts, UTC.
    """

    referral_id: str
    referee_id: str
    customers: tuple[str, ...]
    clicked_at: datetime


async def events_read_until(transaction: Transaction) -> datetime | None:
    """Until when all of Stripe's events were applied, UTC; none where none ever was."""
    read = select(stripe_cursor.c.read_until).where(stripe_cursor.c.name == _EVENTS)
    until: datetime | None = (await transaction.execute(read)).scalar_one_or_none()
    return until


async def events_were_read(transaction: Transaction, until: datetime) -> None:
    """Remember that all events before that time were applied; nothing ever makes it an earlier one."""
    statement = insert(stripe_cursor).values(name=_EVENTS, read_until=until)
    later = func.greatest(stripe_cursor.c.read_until, statement.excluded.read_until)
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=[stripe_cursor.c.name], set_={"read_until": later})
    )


async def position(transaction: Transaction, name: str) -> str | None:
    """Where a walk goes on; none where it begins."""
    read = select(stripe_cursor.c.position).where(stripe_cursor.c.name == name)
    found: str | None = (await transaction.execute(read)).scalar_one_or_none()
    return found


async def go_on_at(transaction: Transaction, name: str, where: str | None) -> None:
    """Remember where a walk goes on; none lets it begin anew."""
    statement = insert(stripe_cursor).values(name=name, position=where)
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=[stripe_cursor.c.name], set_={"position": where})
    )


async def handled(transaction: Transaction, event_ids: Iterable[str]) -> set[str]:
    """Which of these events were applied, and all concerned told."""
    known = select(stripe_event.c.event_id).where(
        stripe_event.c.event_id.in_(sorted(set(event_ids))), stripe_event.c.signalled_at.is_not(None)
    )
    return set((await transaction.execute(known)).scalars())


async def untold(transaction: Transaction, older_than: timedelta, limit: int) -> list[Untold]:
    """Events that were applied that long ago, and still not marked as told; the oldest first."""
    before = await database.now(transaction) - older_than
    rows = await transaction.execute(
        select(stripe_event.c.event_id, stripe_event.c.type)
        .where(stripe_event.c.signalled_at.is_(None), stripe_event.c.received_at < before)
        .order_by(stripe_event.c.received_at)
        .limit(limit)
    )
    return [Untold(row.event_id, row.type) for row in rows]


async def waiting(transaction: Transaction, limit: int) -> list[Waiting]:
    """The next referrals in turn that a payment could still bring a bonus; empty at the end of the round."""
    last = await position(transaction, _WAITING) or ""
    page = (
        select(referral.c.referral_id, referral.c.referee_id, referral.c.clicked_at)
        .where(referral.c.stage.in_(_AWAITING), referral.c.referral_id > last)
        .order_by(referral.c.referral_id)
        .limit(limit)
        .subquery()
    )
    rows = await transaction.execute(
        select(
            page.c.referral_id,
            page.c.referee_id,
            page.c.clicked_at,
            func.array_agg(customer.c.customer_id).label("customers"),
        )
        .outerjoin(customer, customer.c.account_id == page.c.referee_id)
        .group_by(page.c.referral_id, page.c.referee_id, page.c.clicked_at)
        .order_by(page.c.referral_id)
    )
    return [
        Waiting(
            row.referral_id,
            row.referee_id,
            tuple(sorted(one for one in row.customers if one is not None)),
            row.clicked_at,
        )
        for row in rows
    ]


async def walked_to(transaction: Transaction, referral_id: str | None) -> None:
    """Remember which waiting referral was compared last; none begins the next round."""
    await go_on_at(transaction, _WAITING, referral_id)


async def invoices_known(transaction: Transaction, invoice_ids: Iterable[str]) -> set[str]:
    """Which of these paid invoices the ledger has."""
    known = select(paid_period.c.invoice_id).where(paid_period.c.invoice_id.in_(sorted(set(invoice_ids))))
    return set((await transaction.execute(known)).scalars())


async def unplaced_prices(transaction: Transaction, account_id: str, plans: Plans) -> frozenset[str]:
    """The prices that an account paid for, of which nobody knows what they sell; none where a plan is (rule 14)."""
    payments = await periods.payments_of(transaction, account_id)
    try:
        first_qualifying_payment(payments, plans)
    except UnknownPriceError as error:
        # An invoice without a readable line is named itself, and Stripe has no such price.
        return error.prices - {payment.invoice for payment in payments}
    return frozenset()
