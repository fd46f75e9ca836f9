"""Applies what Stripe reported, and tells which referrals have to hear of it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import assert_never

from sqlalchemy import case, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from billing.facts import (
    CustomerLinked,
    EventFacts,
    Fact,
    InvoicePaymentSeen,
    PeriodPaid,
    PeriodSeen,
    PriceSeen,
    SubscriptionEnded,
)
from ledger import accounts, referrals
from ledger.database import Transaction
from ledger.referrals import MovedGrant, OpenReferral
from ledger.tables import (
    customer,
    invoice_payment,
    ledger_now,
    paid_period,
    price,
    seen_period,
    stripe_event,
    subscription,
)
from program.identity import IdentityHash
from program.plans import Plans


@dataclass(frozen=True, slots=True)
class News:
    """Which runs have to hear of it.

    Args:
        payments: referrals for whose referee a payment is on record.
        moved: grants whose expiry moved.
    """

    payments: tuple[OpenReferral, ...] = ()
    moved: tuple[MovedGrant, ...] = ()


async def apply_event(transaction: Transaction, event: EventFacts, plans: Plans, hashes: IdentityHash) -> News:
    """Store the facts of an event and the event's id, and find the referrals that they concern.

    The same event again stores nothing new, and names the same referrals until it is marked as signalled.
    """
    received = await transaction.execute(
        insert(stripe_event)
        .values(event_id=event.event_id, type=event.type, created_at=event.created_at, received_at=ledger_now())
        .on_conflict_do_nothing()
        .returning(stripe_event.c.event_id)
    )
    again = received.first() is None
    if again:
        signalled = await transaction.execute(
            select(stripe_event.c.signalled_at).where(stripe_event.c.event_id == event.event_id)
        )
        if signalled.scalar_one() is not None:
            return News()
    # One order for everybody: customers first, by id, then accounts, by id.
    customers = sorted({fact.customer_id for fact in event.facts if hasattr(fact, "customer_id")})
    for customer_id in customers:
        await accounts.lock_customer(transaction, customer_id)
    for fact in sorted(event.facts, key=repr):
        await _apply(transaction, fact, hashes)
    return await news_of(transaction, customers, plans, again=again)


async def news_of(transaction: Transaction, customers: Iterable[str], plans: Plans, *, again: bool = False) -> News:
    """Move what rule 9 moves for the accounts of these customers, which are locked, and say which runs must hear.

    Args:
        transaction: the one in which the facts were stored.
        customers: whom they are about.
        plans: the plans on sale.
        again: the facts were stored before, and nobody knows who was told: every open grant is named, moved or not.
    """
    owners = await transaction.execute(
        select(customer.c.account_id)
        .where(customer.c.customer_id.in_(sorted(set(customers))), customer.c.account_id.is_not(None))
        .distinct()
    )
    return await _news(transaction, [owner for owner in owners.scalars().all() if owner is not None], plans, again)


async def news_of_account(transaction: Transaction, account_id: str, plans: Plans) -> News:
    """The same for an account that was just reported, and may have had a customer linked to it (rules 9 and 14)."""
    return await _news(transaction, [account_id], plans)


async def _news(transaction: Transaction, account_ids: Iterable[str], plans: Plans, again: bool = False) -> News:
    concerned = await accounts.lock(transaction, account_ids)
    payments: list[OpenReferral] = []
    moved: list[MovedGrant] = []
    for account_id in sorted(concerned):
        moved += await referrals.move_expiries(transaction, account_id, plans, again=again)
        waiting = await referrals.awaiting_payment(transaction, account_id)
        if waiting and await _has_paid(transaction, account_id):
            payments += waiting
    return News(tuple(payments), tuple(moved))


async def _has_paid(transaction: Transaction, account_id: str) -> bool:
    found = await transaction.execute(
        select(paid_period.c.invoice_id)
        .join(customer, customer.c.customer_id == paid_period.c.customer_id)
        .where(customer.c.account_id == account_id, paid_period.c.amount_paid > 0)
        .limit(1)
    )
    return found.first() is not None


async def mark_signalled(transaction: Transaction, event_id: str) -> None:
    """Say that every referral that an event concerns has been told."""
    await transaction.execute(
        stripe_event.update()
        .where(stripe_event.c.event_id == event_id, stripe_event.c.signalled_at.is_(None))
        .values(signalled_at=ledger_now())
    )


async def _apply(transaction: Transaction, fact: Fact, hashes: IdentityHash) -> None:
    match fact:
        case PeriodPaid():
            await _period_paid(transaction, fact)
        case PeriodSeen():
            statement = insert(seen_period).values(
                subscription_id=fact.subscription_id,
                price_id=fact.price_id,
                starts_at=fact.start,
                ends_at=fact.end,
                customer_id=fact.customer_id,
            )
            await transaction.execute(
                statement.on_conflict_do_update(
                    index_elements=[seen_period.c.subscription_id, seen_period.c.price_id, seen_period.c.starts_at],
                    set_={"ends_at": statement.excluded.ends_at},
                    where=seen_period.c.ends_at < statement.excluded.ends_at,
                )
            )
        case SubscriptionEnded():
            statement = insert(subscription).values(**asdict(fact))
            await transaction.execute(
                statement.on_conflict_do_update(
                    index_elements=[subscription.c.subscription_id],
                    set_={"ended_at": func.least(subscription.c.ended_at, statement.excluded.ended_at)},
                )
            )
        case PriceSeen():
            await _price_seen(transaction, fact)
        case CustomerLinked():
            await accounts.link_customer(transaction, fact.customer_id, fact.account_id, hashes)
        case InvoicePaymentSeen():
            await _invoice_payment_seen(transaction, fact)
        case _:
            assert_never(fact)


async def _period_paid(transaction: Transaction, fact: PeriodPaid) -> None:
    statement = insert(paid_period).values(
        invoice_id=fact.invoice_id,
        customer_id=fact.customer_id,
        subscription_id=fact.subscription_id,
        paid_at=fact.paid_at,
        amount_paid=fact.amount_paid,
        total=fact.total,
        lines=[
            {
                "price": line.price_id,
                "product": line.product_id,
                "start": line.start.isoformat(),
                "end": line.end.isoformat(),
                "proration": line.proration,
                "amount": line.amount,
            }
            for line in fact.lines
        ],
    )
    # One invoice may be told of twice, and not alike: by an event without the time of payment, or with fewer lines.
    # Whatever the order, the earliest time and the greatest of the rest stay.
    merged = {"paid_at": func.least(paid_period.c.paid_at, statement.excluded.paid_at)} | {
        name: func.greatest(paid_period.c[name], statement.excluded[name]) for name in ("amount_paid", "total", "lines")
    }
    await transaction.execute(
        statement.on_conflict_do_update(
            index_elements=[paid_period.c.invoice_id],
            set_=merged,
            where=tuple_(*(paid_period.c[name] for name in merged)).is_distinct_from(tuple_(*merged.values())),
        )
    )


async def _invoice_payment_seen(transaction: Transaction, fact: InvoicePaymentSeen) -> None:
    statement = insert(invoice_payment).values(**asdict(fact))
    merged = {
        "payment_intent_id": func.greatest(invoice_payment.c.payment_intent_id, statement.excluded.payment_intent_id),
        "amount_paid": func.greatest(invoice_payment.c.amount_paid, statement.excluded.amount_paid),
        "paid_at": func.least(invoice_payment.c.paid_at, statement.excluded.paid_at),
    }
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=[invoice_payment.c.invoice_payment_id], set_=merged)
    )


async def _price_seen(transaction: Transaction, fact: PriceSeen) -> None:
    known = (await transaction.execute(select(price).where(price.c.price_id == fact.price_id))).first()
    if known and fact.lookup_key in (None, known.lookup_key) and fact.product_id in (None, known.product_id):
        if fact.lookup_key is not None and known.seen_at < fact.seen_at:
            await _seen_again(transaction, fact)
        return
    seen_at = fact.seen_at if fact.lookup_key is not None else None
    statement = insert(price).values(**{**asdict(fact), "seen_at": seen_at})
    new = statement.excluded
    newer = or_(
        price.c.lookup_key.is_(None),
        tuple_(new.seen_at, new.lookup_key) > tuple_(price.c.seen_at, price.c.lookup_key),
    )
    await transaction.execute(
        statement.on_conflict_do_update(
            index_elements=[price.c.price_id],
            set_={
                "lookup_key": case(
                    (newer, func.coalesce(new.lookup_key, price.c.lookup_key)), else_=price.c.lookup_key
                ),
                "seen_at": case((newer, func.coalesce(new.seen_at, price.c.seen_at)), else_=price.c.seen_at),
                "product_id": func.greatest(price.c.product_id, new.product_id),
            },
        )
    )


async def _seen_again(transaction: Transaction, fact: PriceSeen) -> None:
    """A key known already was seen later than it was known to be: between it and another key the last one wins.

    Every sale of a plan reports its price, so nobody waits here for a row that somebody else is just writing.
    """
    free = (
        select(price.c.price_id)
        .where(price.c.price_id == fact.price_id, price.c.lookup_key == fact.lookup_key, price.c.seen_at < fact.seen_at)
        .with_for_update(skip_locked=True)
    )
    await transaction.execute(price.update().where(price.c.price_id.in_(free)).values(seen_at=fact.seen_at))
