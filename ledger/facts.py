"""Applies what Stripe reported, and tells which referrals have to hear of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, assert_never

from sqlalchemy import ColumnElement, case, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from billing.facts import (
    CLEARED_DISPUTE,
    FINAL_DISPUTE,
    CustomerLinked,
    DisputeSeen,
    EventFacts,
    Fact,
    InvoicePaymentSeen,
    PeriodPaid,
    PeriodSeen,
    PriceSeen,
    RefundSeen,
    SubscriptionEnded,
)
from ledger import accounts, database, grants, periods, referrals, reviews
from ledger.database import Transaction
from ledger.grants import MovedGrant
from ledger.referrals import OpenReferral
from ledger.tables import (
    customer,
    dispute,
    invoice_payment,
    ledger_now,
    paid_period,
    price,
    referral,
    refund,
    seen_period,
    stripe_event,
    subscription,
)
from program.doubts import Doubt
from program.identity import IdentityHash
from program.plans import Plans, Price
from program.referral import Stage


@dataclass(frozen=True, slots=True)
class ReversedReferral:
    """A referral whose qualifying payment was given back or is disputed; it is marked for review (rule 20)."""

    referral_id: str
    reason: Doubt
    referrer_id: str
    referee_id: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class NamedPrice:
    """A price of which an event told what plan it sells; whoever has it already hears by `late_prices`.

    Args:
        price_id: the Stripe price.
        again: the event came before, and nobody knows who was told.
    """

    price_id: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Which runs have to hear of it.

    Args:
        payments: referrals for whose referee a payment is on record.
        moved: grants whose expiry moved.
        reversed: referrals whose qualifying payment was given back or is disputed; each may be named again.
        named: prices whose plan became known, or another: whom that concerns is looked up after the commit.
    """

    payments: tuple[OpenReferral, ...] = ()
    moved: tuple[MovedGrant, ...] = ()
    reversed: tuple[ReversedReferral, ...] = ()
    named: tuple[NamedPrice, ...] = ()


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
    prices: set[str] = set()
    if again:
        earlier = (
            await transaction.execute(select(stripe_event).where(stripe_event.c.event_id == event.event_id))
        ).one()
        if earlier.signalled_at is not None:
            return News()
        prices |= set(earlier.named_prices)
    # One order for everybody: payments, then invoices, then customers, then accounts, each by id.
    invoices = await _lock_invoices(transaction, event.facts)
    paying = {customer_id for fact in event.facts if (customer_id := _paying_customer(fact))}
    customers = paying | await _reversed_customers(transaction, event.facts, invoices)
    names = {
        customer_id: await accounts.lock_customer(transaction, customer_id, hashes) for customer_id in sorted(customers)
    }
    linked = [fact.account_id for fact in event.facts if isinstance(fact, CustomerLinked)]
    # All accounts at once, so that they are locked by id: a credit under way is over before its referral is looked for.
    concerned = {*await _owners(transaction, names.values()), *linked} if linked or customers != paying else set[str]()
    erased = await accounts.lock(transaction, concerned)
    for fact in sorted(event.facts, key=repr):
        prices |= await _apply(transaction, _renamed(fact, names), plans, hashes)
    if prices:
        await _remember_named(transaction, event.event_id, prices)
    # An account that a customer is said of hears of it, also where the customer stays another's (rules 10 and 18).
    owners = await _owners(transaction, [names[customer_id] for customer_id in paying])
    news = await _news(transaction, {*owners, *linked}, plans, again)
    for account_id in linked:
        # A checkout that is heard of only after the account was erased leaves nothing in the clear either (rule 23).
        if erased.get(account_id):
            await accounts.hide_customers(transaction, account_id, hashes)
    doubtful = await _reversed(transaction, invoices) if invoices else ()
    return replace(news, reversed=doubtful, named=tuple(NamedPrice(price_id, again) for price_id in sorted(prices)))


def _renamed(fact: Fact, names: Mapping[str, str]) -> Fact:
    """The fact, with the customer called as it is called here; a link needs the id, for what outlives the account."""
    match fact:
        case PeriodPaid() | PeriodSeen() | SubscriptionEnded():
            return replace(fact, customer_id=names[fact.customer_id])
        case _:
            return fact


def _paying_customer(fact: Fact) -> str | None:
    """Whose standing or payments a fact is about."""
    match fact:
        case PeriodPaid() | PeriodSeen() | SubscriptionEnded() | CustomerLinked():
            return fact.customer_id
        case _:
            return None


async def _lock_invoices(transaction: Transaction, told: Iterable[Fact]) -> set[str]:
    """Lock the payments and the invoices that facts are about, whatever of them is known, and name the invoices.

    A refund, the payment that it is of, and the invoice that the payment is for may come in three transactions at once:
    whoever comes last has to see the other two.
    """
    links = [fact for fact in told if isinstance(fact, InvoicePaymentSeen | RefundSeen | DisputeSeen)]
    intents = {fact.payment_intent_id for fact in links if fact.payment_intent_id is not None}
    charges = {fact.charge_id for fact in links if fact.charge_id is not None}
    await _lock_names(transaction, "payment", intents | charges)
    invoices = {fact.invoice_id for fact in told if isinstance(fact, InvoicePaymentSeen | PeriodPaid)}
    if links:
        paid_by = or_(invoice_payment.c.payment_intent_id.in_(intents), invoice_payment.c.charge_id.in_(charges))
        invoices |= set((await transaction.execute(select(invoice_payment.c.invoice_id).where(paid_by))).scalars())
    await _lock_names(transaction, "invoice", invoices)
    return invoices


async def _lock_names(transaction: Transaction, kind: str, names: Iterable[str]) -> None:
    """Lock what may have no row yet, by its name."""
    for name in sorted(names):
        await transaction.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{kind} {name}", 0))))


async def _reversed_customers(transaction: Transaction, told: Iterable[Fact], invoices: set[str]) -> set[str]:
    """Whose payments are given back or disputed; a charge need not name its customer, but its invoice does."""
    named = {fact.customer_id for fact in told if isinstance(fact, RefundSeen) and fact.customer_id is not None}
    if not invoices:
        return named
    found = await transaction.execute(select(paid_period.c.customer_id).where(paid_period.c.invoice_id.in_(invoices)))
    return named | set(found.scalars())


async def _owners(transaction: Transaction, customers: Iterable[str]) -> list[str]:
    """The accounts that these customers belong to."""
    owners = await transaction.execute(
        select(customer.c.account_id)
        .where(customer.c.customer_id.in_(sorted(set(customers))), customer.c.account_id.is_not(None))
        .distinct()
    )
    return [owner for owner in owners.scalars() if owner is not None]


async def _reversed(transaction: Transaction, invoices: Iterable[str]) -> tuple[ReversedReferral, ...]:
    """Mark the referrals that these invoices brought, or would bring, a bonus, where it is in doubt (rule 20)."""
    rows = await transaction.execute(
        select(referral, paid_period.c.amount_paid)
        .join(paid_period, paid_period.c.invoice_id == referral.c.qualifying_invoice)
        .where(
            referral.c.qualifying_invoice.in_(invoices),
            referral.c.stage.in_([Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED]),
        )
        .order_by(referral.c.referral_id)
    )
    qualified = rows.all()
    known = await periods.reversals_of(transaction, [row.qualifying_invoice for row in qualified])
    found: list[ReversedReferral] = []
    for row in qualified:
        doubts = known.get(row.qualifying_invoice, periods.Reversals()).doubts(row.amount_paid)
        marked = [doubt for doubt in doubts if await reviews.mark(transaction, row, doubt)]
        parties = (row.referrer_id, row.referee_id, Stage(row.stage))
        found += [ReversedReferral(row.referral_id, doubt, *parties) for doubt in marked]
    return tuple(found)


async def news_of(transaction: Transaction, customers: Iterable[str], plans: Plans, *, again: bool = False) -> News:
    """Move what rule 9 moves for the accounts of these customers, which are locked, and say which runs must hear.

    Args:
        transaction: the one in which the facts were stored.
        customers: whom they are about.
        plans: the plans on sale.
        again: the facts were stored before, and nobody knows who was told: every open grant is named, moved or not.
    """
    return await _news(transaction, await _owners(transaction, customers), plans, again)


async def news_of_account(transaction: Transaction, account_id: str, plans: Plans) -> News:
    """The same for an account that was just reported, and may have had a customer linked to it (rules 9 and 14)."""
    return await _news(transaction, [account_id], plans)


async def news_of_accounts(
    transaction: Transaction, account_ids: Iterable[str], plans: Plans, *, again: bool = False
) -> News:
    """The same for several accounts, which are locked here: no customer is locked after them."""
    return await _news(transaction, account_ids, plans, again)


async def _news(transaction: Transaction, account_ids: Iterable[str], plans: Plans, again: bool = False) -> News:
    concerned = await accounts.lock(transaction, account_ids)
    payments: list[OpenReferral] = []
    moved: list[MovedGrant] = []
    for account_id in sorted(concerned):
        moved += await grants.move_expiries(transaction, account_id, plans, again=again)
        waiting = await referrals.awaiting_payment(transaction, account_id)
        if waiting:
            [[can_go_on]] = await database.at_once(transaction, (_CAN_GO_ON, {"account": account_id}))
            payments += waiting if can_go_on.answer else []
    return News(tuple(payments), tuple(moved))


# A customer that was another account's ends the referral (rule 10), and its payments are that account's.
_CAN_GO_ON = f"""
SELECT EXISTS (SELECT FROM paid_period JOIN customer USING (customer_id)
        WHERE account_id = %(account)s AND amount_paid > 0)
    OR {accounts.known_before("customer", "%(account)s")} AS answer
"""  # noqa: S608 - of our own words


async def mark_signalled(transaction: Transaction, event_id: str) -> None:
    """Say that every referral that an event concerns has been told."""
    await transaction.execute(
        stripe_event.update()
        .where(stripe_event.c.event_id == event_id, stripe_event.c.signalled_at.is_(None))
        .values(signalled_at=ledger_now())
    )


async def _remember_named(transaction: Transaction, event_id: str, named: Iterable[str]) -> None:
    """Write down that an event named these prices: the same event again has to tell of them again."""
    await transaction.execute(
        stripe_event.update().where(stripe_event.c.event_id == event_id).values(named_prices=sorted(named))
    )


async def _apply(transaction: Transaction, fact: Fact, plans: Plans, hashes: IdentityHash) -> set[str]:
    """Store a fact; gives the price whose plan became known by it, or became another one."""
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
            return {fact.price_id} if await _price_seen(transaction, fact, plans) else set()
        case CustomerLinked():
            await accounts.link_customer(transaction, fact.customer_id, fact.account_id, hashes)
        case InvoicePaymentSeen():
            await _invoice_payment_seen(transaction, fact)
        case RefundSeen():
            await _refund_seen(transaction, fact)
        case DisputeSeen():
            await _dispute_seen(transaction, fact)
        case _:
            assert_never(fact)
    return set()


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
        "charge_id": func.greatest(invoice_payment.c.charge_id, statement.excluded.charge_id),
    }
    await transaction.execute(
        statement.on_conflict_do_update(index_elements=[invoice_payment.c.invoice_payment_id], set_=merged)
    )


async def _refund_seen(transaction: Transaction, fact: RefundSeen) -> None:
    statement = insert(refund).values(
        charge_id=fact.charge_id, payment_intent_id=fact.payment_intent_id, amount_refunded=fact.amount_refunded
    )
    new = statement.excluded
    merged = {
        "payment_intent_id": func.greatest(refund.c.payment_intent_id, new.payment_intent_id),
        "amount_refunded": func.greatest(refund.c.amount_refunded, new.amount_refunded),
    }
    await transaction.execute(statement.on_conflict_do_update(index_elements=[refund.c.charge_id], set_=merged))


async def _dispute_seen(transaction: Transaction, fact: DisputeSeen) -> None:
    statement = insert(dispute).values(**asdict(fact))
    new = statement.excluded
    later = _standing_of_dispute(new) > _standing_of_dispute(dispute.c)
    merged = {
        "charge_id": func.greatest(dispute.c.charge_id, new.charge_id),
        "payment_intent_id": func.greatest(dispute.c.payment_intent_id, new.payment_intent_id),
        "status": case((later, new.status), else_=dispute.c.status),
        "seen_at": case((later, new.seen_at), else_=dispute.c.seen_at),
    }
    await transaction.execute(statement.on_conflict_do_update(index_elements=[dispute.c.dispute_id], set_=merged))


def _standing_of_dispute(columns: Any) -> ColumnElement[Any]:
    """By what one status goes before another: over before open, then the latest, of one second the one in doubt."""
    over = case((columns.status.in_(sorted(FINAL_DISPUTE)), 1), else_=0)
    in_doubt = case((columns.status.in_(sorted(CLEARED_DISPUTE)), 0), else_=1)
    return tuple_(over, columns.seen_at, in_doubt, columns.status)


async def _price_seen(transaction: Transaction, fact: PriceSeen, plans: Plans) -> bool:
    """Store what is known of a price; whether it sells a plan now that it was not known to sell."""
    known = (await transaction.execute(select(price).where(price.c.price_id == fact.price_id))).first()
    if known and fact.lookup_key in (None, known.lookup_key) and fact.product_id in (None, known.product_id):
        if fact.lookup_key is not None and known.seen_at < fact.seen_at:
            await _seen_again(transaction, fact)
        return False
    seen_at = fact.seen_at if fact.lookup_key is not None else None
    statement = insert(price).values(**{**asdict(fact), "seen_at": seen_at})
    new = statement.excluded
    newer = or_(
        price.c.lookup_key.is_(None),
        tuple_(new.seen_at, new.lookup_key) > tuple_(price.c.seen_at, price.c.lookup_key),
    )
    stored = await transaction.execute(
        statement.on_conflict_do_update(
            index_elements=[price.c.price_id],
            set_={
                "lookup_key": case(
                    (newer, func.coalesce(new.lookup_key, price.c.lookup_key)), else_=price.c.lookup_key
                ),
                "seen_at": case((newer, func.coalesce(new.seen_at, price.c.seen_at)), else_=price.c.seen_at),
                "product_id": func.greatest(price.c.product_id, new.product_id),
            },
        ).returning(price.c.lookup_key, price.c.product_id)
    )
    before = plans.sold_by(Price(fact.price_id, known.lookup_key, known.product_id) if known else Price(fact.price_id))
    after = plans.sold_by(Price(fact.price_id, *stored.one()))
    return after is not None and after != before


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
