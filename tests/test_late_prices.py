"""A price that is named only after it was sold: whoever it concerns hears of it, once, whoever came last."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from sqlalchemy import text

from billing.events import reduce_event
from ledger import facts, late_prices, referrals
from ledger.database import Transaction
from ledger.facts import NamedPrice, News
from ledger.grants import MovedGrant
from program.referral import Role, Stage
from program.signals import SignalPolicy
from tests.stripe_events import Event, checkout_completed, invoice_paid, line, price, subscription
from tests.support import HASHES, MONTH, Books, Clock, Member, until

DAY = timedelta(days=1)
NEW = "price_2027"
HOLD = text("SELECT 1 FROM account WHERE account_id = :id FOR UPDATE")


async def sold(books: Books, member: Member, *, key: str | None = None, second: bool = False) -> list[Event]:
    """A subscription to the new price, seen and paid for from now on; `second`, where the member has another one."""
    now = await books.clock.now()
    name = f"{member.subscription_id}_{'second' if second else 'first'}"
    seen = subscription(member.customer_id, name, now, now + MONTH)
    seen["data"]["object"]["items"]["data"][0]["price"] |= {"id": NEW, "lookup_key": key, "product": "prod_2027"}
    paying = line("", now, now + MONTH, 2900)
    paying["pricing"]["price_details"] = {"price": NEW, "product": "prod_2027"}
    return [seen, invoice_paid(member.customer_id, name, now, now + MONTH, lines=[paying])]


async def named(books: Books, key: str | None = "pro") -> Event:
    return price(NEW, key, product="prod_2027", created=await books.clock.now())


async def waiting_friend(books: Books) -> tuple[str, Member]:
    """A friend who has paid for what nobody knows to be a plan."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    await books.report(*await sold(books, friend))
    result = await books.credit(referral_id)
    assert result.stage is Stage.SIGNED_UP
    assert NEW in (result.needs_attention or "")
    return referral_id, friend


async def credited_friend(books: Books) -> tuple[str, Member]:
    """A friend whose bonus ends with its cycle, in 26 days; two of them are over."""
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend, length=26 * DAY)
    assert isinstance(books.clock, Clock)
    books.clock.advance(2 * DAY)
    return referral_id, friend


async def longest(books: Books, referral_id: str) -> MovedGrant:
    """Where rule 9 puts the friend's bonus by a month that began two days after the credit."""
    credited_at = (await books.referral(referral_id)).credited_at
    assert credited_at is not None
    return MovedGrant(referral_id, Role.REFEREE, credited_at + 31 * DAY)


@pytest.mark.parametrize("by", ["updated", "created", "another's subscription"])
async def test_rule_14_a_price_named_late_wakes_the_referrals_that_wait_for_it(books: Books, by: str) -> None:
    referral_id, _ = await waiting_friend(books)
    if by == "another's subscription":
        event = (await sold(books, await books.subscriber("other"), key="pro"))[0]
    else:
        event = price(NEW, "pro", type_=by, created=await books.clock.now())
    (news,) = await books.report(event)
    assert [waiting.referral_id for waiting in news.payments] == [referral_id]
    assert (await books.credit(referral_id)).minutes == 90


async def test_rule_9_a_price_named_late_moves_the_grants_whose_period_it_makes_count(books: Books) -> None:
    referral_id, friend = await credited_friend(books)
    await books.report(*await sold(books, friend, second=True))
    before = (await books.referral(referral_id)).expires_at
    (news,) = await books.report(await named(books))
    expected = await longest(books, referral_id)
    assert news.moved == (expected,)
    after = (await books.referral(referral_id)).expires_at
    assert after == {**before, Role.REFEREE: expected.expires_at}
    assert before[Role.REFEREE] < expected.expires_at


@pytest.mark.parametrize("known_by", [0, 1], ids=["seen", "paid"])
async def test_rule_9_a_period_on_it_that_was_only_seen_or_only_paid_for_counts(books: Books, known_by: int) -> None:
    referral_id, friend = await credited_friend(books)
    await books.report((await sold(books, friend, second=True))[known_by])
    (news,) = await books.report(await named(books))
    assert news.moved == (await longest(books, referral_id),)


async def test_a_price_that_sells_the_same_plan_as_before_is_no_news(books: Books) -> None:
    """Every event of a subscription says what its price is like."""
    await waiting_friend(books)
    first = await books.apply(await named(books))
    assert first.named == (NamedPrice(NEW),)
    for event in [await named(books), await named(books, None), *await sold(books, await books.someone(), key="pro")]:
        assert (await books.apply(event)).named == ()
    assert isinstance(books.clock, Clock)
    books.clock.advance(DAY)
    assert (await books.apply(await named(books, "power"))).named == (NamedPrice(NEW),)
    books.clock.advance(DAY)
    assert (await books.apply(await named(books, "a key of no plan"))).named == ()


async def test_an_event_that_names_a_price_tells_of_it_until_it_is_marked_as_signalled(books: Books) -> None:
    referral_id, friend = await credited_friend(books)
    await books.report(*await sold(books, friend, second=True))
    event = await named(books)
    first = await books.apply(event)
    moved = [page.moved async for page in late_prices.news(books.database.transaction, first, books.plans)]
    # Moved, and then the program stops before anybody is told.
    again = await books.apply(event)
    assert again.named == (NamedPrice(NEW, again=True),)
    assert [page.moved async for page in late_prices.news(books.database.transaction, again, books.plans)] == moved
    (last,) = await books.report(event)
    assert last.moved == (await longest(books, referral_id),)
    assert await books.apply(event) == News()


async def test_a_price_with_many_customers_is_walked_through_in_pages_and_only_where_something_waits(
    books: Books,
) -> None:
    waiting = sorted([(await waiting_friend(books))[0] for _ in range(3)])
    idle = await books.someone("idle")
    await books.put(idle, linked=True)
    await books.report(*await sold(books, idle))
    news = await books.apply(await named(books))
    async with books.database.transaction() as transaction:
        # Nobody who has nothing to gain is waited for.
        await transaction.execute(HOLD, {"id": idle.account_id})
        async with asyncio.timeout(20):
            pages = [page async for page in late_prices.news(books.database.transaction, news, books.plans, at_once=2)]
    assert [len(page.payments) for page in pages] == [2, 1]
    assert sorted(each.referral_id for page in pages for each in page.payments) == waiting


# Whoever comes last signals

Step = Callable[[Transaction], Awaitable[object]]


async def told_while(books: Books, step: Step) -> News:
    """Name the price while a step that knows it without a plan is not committed yet; gives what that brings."""
    event = await named(books)
    async with AsyncExitStack() as stack:
        transaction = await stack.enter_async_context(books.database.transaction())
        await step(transaction)
        naming = asyncio.create_task(books.report(event))
        await until(lambda: waiting_or_done(books, naming), bool)
        await stack.aclose()
    async with asyncio.timeout(20):
        (news,) = await naming
    return news


async def waiting_or_done(books: Books, task: asyncio.Task[object]) -> bool:
    return task.done() or bool((await books.rows("SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0])


@pytest.mark.parametrize("known_by", [0, 1], ids=["seen", "paid"])
async def test_rule_9_a_price_named_while_a_period_on_it_is_just_told_moves_the_grant(
    books: Books, known_by: int
) -> None:
    referral_id, friend = await credited_friend(books)
    reduced = reduce_event((await sold(books, friend, second=True))[known_by])
    news = await told_while(books, lambda transaction: facts.apply_event(transaction, reduced, books.plans, HASHES))
    assert news.moved == (await longest(books, referral_id),)


async def test_rule_9_a_price_named_while_its_customer_is_just_linked_moves_the_grant(books: Books) -> None:
    referral_id, friend = await credited_friend(books)
    other = await books.someone("unlinked")
    await books.report(*await sold(books, other))
    reduced = reduce_event(checkout_completed(other.customer_id, friend.account_id))
    news = await told_while(books, lambda transaction: facts.apply_event(transaction, reduced, books.plans, HASHES))
    assert news.moved == (await longest(books, referral_id),)


async def test_rule_9_a_price_named_while_the_credit_is_made_moves_the_grant(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.put(friend, linked=True)
    await books.pay(friend, length=26 * DAY)
    assert isinstance(books.clock, Clock)
    books.clock.advance(2 * DAY)
    await books.report(*await sold(books, friend, second=True))
    news = await told_while(
        books, lambda transaction: referrals.credit_both(transaction, referral_id, books.plans, SignalPolicy())
    )
    (moved,) = news.moved
    assert (moved.referral_id, moved.role) == (referral_id, Role.REFEREE)
    assert moved.expires_at > (await books.referral(referral_id)).expires_at[Role.REFERRER]


async def test_rule_9_a_price_just_named_counts_for_a_period_that_is_told_after_it(books: Books) -> None:
    referral_id, friend = await credited_friend(books)
    await books.apply(await named(books))
    moved = [each for news in await books.report(*await sold(books, friend, second=True)) for each in news.moved]
    assert moved == [await longest(books, referral_id)]
