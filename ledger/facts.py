"""Applies what Stripe reported, and tells which referrals have to hear of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, assert_never

from psycopg.errors import LockNotAvailable
from psycopg.types.json import Jsonb
from sqlalchemy import ColumnElement, case, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

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
from ledger.database import Question, Transaction
from ledger.grants import MovedGrant
from ledger.referrals import OpenReferral
from ledger.tables import (
    dispute,
    invoice_payment,
    price,
    refund,
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

    @property
    def none(self) -> bool:
        """Whether there is nobody to tell."""
        return not (self.payments or self.moved or self.reversed or self.named)


async def apply_event(transaction: Transaction, event: EventFacts, plans: Plans, hashes: IdentityHash) -> News:
    """Store the facts of an event and the event's id, and find the referrals that they concern.

    The same event again stores nothing new, and names the same referrals until it is marked as signalled.
    """
    if all(isinstance(fact, PeriodPaid | PeriodSeen) for fact in event.facts):
        return await _apply_periods(transaction, event, plans, hashes)
    # One order for everybody: payments, then invoices, then customers, then accounts, each by id.
    told = {"event": event.event_id, "type": event.type, "created_at": event.created_at}
    links = [fact for fact in event.facts if isinstance(fact, InvoicePaymentSeen | RefundSeen | DisputeSeen)]
    paid = sorted({fact.invoice_id for fact in event.facts if isinstance(fact, InvoicePaymentSeen | PeriodPaid)})
    paying = {customer_id for fact in event.facts if (customer_id := _paying_customer(fact))}
    received, [earlier], *locked = await database.at_once(
        transaction, (_RECEIVE, told), (_RECEIVED, told), *(() if links else _locking_invoices(paid))
    )
    again = not received
    if again and earlier.signalled_at is not None:
        return News()
    prices = set(earlier.named_prices) if again else set[str]()
    named = {fact.customer_id for fact in links if isinstance(fact, RefundSeen) and fact.customer_id is not None}
    invoices = await _lock_payments(transaction, links, paid) if links else set(paid)
    if links and invoices:
        locked = await database.at_once(transaction, *_locking_invoices(invoices))
    customers = paying | named | ({row.customer_id for row in locked[-1]} if locked else set[str]())
    names = await accounts.lock_customers(transaction, customers, hashes)
    linked = [fact.account_id for fact in event.facts if isinstance(fact, CustomerLinked)]
    # All accounts at once, so that they are locked by id: a credit under way is over before its referral is looked for.
    concerned = {*await _owners(transaction, names.values()), *linked} if linked or customers != paying else set[str]()
    erased = await accounts.lock(transaction, concerned)
    facts = [_renamed(fact, names) for fact in sorted(event.facts, key=repr)]
    for fact in facts:
        prices |= await _apply(transaction, fact, plans, hashes)
    if prices:
        await _remember_named(transaction, event.event_id, prices)
    # An account that a customer is said of hears of it, also where the customer stays another's (rules 10 and 18).
    whose = _whose(accounts=linked, customers=[names[customer_id] for customer_id in paying])
    storing = filter(None, (_storing(fact, event, hashes) for fact in facts))
    # What was qualified is looked for behind the locks: a credit that was under way is over.
    qualifying = (_QUALIFIED, {"invoices": sorted(invoices)})
    *_, locking, meant, with_bonuses, awaiting, qualified = await database.at_once(
        transaction, *storing, *_looks(whose), qualifying
    )
    news = await _understood(transaction, whose, (locking, meant, with_bonuses, awaiting), plans, again=again)
    for account_id in linked:
        # A checkout that is heard of only after the account was erased leaves nothing in the clear either (rule 23).
        if erased.get(account_id):
            await accounts.hide_customers(transaction, account_id, hashes)
    doubtful = await _reversed(transaction, qualified) if qualified else ()
    return replace(news, reversed=doubtful, named=tuple(NamedPrice(price_id, again) for price_id in sorted(prices)))


async def _apply_periods(transaction: Transaction, event: EventFacts, plans: Plans, hashes: IdentityHash) -> News:
    """The same for an event of paid or seen periods alone, as most are: it is known beforehand what to lock."""
    told = {"event": event.event_id, "type": event.type, "created_at": event.created_at}
    invoices = sorted({fact.invoice_id for fact in event.facts if isinstance(fact, PeriodPaid)})
    paying = sorted({fact.customer_id for fact in event.facts if isinstance(fact, PeriodPaid | PeriodSeen)})
    whose = _whose(customers=[name for each in paying for name in (each, hashes.pseudonym(each))])
    facts = sorted(event.facts, key=repr)
    received, [earlier], *found = await database.at_once(
        transaction,
        (_RECEIVE, told),
        (_RECEIVED, told),
        *_locking_invoices(invoices),
        *accounts.locking_customers(paying, hashes),
        *filter(None, (_storing(fact, event, hashes) for fact in facts)),
        *_looks(whose),
        (_QUALIFIED, {"invoices": invoices}),
    )
    again = not received
    if again and earlier.signalled_at is not None:
        return News()
    *news, qualified = found[-5:]
    others = {row.customer_id for row in found[len(invoices)]} - set(whose["customers"]) if invoices else set[str]()
    if others:
        # The invoice was told of before as another customer's, which Stripe never does: whatever is under way with that
        # one is over now. It is locked out of order, and where that is in somebody's way the event comes again.
        await accounts.lock(transaction, await _owners(transaction, others))
        [qualified] = await database.at_once(transaction, (_QUALIFIED, {"invoices": invoices}))
    return replace(
        await _understood(transaction, whose, news, plans, again=again),
        reversed=await _reversed(transaction, qualified) if qualified else (),
    )


def turns(event: EventFacts) -> frozenset[str]:
    """By what an event takes turns with others that are kept: no two in one call of `keep` have any of it in common.

    Returns:
        Names; none of an event that tells of anything but paid or seen periods, or of one twice: it is never kept.
    """
    rows: list[str] = []
    named = {f"event {event.event_id}"}
    for fact in event.facts:
        match fact:
            case PeriodPaid():
                rows.append(f"invoice {fact.invoice_id}")
            case PeriodSeen():
                rows.append(f"period {fact.subscription_id} {fact.price_id} {fact.start}")
            case _:
                return frozenset()
        named |= {f"customer {fact.customer_id}", f"subscription {fact.subscription_id}"}
    return frozenset(named.union(rows)) if len(set(rows)) == len(rows) else frozenset()


async def keep(statement: Transaction, events: Sequence[EventFacts], hashes: IdentityHash) -> set[str]:
    """Store events of paid or seen periods that concern no run: all of them in one journey, and one transaction.

    Most that Stripe tells is of that kind: of a customer whose account waits for no bonus and has none, or who has no
    account here. Whether it is so is asked under the same locks as by `apply_event`. But none is waited for: an event
    one of whose locks somebody else holds is not stored, and the others are.

    Args:
        statement: a connection on which a statement, or several that are sent together, are a transaction.
        events: no two take turns with each other (`turns`).
        hashes: for what outlives the account.

    Returns:
        The ids of those that are stored, once the transaction is committed, and nobody has to be told of them. Of each
        other nothing is stored, and it is for `apply_event`.

    Raises:
        DBAPIError: the database refused one of them, or is away; none is stored.
    """
    told = [_told(event, hashes) for event in events if turns(event)]
    if not told:
        return set()
    locks = {
        "names": [name for each in told for name in each["names"]],
        "customers": [name for each in told for name in each["customers"]],
    }
    values = {
        "events": Jsonb(told),
        "ids": [each["event_id"] for each in told],
        "awaiting": [str(stage) for stage in Stage if stage.awaits_payment],
    }
    try:
        _, rows = await database.at_once(statement, (_TRY_LOCKS, locks), (_KEEP, values))
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable):
            return set()  # one of them is just being stored by somebody else: each waits for itself alone
        raise
    return {row.event_id for row in rows}


def _told(event: EventFacts, hashes: IdentityHash) -> dict[str, Any]:
    """An event of periods alone, as `_KEEP` reads it."""
    paid = [fact for fact in event.facts if isinstance(fact, PeriodPaid)]
    seen = [fact for fact in event.facts if isinstance(fact, PeriodSeen)]
    customers = sorted({fact.customer_id for fact in paid} | {fact.customer_id for fact in seen})
    hidden = [hashes.pseudonym(customer_id) for customer_id in customers]
    invoices = [fact.invoice_id for fact in paid]
    return {
        "event_id": event.event_id,
        "type": event.type,
        "created_at": event.created_at.isoformat(),
        "names": [*(f"invoice {name}" for name in invoices), *(f"customer {name}" for name in hidden)],
        "customers": customers,
        "hidden": hidden,
        "invoices": invoices,
        "paid": [
            {
                "invoice_id": fact.invoice_id,
                "customer_id": fact.customer_id,
                "subscription_id": fact.subscription_id,
                "paid_at": fact.paid_at.isoformat(),
                "amount_paid": fact.amount_paid,
                "total": fact.total,
                "lines": _lines(fact),
            }
            for fact in paid
        ],
        "seen": [
            {
                "subscription_id": fact.subscription_id,
                "price_id": fact.price_id,
                "starts_at": fact.start.isoformat(),
                "ends_at": fact.end.isoformat(),
                "customer_id": fact.customer_id,
            }
            for fact in seen
        ],
    }


# The names of the locks that were free are remembered until the transaction ends: the next statement looks at what
# was committed before it began, and so it must not believe in a lock that it would only get itself.
# An event that somebody else is just storing is the one thing that is waited for, in vain, and not long.
_TRY_LOCKS = """
WITH free AS MATERIALIZED (
    SELECT name FROM unnest(%(names)s::text[]) name WHERE pg_try_advisory_xact_lock(hashtextextended(name, 0))
), owner AS MATERIALIZED (
    SELECT account_id FROM account WHERE account_id IN (
        SELECT account_id FROM customer WHERE customer_id = ANY(%(customers)s::text[])) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT set_config('lock_timeout', '200ms', true) AS patience, set_config('referrals.held', (
    SELECT coalesce(array_agg(name), '{}')::text
    FROM (SELECT name FROM free UNION ALL SELECT 'account ' || account_id FROM owner) held), true) AS held
"""
# One invoice may be told of twice, and not alike: by an event without the time of payment, or with fewer lines.
# Whatever the order, the earliest times and the greatest of the rest stay.
_SAME_INVOICE = """
ON CONFLICT (invoice_id) DO UPDATE SET paid_at = least(known.paid_at, excluded.paid_at),
    amount_paid = greatest(known.amount_paid, excluded.amount_paid), total = greatest(known.total, excluded.total),
    lines = greatest(known.lines, excluded.lines), told_at = least(known.told_at, excluded.told_at)
WHERE (known.paid_at, known.amount_paid, known.total, known.lines, known.told_at) IS DISTINCT FROM (
    least(known.paid_at, excluded.paid_at), greatest(known.amount_paid, excluded.amount_paid),
    greatest(known.total, excluded.total), greatest(known.lines, excluded.lines),
    least(known.told_at, excluded.told_at))
"""
_SAME_PERIOD = """
ON CONFLICT (subscription_id, price_id, starts_at) DO UPDATE SET ends_at = excluded.ends_at
WHERE known.ends_at < excluded.ends_at
"""
_KEEP = f"""
WITH told AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(events)s) AS each (event_id text, type text, created_at timestamptz,
        names text[], customers text[], hidden text[], invoices text[], paid jsonb, seen jsonb)
), held AS MATERIALIZED (
    SELECT current_setting('referrals.held')::text[] AS names
), kept AS (
    INSERT INTO stripe_event (event_id, type, created_at, received_at, signalled_at)
    SELECT event_id, type, created_at, ledger_now(), ledger_now() FROM told, held
    WHERE told.names <@ held.names
        -- Also where a checkout named an account that is not reported yet: who reports it takes turns by another lock.
        AND NOT EXISTS (SELECT FROM customer
            WHERE customer_id = ANY(told.customers) AND 'account ' || account_id <> ALL(held.names))
        AND NOT EXISTS (SELECT FROM customer JOIN referral ON referee_id = customer.account_id
            WHERE customer_id = ANY(told.customers) AND stage = ANY(%(awaiting)s::text[]))
        AND NOT EXISTS (SELECT FROM customer JOIN grant_lot USING (account_id)
            WHERE customer_id = ANY(told.customers) AND expired_at IS NULL AND voided_at IS NULL)
        AND NOT EXISTS (SELECT FROM customer WHERE customer_id = ANY(told.hidden))
        AND NOT EXISTS (SELECT FROM referral WHERE qualifying_invoice = ANY(told.invoices))
    ON CONFLICT DO NOTHING RETURNING event_id
), paying AS (
    INSERT INTO customer (customer_id)
    SELECT customer_id FROM kept JOIN told USING (event_id), unnest(customers) customer_id
    WHERE NOT EXISTS (SELECT FROM customer known WHERE known.customer_id = customer_id.customer_id)
), paid AS (
    INSERT INTO paid_period AS known
        (invoice_id, customer_id, subscription_id, paid_at, amount_paid, total, lines, told_at)
    SELECT each.*, created_at FROM kept JOIN told USING (event_id), jsonb_to_recordset(paid) AS each (invoice_id text,
        customer_id text, subscription_id text, paid_at timestamptz, amount_paid bigint, total bigint, lines jsonb)
    {_SAME_INVOICE}
), seen AS (
    INSERT INTO seen_period AS known (subscription_id, price_id, starts_at, ends_at, customer_id)
    SELECT each.* FROM kept JOIN told USING (event_id), jsonb_to_recordset(seen) AS each (subscription_id text,
        price_id text, starts_at timestamptz, ends_at timestamptz, customer_id text)
    {_SAME_PERIOD}
)
SELECT event_id FROM kept
UNION ALL SELECT event_id FROM stripe_event WHERE event_id = ANY(%(ids)s::text[]) AND signalled_at IS NOT NULL
"""  # noqa: S608 - of our own words
_RECEIVE = """
INSERT INTO stripe_event (event_id, type, created_at, received_at)
VALUES (%(event)s, %(type)s, %(created_at)s, ledger_now()) ON CONFLICT DO NOTHING RETURNING event_id
"""
_RECEIVED = "SELECT signalled_at, named_prices FROM stripe_event WHERE event_id = %(event)s"
_OWNERS = """
SELECT DISTINCT account_id FROM customer WHERE customer_id = ANY(%(customers)s) AND account_id IS NOT NULL
"""
_QUALIFIED = """
SELECT referral.*, amount_paid FROM referral JOIN paid_period ON invoice_id = qualifying_invoice
WHERE qualifying_invoice = ANY(%(invoices)s) AND stage IN ('in_review', 'credited', 'settled') ORDER BY referral_id
"""


def _renamed(fact: Fact, names: Mapping[str, str]) -> Fact:
    """The fact, with the customer called as it is called here; a link needs the id, for what outlives the account."""
    match fact:
        case SubscriptionEnded():
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


async def _lock_payments(transaction: Transaction, links: Iterable[Fact], invoices: Iterable[str]) -> set[str]:
    """Lock the payments that facts are about, whatever of them is known, and name all invoices that they are about.

    A refund, the payment that it is of, and the invoice that the payment is for may come in three transactions at once:
    whoever comes last has to see the other two.
    """
    told = [fact for fact in links if isinstance(fact, InvoicePaymentSeen | RefundSeen | DisputeSeen)]
    intents = {fact.payment_intent_id for fact in told if fact.payment_intent_id is not None}
    charges = {fact.charge_id for fact in told if fact.charge_id is not None}
    *_, paid = await database.at_once(
        transaction,
        *(database.locking(f"payment {name}") for name in sorted(intents | charges)),
        (_PAID_BY, {"intents": sorted(intents), "charges": sorted(charges)}),
    )
    return {*invoices, *(row.invoice_id for row in paid)}


def _locking_invoices(invoices: Collection[str]) -> tuple[Question, ...]:
    """Locks invoices, and then says who paid them: what gives a payment back need not name its customer."""
    if not invoices:
        return ()
    who = ("SELECT customer_id FROM paid_period WHERE invoice_id = ANY(%(all)s)", {"all": sorted(invoices)})
    return *(database.locking(f"invoice {name}") for name in sorted(invoices)), who


_PAID_BY = """
SELECT invoice_id FROM invoice_payment
WHERE payment_intent_id = ANY(%(intents)s::text[]) OR charge_id = ANY(%(charges)s::text[])
"""


async def _owners(transaction: Transaction, customers: Iterable[str]) -> list[str]:
    """The accounts that these customers belong to."""
    [owners] = await database.at_once(transaction, (_OWNERS, {"customers": sorted(set(customers))}))
    return [row.account_id for row in owners]


async def _reversed(transaction: Transaction, qualified: Sequence[Any]) -> tuple[ReversedReferral, ...]:
    """Mark the referrals that an event's invoices brought, or would bring, a bonus, where it is in doubt (rule 20)."""
    known = await periods.reversals_of(transaction, [row.qualifying_invoice for row in qualified])
    found: list[ReversedReferral] = []
    for row in qualified:
        doubts = known.get(row.qualifying_invoice, periods.Reversals()).doubts(row.amount_paid)
        marked = [doubt for doubt in doubts if await reviews.mark(transaction, row, doubt)]
        parties = (row.referrer_id, row.referee_id, Stage(row.stage))
        found += [ReversedReferral(row.referral_id, doubt, *parties) for doubt in marked]
    return tuple(found)


async def news_of_account(transaction: Transaction, account_id: str, plans: Plans) -> News:
    """Move what rule 9 moves for an account, and say which runs must hear (rules 9 and 14).

    It was just reported, and may have had a customer linked to it: in this transaction, which has both locked.
    """
    return await _news(transaction, [account_id], plans)


async def news_of_accounts(
    transaction: Transaction, account_ids: Iterable[str], plans: Plans, *, again: bool = False
) -> News:
    """The same for several accounts, which are locked here: no customer is locked after them.

    Args:
        transaction: within which.
        account_ids: whose.
        plans: the plans on sale.
        again: facts were stored before, and nobody knows who was told: every open grant is named, moved or not.
    """
    return await _news(transaction, account_ids, plans, again)


async def _news(transaction: Transaction, account_ids: Iterable[str], plans: Plans, again: bool = False) -> News:
    wanted = sorted(set(account_ids))
    if not wanted:
        return News()
    whose = _whose(accounts=wanted)
    found = await database.at_once(transaction, *_looks(whose))
    return await _understood(transaction, whose, found, plans, again=again)


def _whose(*, accounts: Iterable[str] = (), customers: Iterable[str] = ()) -> dict[str, Any]:
    """Some accounts, and those of some customers: the values of what locks them, and looks what concerns them."""
    awaiting = [str(stage) for stage in Stage if stage.awaits_payment]
    return {"accounts": sorted(accounts), "customers": sorted(customers), "awaiting": awaiting}


def _looks(whose: Mapping[str, Any]) -> tuple[Question, ...]:
    """Locks accounts, and asks which are meant; then what concerns them, as :func:`asking_news` does."""
    return (_LOCK, whose), (_MEANT, whose), (_WITH_BONUSES, whose), (_AWAITING, whose)


async def _understood(
    transaction: Transaction, whose: Mapping[str, Any], found: Sequence[Sequence[Any]], plans: Plans, *, again: bool
) -> News:
    """The news, from what :func:`_looks` found."""
    locked, meant, news = found[0], found[1], found[2:]
    missing = {row.account_id for row in meant} - {row.account_id for row in locked}
    if missing and await accounts.lock(transaction, missing):
        # One was made meanwhile, and is locked only now.
        news = (await database.at_once(transaction, *_looks(whose)))[2:]
    return await news_found(transaction, news, plans, again=again)


def asking_news(account_ids: Iterable[str]) -> tuple[Question, Question]:
    """Asks which of some accounts, which are locked, have bonuses that can be used, and which referrals wait."""
    whose = _whose(accounts=account_ids)
    return (_WITH_BONUSES, whose), (_AWAITING, whose)


async def news_found(
    transaction: Transaction, answers: Sequence[Sequence[Any]], plans: Plans, *, again: bool = False
) -> News:
    """The news of accounts, as :func:`news_of_accounts` tells them, by what :func:`asking_news` asked here."""
    with_bonuses, awaiting = answers
    moved: list[MovedGrant] = []
    for row in with_bonuses:
        moved += await grants.move_expiries(transaction, row.account_id, plans, again=again)
    return News(tuple(referrals.open_referral(row) for row in awaiting if row.can_go_on), tuple(moved))


_WHOSE = """(%(accounts)s::text[]
    || ARRAY(SELECT account_id FROM customer WHERE customer_id = ANY(%(customers)s::text[]) AND account_id IS NOT NULL))
"""
_LOCK = f"""
SELECT account_id FROM account WHERE account_id = ANY({_WHOSE}) ORDER BY account_id FOR NO KEY UPDATE
"""  # noqa: S608 - of our own words
_MEANT = f"SELECT DISTINCT account_id FROM unnest({_WHOSE}) account_id"  # noqa: S608 - of our own words
_WITH_BONUSES = f"""
SELECT DISTINCT account_id FROM grant_lot JOIN account USING (account_id)
WHERE account_id = ANY({_WHOSE}) AND expired_at IS NULL AND voided_at IS NULL AND expires_at > ledger_now()
ORDER BY account_id
"""  # noqa: S608 - of our own words
# A customer that was another account's ends the referral (rule 10), and its payments are that account's.
_AWAITING = f"""
SELECT *, EXISTS (SELECT FROM paid_period JOIN customer USING (customer_id)
        WHERE account_id = referee_id AND amount_paid > 0)
    OR {accounts.known_before("customer", "referee_id")} AS can_go_on
FROM referral WHERE referee_id = ANY({_WHOSE}) AND stage = ANY(%(awaiting)s) ORDER BY referee_id
"""  # noqa: S608 - of our own words


async def mark_signalled(transaction: Transaction, event_id: str, *, last: bool = False) -> None:
    """Say that every referral that an event concerns has been told; `last`: and commit, nothing is asked afterwards."""
    await database.at_once(transaction, (_SIGNALLED, {"event": event_id}), commit=last)


_SIGNALLED = """
UPDATE stripe_event SET signalled_at = ledger_now() WHERE event_id = %(event)s AND signalled_at IS NULL
"""


async def _remember_named(transaction: Transaction, event_id: str, named: Iterable[str]) -> None:
    """Write down that an event named these prices: the same event again has to tell of them again."""
    await transaction.execute(
        stripe_event.update().where(stripe_event.c.event_id == event_id).values(named_prices=sorted(named))
    )


async def _apply(transaction: Transaction, fact: Fact, plans: Plans, hashes: IdentityHash) -> set[str]:
    """Store a fact; gives the price whose plan became known by it, or became another one."""
    match fact:
        case PeriodPaid() | PeriodSeen():
            pass  # stored together with what is asked next: `_storing`
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


def _storing(fact: Fact, event: EventFacts, hashes: IdentityHash) -> Question | None:
    """Stores a fact that nothing else follows from in the same event, unless the event was told; none for the others.

    The event is on record, and the fact's customer is locked.
    """
    match fact:
        case PeriodPaid():
            told = {"lines": Jsonb(_lines(fact)), "told_at": event.created_at}
            return _PERIOD_PAID, _fields(fact, event, hashes) | told
        case PeriodSeen():
            return _PERIOD_SEEN, _fields(fact, event, hashes)
        case _:
            return None


def _fields(fact: PeriodPaid | PeriodSeen, event: EventFacts, hashes: IdentityHash) -> dict[str, Any]:
    # Not `asdict`, which copies what is in it as well.
    values = {field.name: getattr(fact, field.name) for field in fields(fact)}
    return {**values, "event": event.event_id, "names": [fact.customer_id, hashes.pseudonym(fact.customer_id)]}


def _lines(fact: PeriodPaid) -> list[dict[str, Any]]:
    return [
        {
            "price": line.price_id,
            "product": line.product_id,
            "start": line.start.isoformat(),
            "end": line.end.isoformat(),
            "proration": line.proration,
            "amount": line.amount,
        }
        for line in fact.lines
    ]


# The customer as it is called here: by its id, or by its pseudonym where its account was erased (rule 23).
_NAME = "(SELECT customer_id FROM customer WHERE customer_id = ANY(%(names)s))"
_UNTOLD = "EXISTS (SELECT FROM stripe_event WHERE event_id = %(event)s AND signalled_at IS NULL)"
_PERIOD_PAID = f"""
INSERT INTO paid_period AS known (invoice_id, customer_id, subscription_id, paid_at, amount_paid, total, lines, told_at)
SELECT %(invoice_id)s, {_NAME}, %(subscription_id)s, %(paid_at)s, %(amount_paid)s, %(total)s, %(lines)s, %(told_at)s
WHERE {_UNTOLD} {_SAME_INVOICE}
"""
_PERIOD_SEEN = f"""
INSERT INTO seen_period AS known (subscription_id, price_id, starts_at, ends_at, customer_id)
SELECT %(subscription_id)s, %(price_id)s, %(start)s, %(end)s, {_NAME} WHERE {_UNTOLD} {_SAME_PERIOD}
"""


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
