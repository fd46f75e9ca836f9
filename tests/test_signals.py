"""Signs that a referral may not be what it seems: which are looked at, and what each finds (rule 19)."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from ledger import accounts, signals
from ledger.accounts import Profile
from ledger.signals import CardCheckNeededError
from ledger.tables import referral
from program.doubts import Doubt, Finding
from program.signals import Handling, SignalPolicy, Signs, findings_of
from tests.support import HASHES, Books, Member, until

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
INVOICE = "in_of_the_friend"

NOTHING = Signs(same_card=False, same_device=False, disposable_email=False, signups_that_day=1)
EVERYTHING = Signs(same_card=True, same_device=True, disposable_email=True, signups_that_day=1_000_000)

HOME = HASHES.device("203.0.113.7", "Firefox")
OFFICE = HASHES.device("203.0.113.8", "Firefox")


# The rules alone


def test_rule_19_all_signs_are_off_unless_turned_on() -> None:
    assert findings_of(EVERYTHING, SignalPolicy()) == ()


@pytest.mark.parametrize("handling", [Handling.MARK, Handling.HOLD])
@pytest.mark.parametrize(
    ("sign", "shown", "doubt"),
    [
        ("same_device", replace(NOTHING, same_device=True), Doubt.SAME_DEVICE),
        ("disposable_email", replace(NOTHING, disposable_email=True), Doubt.DISPOSABLE_EMAIL),
        ("many_signups", replace(NOTHING, signups_that_day=21), Doubt.MANY_SIGNUPS),
    ],
)
def test_rule_19_each_sign_marks_or_holds_by_itself_as_configured(
    sign: str, shown: Signs, doubt: Doubt, handling: Handling
) -> None:
    turned_on: dict[str, Any] = {sign: handling}
    policy = SignalPolicy(**turned_on)

    assert findings_of(NOTHING, policy) == ()
    assert findings_of(shown, policy) == (Finding(doubt, hold=handling is Handling.HOLD),)
    assert findings_of(EVERYTHING, policy) == (Finding(doubt, hold=handling is Handling.HOLD),)


def test_rule_19_the_same_card_always_holds() -> None:
    policy = SignalPolicy(same_card=True)

    assert findings_of(NOTHING, policy) == ()
    assert findings_of(EVERYTHING, policy) == (Finding(Doubt.SAME_CARD, hold=True),)


def test_rule_19_so_many_signups_a_day_are_nothing_special_and_one_more_is() -> None:
    policy = SignalPolicy(many_signups=Handling.HOLD, signups_a_day=3)

    assert findings_of(replace(NOTHING, signups_that_day=3), policy) == ()
    assert findings_of(replace(NOTHING, signups_that_day=4), policy) == (Finding(Doubt.MANY_SIGNUPS, hold=True),)


# The ledger


class Signals:
    """What the ledger finds of signs."""

    def __init__(self, books: Books) -> None:
        self.books = books

    async def found(self, referral_id: str, policy: SignalPolicy, invoice: str = INVOICE) -> tuple[Finding, ...]:
        """What is found of a referral, right before its credit."""
        async with self.books.database.transaction() as transaction:
            row = (await transaction.execute(select(referral).where(referral.c.referral_id == referral_id))).one()
            return await signals.findings(transaction, row, invoice, policy)

    async def saw(self, member: Member, device: bytes, *, at_signup: bool = False) -> None:
        """Report what an account was seen with."""
        async with self.books.database.transaction() as transaction:
            await accounts.lock(transaction, [member.account_id])
            await signals.saw_device(transaction, member.account_id, device, at_signup=at_signup)

    async def checked(self, referral_id: str, invoice: str, *, same_card: bool) -> None:
        """Store what Stripe said of a card."""
        async with self.books.database.transaction() as transaction:
            await signals.record_card_check(transaction, referral_id, invoice, same_card=same_card)

    async def address(self, member: Member, *, disposable: bool) -> None:
        """Report an account whose e-mail address is, or is not, a throw-away one."""
        profile = Profile(member.account_id, member.email, member.created_at, disposable_email=disposable)
        async with self.books.database.transaction() as transaction:
            await accounts.put(transaction, profile, HASHES)


@pytest.fixture
def ledger(books: Books) -> Signals:
    return Signals(books)


async def referred(books: Books) -> tuple[Member, Member, str]:
    """A referrer, a friend whose signup is attributed, and the referral."""
    rita, fred = await books.subscriber(), await books.someone()
    return rita, fred, await books.sign_up(rita, fred)


DEVICE = SignalPolicy(same_device=Handling.MARK)
SAME_DEVICE = (Finding(Doubt.SAME_DEVICE, hold=False),)


async def test_rule_19_a_signup_from_where_the_referrer_was_seen_is_found(books: Books, ledger: Signals) -> None:
    rita, fred, referral_id = await referred(books)
    await ledger.saw(rita, OFFICE)
    await ledger.saw(fred, HOME, at_signup=True)
    assert await ledger.found(referral_id, DEVICE) == ()

    await ledger.saw(rita, HOME)

    assert await ledger.found(referral_id, DEVICE) == SAME_DEVICE, "also where the referrer came there later"
    assert await ledger.found(referral_id, SignalPolicy()) == (), "not where nobody looks at it"


async def test_rule_19_the_friend_is_compared_by_the_signup_alone(books: Books, ledger: Signals) -> None:
    rita, fred, referral_id = await referred(books)
    await ledger.saw(rita, HOME)
    await ledger.saw(fred, OFFICE, at_signup=True)
    await ledger.saw(fred, HOME)

    assert await ledger.found(referral_id, DEVICE) == (), "a visit at the referrer's, weeks later, is no sign"


async def test_rule_19_the_referrer_s_own_signup_counts_too(books: Books, ledger: Signals) -> None:
    rita, fred, referral_id = await referred(books)
    await ledger.saw(rita, HOME, at_signup=True)
    await ledger.saw(fred, HOME, at_signup=True)

    assert await ledger.found(referral_id, DEVICE) == SAME_DEVICE


async def test_rule_19_somebody_else_s_device_is_no_sign(books: Books, ledger: Signals) -> None:
    _, fred, referral_id = await referred(books)
    stranger = await books.subscriber("stranger")
    await ledger.saw(stranger, HOME)
    await ledger.saw(fred, HOME, at_signup=True)

    assert await ledger.found(referral_id, DEVICE) == ()


async def test_rule_23_of_an_erased_account_no_sign_is_left(books: Books, ledger: Signals) -> None:
    rita, fred, referral_id = await referred(books)
    for member in (rita, fred):
        await ledger.saw(member, HOME, at_signup=True)
        await ledger.saw(member, HOME)
        await ledger.address(member, disposable=True)

    async with books.database.transaction() as transaction:
        await signals.forget(transaction, fred.account_id)

    left = await books.rows("SELECT account_id, count(*) FROM device GROUP BY account_id")
    assert left == [(rita.account_id, 2)], "nobody else's is forgotten"
    known = await books.rows("SELECT account_id FROM account WHERE disposable_email")
    assert known == [(rita.account_id,)]
    everything = SignalPolicy(same_device=Handling.HOLD, disposable_email=Handling.HOLD)
    assert await ledger.found(referral_id, everything) == ()


async def test_rule_19_a_throw_away_address_of_the_friend_is_found(books: Books, ledger: Signals) -> None:
    rita, fred, referral_id = await referred(books)
    policy = SignalPolicy(disposable_email=Handling.HOLD)
    await ledger.address(rita, disposable=True)
    assert await ledger.found(referral_id, policy) == (), "the referrer's own is nobody's business"

    await ledger.address(fred, disposable=True)

    assert await ledger.found(referral_id, policy) == (Finding(Doubt.DISPOSABLE_EMAIL, hold=True),)
    assert await ledger.found(referral_id, SignalPolicy()) == ()


async def test_rule_19_signups_are_counted_over_the_day_up_to_each(books: Books, ledger: Signals) -> None:
    rita = await books.subscriber(length=timedelta(days=60))
    rob = await books.subscriber("rob", length=timedelta(days=60))
    policy = SignalPolicy(many_signups=Handling.MARK, signups_a_day=2)
    many = (Finding(Doubt.MANY_SIGNUPS, hold=False),)

    first = await books.sign_up(rita, await books.someone())
    books.clock.advance(DAY - HOUR)
    for _ in range(3):
        await books.sign_up(rob, await books.someone())
    second = await books.sign_up(rita, await books.someone())
    third = await books.sign_up(rita, await books.someone())
    books.clock.advance(2 * HOUR)
    fourth = await books.sign_up(rita, await books.someone())
    books.clock.advance(DAY)
    fifth = await books.sign_up(rita, await books.someone())

    found = [await ledger.found(each, policy) for each in (first, second, third, fourth, fifth)]
    assert found == [(), (), many, many, ()]
    assert await ledger.found(third, replace(policy, signups_a_day=3)) == ()
    assert await ledger.found(third, SignalPolicy()) == ()


async def test_rule_19_a_refused_signup_is_not_counted(books: Books, ledger: Signals) -> None:
    rita = await books.subscriber()
    for _ in range(3):
        await books.sign_up(rita, await books.someone(age=DAY))
    counted = await books.sign_up(rita, await books.someone())

    assert await ledger.found(counted, SignalPolicy(many_signups=Handling.HOLD, signups_a_day=1)) == ()


async def test_rule_19_counting_stays_quick_on_a_link_with_many_signups(
    books: Books, ledger: Signals, owner: psycopg.Connection
) -> None:
    _, _, referral_id = await referred(books)
    owner.execute(
        """
        INSERT INTO account (account_id, created_at)
            SELECT 'crowd-' || number, now() FROM generate_series(1, 20000) number;
        INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until, lapses_at,
                stage, signed_up_at)
            SELECT 'crowd-' || number, mine.code, 'link', mine.referrer_id, 'crowd-' || number, mine.clicked_at,
                mine.signup_until, mine.lapses_at, 'signed_up',
                mine.signed_up_at - CASE WHEN number % 2 = 0 THEN interval '1 hour' ELSE number * interval '1 day' END
            FROM referral mine, generate_series(1, 20000) number
            """  # the half of them within the day
    )
    owner.execute("ANALYZE")
    policy = SignalPolicy(many_signups=Handling.HOLD, signups_a_day=20)

    async def rows_read() -> int:
        counted = owner.execute(
            """SELECT idx_tup_read + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'referral')
                FROM pg_stat_user_indexes WHERE indexrelname = 'referral_by_code'"""
        ).fetchone()
        assert counted is not None
        return int(counted[0])

    owner.execute("SELECT pg_stat_force_next_flush()")
    before = await rows_read()
    assert await ledger.found(referral_id, policy) == (Finding(Doubt.MANY_SIGNUPS, hold=True),)
    await books.database.close()
    read = await until(rows_read, lambda read: read > before)
    assert read - before <= 100, "no more rows than it takes to know that they are too many"


async def test_rule_19_nobody_is_credited_before_the_card_is_compared(books: Books, ledger: Signals) -> None:
    rita, _, referral_id = await referred(books)
    policy = SignalPolicy(same_card=True)
    await books.put(replace(rita, customer_id="cus_another_of_rita"), linked=True)

    with pytest.raises(CardCheckNeededError) as needed:
        await ledger.found(referral_id, policy)

    assert (needed.value.referral_id, needed.value.invoice) == (referral_id, INVOICE)
    assert needed.value.customers == tuple(sorted([rita.customer_id, "cus_another_of_rita"]))
    await ledger.checked(referral_id, INVOICE, same_card=False)
    assert await ledger.found(referral_id, policy) == ()
    with pytest.raises(CardCheckNeededError, match="in_another"):
        await ledger.found(referral_id, policy, "in_another")
    assert await ledger.found(referral_id, SignalPolicy(), "in_another") == (), "without a key nothing is compared"


async def test_rule_19_what_stripe_said_of_a_card_stays(books: Books, ledger: Signals) -> None:
    _, _, referral_id = await referred(books)
    await ledger.checked(referral_id, INVOICE, same_card=True)
    await ledger.checked(referral_id, INVOICE, same_card=False)

    found = await ledger.found(referral_id, SignalPolicy(same_card=True))
    assert found == (Finding(Doubt.SAME_CARD, hold=True),)
