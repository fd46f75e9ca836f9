"""Accounts: what the backend says of them, their standing by Stripe's facts, and their link (rules 1 and 13)."""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from ledger import database, periods
from ledger.database import Question, Transaction
from ledger.tables import account, customer, ledger_now, referral_link, terms_acceptance
from program.cycles import Period, cycle_at, is_paid_subscriber
from program.identity import IdentityHash, is_pseudonym
from program.plans import Plans

_CODE_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"
_CODE_LENGTH = 10


class NotAPaidSubscriberError(Exception):
    """Only a paid subscriber is given a link (rule 1)."""


class UnknownAccountError(Exception):
    """No such account has been reported, or it has been erased."""


class AccountErasedError(Exception):
    """The account has been erased; nothing more can be stored of it (rule 23)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the backend says of an account. Nothing of it is kept in the clear but the first name.

    Args:
        account_id: the backend's id of it.
        email: as the person wrote it; only its keyed hash is kept.
        created_at: when the account was made, UTC.
        customer_id: its Stripe customer, where it has one already.
        first_name: for the link's preview; none leaves what is known.
        show_first_name: whether the member agreed to that; none leaves what is known.
        disposable_email: whether the e-mail address is at a provider of throw-away ones (rule 19).
    """

    account_id: str
    email: str
    created_at: datetime
    customer_id: str | None = None
    first_name: str | None = None
    show_first_name: bool | None = None
    disposable_email: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How an account stands with its plan now: whether it counts as paid, which plan, and the paid period it is in."""

    paid: bool
    plan: str | None
    cycle: Period | None


@dataclass(frozen=True, slots=True)
class Link:
    """A referrer's link (rule 1).

    Args:
        code: what its address ends in.
        account_id: whose it is.
        erased: whether that account has been erased.
        first_name: the referrer's, where the member agreed that it is shown with the link; never logged (rule 24).
    """

    code: str
    account_id: str
    erased: bool = False
    first_name: str | None = field(default=None, repr=False)


async def lock(transaction: Transaction, account_ids: Iterable[str]) -> dict[str, bool]:
    """Lock accounts, in the order of their ids, so that nobody else changes them or their minutes meanwhile.

    An account that is not there yet has no row to lock, so its name is: whoever makes it meanwhile takes turns with
    whoever found it missing.

    Returns:
        Of each account that exists, whether it has been erased.
    """
    wanted = sorted(set(account_ids))
    if not wanted:
        return {}
    [rows] = await database.at_once(transaction, (_LOCK, {"accounts": wanted}))
    found = {row.account_id: row.erased_at is not None for row in rows}
    missing = [account_id for account_id in wanted if account_id not in found]
    if missing:
        *_, rows = await database.at_once(transaction, *_locking_whether_there_or_not(missing))
        found |= {row.account_id: row.erased_at is not None for row in rows}
    return found


def _locking_whether_there_or_not(account_ids: Sequence[str]) -> tuple[Question, ...]:
    """Locks accounts, in the given order, by their names where they are missing; the last one gives those there are."""
    names = ((_LOCK_MISSING, {"name": f"account {each}", "account": each}) for each in account_ids)
    return *names, (_LOCK, {"accounts": list(account_ids)})


# Not the strongest lock: a row that refers to an account (a reservation names its referrer) need not wait for it,
# and so nobody waits for one account while holding another out of order.
_LOCK = """
SELECT account_id, erased_at FROM account WHERE account_id = ANY(%(accounts)s) ORDER BY account_id FOR NO KEY UPDATE
"""
_LOCK_MISSING = """
SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, 0))
WHERE NOT EXISTS (SELECT FROM account WHERE account_id = %(account)s)
"""


async def lock_customer(transaction: Transaction, customer_id: str, hashes: IdentityHash) -> str:
    """Lock a Stripe customer, known so far or not, before its account is locked: payments, links, erasing take turns.

    Returns:
        What it is called here: its id, or its pseudonym where its account was erased (rule 23).
    """
    return (await lock_customers(transaction, [customer_id], hashes))[customer_id]


async def lock_customers(transaction: Transaction, customer_ids: Iterable[str], hashes: IdentityHash) -> dict[str, str]:
    """The same for several, in the order of their ids; what each is called here, by its id."""
    wanted = sorted(set(customer_ids))
    answers = await database.at_once(transaction, *locking_customers(wanted, hashes)) if wanted else []
    return {each: str(answers[3 * place + 2][0].customer_id) for place, each in enumerate(wanted)}


def locking_customers(customer_ids: Collection[str], hashes: IdentityHash) -> list[Question]:
    """Locks customers, known so far or not, in the order of their ids."""
    return [question for each in sorted(customer_ids) for question in _locking_customer(each, hashes.pseudonym(each))]


def _locking_customer(customer_id: str, pseudonym: str) -> tuple[Question, ...]:
    names = {"names": [customer_id, pseudonym]}
    return (
        # By its pseudonym, which never changes: whoever waits for an erasing finds the customer under its new name.
        database.locking(f"customer {pseudonym}"),
        (
            """INSERT INTO customer (customer_id)
            SELECT %(id)s WHERE NOT EXISTS (SELECT FROM customer WHERE customer_id = ANY(%(names)s))""",
            {"id": customer_id, **names},
        ),
        ("SELECT customer_id FROM customer WHERE customer_id = ANY(%(names)s) FOR UPDATE", names),
    )


async def link_customer(
    transaction: Transaction, customer_id: str, account_id: str, hashes: IdentityHash, *, reported: bool = False
) -> None:
    """Say that a Stripe customer, by its id, belongs to an account. The first account linked keeps it (rule 18).

    Args:
        transaction: within which.
        customer_id: the customer.
        account_id: the account.
        hashes: for what outlives the account.
        reported: the backend itself says so. That outweighs a name that no account was ever reported under, which
            anybody can put into a checkout's address.
    """
    await database.at_once(transaction, *_linking(customer_id, account_id, hashes, reported=reported))


def _linking(customer_id: str, account_id: str, hashes: IdentityHash, *, reported: bool) -> tuple[Question, ...]:
    pseudonym = hashes.pseudonym(customer_id)
    link = {"names": [customer_id, pseudonym], "account": account_id, "reported": reported}
    return (
        *_locking_customer(customer_id, pseudonym),
        (_LINK_CUSTOMER, link),
        _remembering("customer", hashes.customer(customer_id), account_id),
    )


_LINK_CUSTOMER = """
UPDATE customer SET account_id = %(account)s, linked_at = ledger_now()
WHERE customer_id = ANY(%(names)s) AND (account_id IS NULL
    OR %(reported)s AND NOT EXISTS (SELECT FROM account WHERE account.account_id = customer.account_id))
"""


async def customers_of(transaction: Transaction, account_id: str) -> set[str]:
    """The Stripe customers of an account; under their pseudonyms where it was erased."""
    found = await transaction.execute(select(customer.c.customer_id).where(customer.c.account_id == account_id))
    return set(found.scalars())


async def hide_customers(transaction: Transaction, account_id: str, hashes: IdentityHash) -> None:
    """Let the customers of an erased account, which are locked, be known by their pseudonyms alone (rule 23)."""
    for name in sorted(await customers_of(transaction, account_id)):
        if not is_pseudonym(name):
            # Everything that Stripe told of the customer follows: its rows refer to this one.
            await transaction.execute(
                customer.update().where(customer.c.customer_id == name).values(customer_id=hashes.pseudonym(name))
            )


async def put(transaction: Transaction, profile: Profile, hashes: IdentityHash) -> None:
    """Store what the backend says of an account; saying it again changes nothing.

    The earliest `created_at` ever given stays, and a customer once linked is never unlinked.

    Raises:
        AccountErasedError: the account has been erased.
        ValueError: the e-mail is none.
    """
    refuse_erased(profile.account_id, await database.at_once(transaction, *putting(profile, hashes)))


def putting(profile: Profile, hashes: IdentityHash) -> tuple[Question, ...]:
    """Stores what the backend says of an account, which is locked from then on; see :func:`refuse_erased`.

    Raises:
        ValueError: the e-mail is none.
    """
    email_hash = hashes.email(profile.email)
    customer_id, account_id = profile.customer_id, profile.account_id
    linking = _linking(customer_id, account_id, hashes, reported=True) if customer_id is not None else ()
    values = {
        "account": account_id,
        "email_hash": email_hash,
        "created_at": profile.created_at,
        "first_name": profile.first_name,
        "show_first_name": profile.show_first_name,
        "disposable_email": profile.disposable_email,
    }
    return (
        *linking,
        # Of two accounts with one e-mail, one is there before the other (rule 10): they take turns.
        database.locking(email_hash.hex()),
        *_locking_whether_there_or_not([account_id]),
        _remembering("email", email_hash, account_id),
        (_PUT, values),
    )


def refuse_erased(account_id: str, answers: Sequence[Sequence[Any]]) -> None:
    """See to it that an account was stored: where it was not, the transaction has to be undone.

    Args:
        account_id: which.
        answers: what the questions of :func:`putting` gave.

    Raises:
        AccountErasedError: the account has been erased.
    """
    if not answers[-1]:
        raise AccountErasedError(account_id)


_PUT = """
INSERT INTO account AS known (account_id, email_hash, created_at, first_name, show_first_name, disposable_email)
VALUES (%(account)s, %(email_hash)s, %(created_at)s, %(first_name)s, coalesce(%(show_first_name)s, FALSE),
    %(disposable_email)s)
ON CONFLICT (account_id) DO UPDATE SET email_hash = excluded.email_hash,
    disposable_email = excluded.disposable_email, created_at = least(known.created_at, excluded.created_at),
    first_name = coalesce(excluded.first_name, known.first_name),
    show_first_name = coalesce(%(show_first_name)s, known.show_first_name)
WHERE known.erased_at IS NULL RETURNING account_id
"""


async def forget(transaction: Transaction, account_id: str) -> None:
    """Forget who an account was; it is locked, and has no customer in the clear any more (rule 23)."""
    await transaction.execute(
        account.update()
        .where(account.c.account_id == account_id)
        .values(email_hash=None, first_name=None, show_first_name=False, erased_at=ledger_now())
    )


def _remembering(kind: str, digest: bytes, account_id: str) -> Question:
    """Remembers an e-mail or a customer of an account, for good (rule 10)."""
    return _REMEMBER, {"kind": kind, "hash": digest, "account": account_id}


_REMEMBER = """
INSERT INTO identity (kind, hash, account_id, first_seen_at)
VALUES (%(kind)s, %(hash)s, %(account)s, ledger_now()) ON CONFLICT DO NOTHING
"""


def known_before(kind: str, account_id: str) -> str:
    """Whether an e-mail (`email`) or a Stripe customer (`customer`) of an account was another's before it (rule 10).

    A name that no account was ever reported under does not count.

    Args:
        kind: which of the two.
        account_id: how the account is called in the statement that asks: a column, or a placeholder.

    Returns:
        A condition, in SQL.
    """
    return f"""EXISTS (
        SELECT FROM identity own JOIN identity other USING (kind, hash)
        WHERE kind = '{kind}' AND own.account_id = {account_id} AND other.account_id <> own.account_id
            AND EXISTS (SELECT FROM account WHERE account.account_id = other.account_id)
            AND (other.first_seen_at, other.account_id) < (own.first_seen_at, own.account_id))"""  # noqa: S608


def share_identity(kind: str, first: str, second: str) -> str:
    """Whether two accounts have, or had, one e-mail (`email`) or Stripe customer (`customer`) (rule 18).

    Arguments and answer are those of :func:`known_before`.
    """
    return f"""EXISTS (
        SELECT FROM identity one JOIN identity two USING (kind, hash)
        WHERE kind = '{kind}' AND one.account_id = {first} AND two.account_id = {second})"""


async def standing_seen(transaction: Transaction, account_id: str, plans: Plans) -> Standing:
    """How an account that exists stands with its plan now (rule 1); one that is not locked may soon stand otherwise."""
    answers = await database.at_once(transaction, *asking_how_it_stands(account_id))
    return await standing_found(transaction, answers, account_id, plans)


def asking_how_it_stands(account_id: str) -> tuple[Question, Question]:
    """Asks what :func:`standing_found` needs: what Stripe told of an account, and the time."""
    return (periods.TOLD, {"accounts": [account_id], "referral": None}), ("SELECT ledger_now() AS now", {})


async def standing_found(
    transaction: Transaction, answers: Sequence[Sequence[Any]], account_id: str, plans: Plans
) -> Standing:
    """How an account stands, by what :func:`asking_how_it_stands` asked in this transaction."""
    rows, [clock] = answers
    known = (await periods.understood(transaction, rows, plans)).periods(account_id, plans)
    cycle = cycle_at(clock.now, known.periods)
    paid = is_paid_subscriber(clock.now, known.periods, known.ended)
    return Standing(paid, known.plan_in(cycle) if cycle else None, cycle)


async def give_link(transaction: Transaction, account_id: str, terms_version: str, plans: Plans) -> Link:
    """The account's own link, always the same; making it takes a paid subscriber (rule 1). Records the terms (rule 13).

    Raises:
        UnknownAccountError: there is no such account.
        NotAPaidSubscriberError: it has no link yet, and is no paid subscriber.
    """
    if (await lock(transaction, [account_id])).get(account_id, True):
        raise UnknownAccountError(account_id)
    link = await link_of(transaction, account_id)
    if link is None:
        if not (await standing_seen(transaction, account_id, plans)).paid:
            raise NotAPaidSubscriberError(account_id)
        link = await _make_link(transaction, account_id)
    await transaction.execute(
        insert(terms_acceptance)
        .values(account_id=account_id, terms_version=terms_version, accepted_at=ledger_now())
        .on_conflict_do_nothing()
    )
    return link


async def _make_link(transaction: Transaction, account_id: str) -> Link:
    while True:
        code = "".join(secrets.choice(_CODE_ALPHABET) for _ in range(_CODE_LENGTH))
        made = await transaction.execute(
            insert(referral_link)
            .values(code=code, account_id=account_id, created_at=ledger_now())
            .on_conflict_do_nothing(index_elements=[referral_link.c.code])
            .returning(referral_link.c.code)
        )
        if made.first() is not None:
            return Link(code, account_id)


async def link_of(transaction: Transaction, account_id: str) -> Link | None:
    """The link of an account; none if it has not taken one."""
    [rows] = await database.at_once(transaction, (_LINK_OF, {"account": account_id}))
    return link_found(rows)


async def link_with_code(transaction: Transaction, code: str) -> Link | None:
    """The link of that code, however it is written; none if there is none."""
    [rows] = await database.at_once(transaction, asking_link_with(code))
    return link_found(rows)


async def link_followed(statement: Transaction, code: str, channel: str, day: date) -> Link | None:
    """The same, with one click on it counted, unless its account is erased: what every visitor waits for, in one go.

    Args:
        statement: a connection on which several statements that are sent together are a transaction.
        code: the link's, however it is written.
        channel: by which way the link was shared.
        day: of the click, UTC.

    Raises:
        DBAPIError: the click cannot be counted; among other reasons because somebody has held a lock for a second.
    """
    values = {"code": plain_code(code), "channel": channel, "day": day}
    _, rows = await database.at_once(statement, (_PATIENCE, {}), (_LINK_FOLLOWED, values))
    return link_found(rows)


def asking_link_with(code: str) -> Question:
    """Asks for the link of that code, however it is written, for :func:`link_found`."""
    return _LINK_WITH_CODE, {"code": plain_code(code)}


def link_found(rows: Sequence[Any]) -> Link | None:
    """The link that was asked for; none if there is none."""
    return Link(rows[0].code, rows[0].account_id, rows[0].erased_at is not None, rows[0].first_name) if rows else None


def plain_code(written: str) -> str:
    """A link's code as it is kept, however a person wrote it."""
    return written.strip().replace("-", "").lower()


_LINK = """
SELECT code, account_id, erased_at, CASE WHEN show_first_name THEN first_name END AS first_name
FROM referral_link JOIN account USING (account_id)
"""
_LINK_OF = f"{_LINK} WHERE account_id = %(account)s"
_LINK_WITH_CODE = f"{_LINK} WHERE code = %(code)s"
_PATIENCE = "SELECT set_config('lock_timeout', '1s', true)"
_LINK_FOLLOWED = f"""
WITH link AS ({_LINK_WITH_CODE}), counted AS (
    INSERT INTO click_count AS known (code, channel, day, clicks)
    SELECT code, %(channel)s, %(day)s::date, 1 FROM link WHERE erased_at IS NULL
    ON CONFLICT (code, channel, day) DO UPDATE SET clicks = known.clicks + 1
)
SELECT * FROM link
"""  # noqa: S608 - of our own words
