"""Erasing an account: what identifies the person goes, the ledger's numbers stay (rule 23)."""

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import sql

from ledger import accounts, reports, signals, usage
from ledger.accounts import AccountErasedError, NotAPaidSubscriberError, UnknownAccountError
from program.eligibility import Refusal
from program.identity import normalise_email
from program.referral import Role, Stage
from tests.http_support import Http, Starter, person
from tests.stripe_events import Event, checkout_completed, invoice_paid
from tests.support import HASHES, MONTH, Books, Member, refunded


def traces(owner: psycopg.Connection, *values: str) -> list[str]:
    """In which columns of which tables one of these values still is, as text or as bytes; every table is searched."""
    tables = owner.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() "
        "ORDER BY table_name, ordinal_position"
    ).fetchall()
    assert len({table for table, _ in tables}) > 15
    found = []
    for table, column in tables:
        query = sql.SQL("SELECT count(*) FROM {table} WHERE {column}::text ILIKE ANY(%s)").format(
            table=sql.Identifier(table), column=sql.Identifier(column)
        )
        sought = [f"%{text}%" for value in values for text in (value, value.encode().hex())]
        [(rows,)] = owner.execute(query, [sought]).fetchall()
        if rows:
            found.append(f"{table}.{column}")
    return found


def personal(member: Member) -> tuple[str, ...]:
    return (member.email, normalise_email(member.email), member.customer_id, "Frederica")


async def put_with_name(books: Books, member: Member) -> None:
    async with books.database.transaction() as transaction:
        profile = accounts.Profile(
            member.account_id, member.email, member.created_at, member.customer_id, "Frederica", show_first_name=True
        )
        await accounts.put(transaction, profile, HASHES)
        await signals.saw_device(transaction, member.account_id, HASHES.device("203.0.113.9", "Firefox"))


async def test_rule_23_nothing_personal_is_left_in_any_table(books: Books, owner: psycopg.Connection) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.credited(referrer, friend)
    await put_with_name(books, friend)
    await books.report(*refunded(await books.pay(friend), 100, await books.clock.now()))
    # The search finds what is there.
    known = traces(owner, *personal(friend))
    assert {"account.first_name", "customer.customer_id", "paid_period.customer_id"} <= set(known)

    await books.erase(friend)

    assert traces(owner, *personal(friend)) == []
    assert owner.execute("SELECT count(*) FROM device").fetchone() == (0,)
    # The numbers stay.
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.plan, shown.bonus_minutes) == (Stage.CREDITED, "pro", 90)
    assert owner.execute("SELECT count(*) FROM paid_period WHERE customer_id LIKE 'erased:%'").fetchone() == (2,)


async def test_rule_23_what_stripe_tells_later_is_kept_under_the_pseudonym(
    books: Books, owner: psycopg.Connection
) -> None:
    friend = await books.someone()
    await books.put(friend, linked=True)
    payment = await books.pay(friend)
    await books.erase(friend)
    books.clock.advance(MONTH)
    later = await books.pay(friend)
    await books.report(
        *refunded(payment, 100, await books.clock.now()), checkout_completed(friend.customer_id, "other")
    )
    assert traces(owner, friend.customer_id) == []
    assert owner.execute("SELECT count(*) FROM paid_period").fetchone() == (2,)
    # Told once more, it is the same fact.
    await books.report(*(event | {"id": f"{event['id']}_again"} for event in [*payment, *later]))
    assert traces(owner, friend.customer_id) == []
    assert owner.execute("SELECT count(*) FROM paid_period").fetchone() == (2,)


async def test_rule_23_a_checkout_that_names_an_erased_account_leaves_no_customer_in_the_clear(
    books: Books, owner: psycopg.Connection
) -> None:
    friend = await books.someone()
    await books.put(friend)
    await books.erase(friend)
    await books.report(checkout_completed(friend.customer_id, friend.account_id))
    assert traces(owner, friend.customer_id) == []
    now = await books.clock.now()
    await books.report(invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH))
    assert traces(owner, friend.customer_id) == []


async def test_rules_12_and_23_unused_minutes_are_voided_and_the_referrer_keeps_everything(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.credited(referrer, friend)
    async with books.database.transaction() as transaction:
        await usage.spend(transaction, friend.account_id, "call", 40)

    [side] = await books.erase(friend)

    assert side.role is Role.REFEREE
    rows = await books.rows(
        "SELECT remaining, voided_at IS NOT NULL, (SELECT array_agg(delta ORDER BY entry_id) FROM entry "
        "WHERE entry.grant_id = grant_lot.grant_id) FROM grant_lot WHERE account_id = :id",
        id=friend.account_id,
    )
    assert rows == [(0, True, [90, -40, -50])]
    [(earned,)] = await books.rows("SELECT minutes_earned FROM account WHERE account_id = :id", id=friend.account_id)
    assert earned == 40
    [lot] = await books.lots(referrer)
    assert (lot.state, lot.remaining) == ("active", 90)
    seen = await books.summary(referrer)
    assert (seen.invited, seen.subscribed, seen.bonus_minutes_earned) == (1, 1, 90)


@pytest.mark.parametrize("held", [False, True])
async def test_rule_23_a_friend_erased_before_the_credit_is_refused(books: Books, held: bool) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await (books.held if held else books.sign_up)(referrer, friend)
    assert (await books.summary(referrer)).invited == 1

    [side] = await books.erase(friend)

    assert (side.referral_id, side.role) == (referral_id, Role.REFEREE)
    shown = await books.referral(referral_id)
    assert (shown.stage, shown.reason) == (Stage.REFUSED, Refusal.ACCOUNT_ERASED.words)
    assert (await books.summary(referrer)).invited == 0
    assert (await books.credit(referral_id)).stage is Stage.REFUSED


async def test_rule_23_a_friend_erased_before_the_signup_was_looked_at_is_refused(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    reservation = await books.reserve(await books.click(referrer), referrer, friend)
    assert [side.referral_id for side in await books.erase(friend)] == [reservation.referral_id]
    assert (await books.referral(reservation.referral_id)).stage is Stage.REFUSED
    result = await books.attribute(reservation.referral_id)
    assert (result.stage, result.reason) == (Stage.REFUSED, Refusal.ACCOUNT_ERASED.words)


async def test_rule_23_an_erased_referrer_s_open_referral_credits_both_and_the_erased_side_cannot_spend(
    books: Books,
) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    referral_id = await books.sign_up(referrer, friend)
    await books.erase(referrer)
    await books.put(friend, linked=True)
    await books.pay(friend)
    assert (await books.credit(referral_id)).stage is Stage.CREDITED
    [lot] = await books.lots(friend)
    assert lot.minutes == 90
    with pytest.raises(UnknownAccountError):
        async with books.database.transaction() as transaction:
            await usage.spend(transaction, referrer.account_id, "call", 1)
    with pytest.raises((UnknownAccountError, NotAPaidSubscriberError, AccountErasedError)):
        await books.link(referrer)


async def test_rules_10_and_23_whoever_comes_back_is_no_new_signup(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.put(friend, linked=True)
    await books.erase(friend)
    same_email, same_customer = await books.someone(), await books.someone()
    same_email.email, same_customer.customer_id = friend.email.upper(), friend.customer_id
    for again, refusal in ((same_email, Refusal.KNOWN_EMAIL), (same_customer, Refusal.KNOWN_CUSTOMER)):
        await books.put(again, linked=again is same_customer)
        referral_id = await books.sign_up(referrer, again)
        assert (await books.referral(referral_id)).reason == refusal.words


async def test_rule_23_said_again_it_changes_nothing_and_names_the_same_runs(books: Books) -> None:
    referrer, friend = await books.subscriber(), await books.someone()
    await books.credited(referrer, friend)
    first = await books.erase(friend)
    journal = await books.rows("SELECT * FROM entry ORDER BY entry_id")
    assert await books.erase(friend) == first != []
    assert await books.rows("SELECT * FROM entry ORDER BY entry_id") == journal
    with pytest.raises(AccountErasedError):
        await books.put(friend)


async def test_rule_23_what_is_reported_of_an_erased_account_leaves_nothing_behind(
    books: Books, owner: psycopg.Connection
) -> None:
    referrer, member = await books.subscriber(), await books.someone()
    click = await books.click(referrer)
    await books.put(member)
    await books.erase(member)
    before = {table: await books.rows(f"SELECT * FROM {table}") for table in ("account", "identity", "customer")}  # noqa: S608
    said = accounts.Profile(member.account_id, "new@example.com", member.created_at, "cus_new", "Frederica")
    device = HASHES.device("203.0.113.9", "Firefox")
    with pytest.raises(AccountErasedError):
        async with books.database.transaction() as transaction:
            await reports.account(transaction, said, HASHES, books.plans, device=device)
    with pytest.raises(AccountErasedError):
        async with books.database.transaction() as transaction:
            await reports.signup(transaction, said, click, referrer.account_id, HASHES, device=device)
    assert {table: await books.rows(f"SELECT * FROM {table}") for table in before} == before  # noqa: S608
    assert traces(owner, "cus_new", "new@example.com", "Frederica") == []
    assert await books.rows("SELECT 1 FROM referral") == await books.rows("SELECT 1 FROM device") == []


async def test_rule_23_nobody_can_erase_whom_nobody_knows(books: Books) -> None:
    with pytest.raises(UnknownAccountError):
        await books.erase(await books.someone())


async def test_rule_23_erasing_takes_turns_with_everything_that_concerns_the_account(
    books: Books, owner: psycopg.Connection
) -> None:
    referrer = await books.subscriber()
    for number in range(6):
        friend = await books.someone()
        referral_id = await books.sign_up(referrer, friend)
        await books.put(friend, linked=number % 2 == 0)
        now = await books.clock.now()
        paid = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH)

        async def use(friend: Member = friend) -> int:
            async with books.database.transaction() as transaction:
                return (await usage.spend(transaction, friend.account_id, "call", 30)).from_bonus

        async def tell(event: Event) -> Any:
            return await books.report(event)

        outcomes = await asyncio.gather(
            tell(paid),
            tell(checkout_completed(friend.customer_id, friend.account_id)),
            books.credit(referral_id),
            books.put(friend, linked=True),
            books.erase(friend),
            books.credit(referral_id),
            use(),
            books.expire(referral_id),
            return_exceptions=True,
        )
        unexpected = [
            outcome
            for outcome in outcomes
            if isinstance(outcome, Exception) and not isinstance(outcome, AccountErasedError | UnknownAccountError)
        ]
        assert unexpected == []
        assert traces(owner, *personal(friend)) == []
        stage = (await books.credit(referral_id)).stage
        assert stage in (Stage.REFUSED, Stage.CREDITED)
        lots = await books.rows(
            "SELECT role, remaining, voided_at IS NOT NULL FROM grant_lot WHERE referral_id = :id ORDER BY role",
            id=referral_id,
        )
        assert lots == ([] if stage is Stage.REFUSED else [("referee", 0, True), ("referrer", 90, False)])


async def test_rule_23_a_signup_told_again_after_the_erasing_gets_its_answer_and_a_new_one_is_refused(
    starter: Starter,
) -> None:
    code = await starter.link(await starter.subscriber())
    fred = person("fred")
    referral_id = await starter.signed_up(fred, referral_code=code)
    assert (await starter.call("DELETE", f"/v1/accounts/{fred.account_id}")).status_code == 204
    assert await starter.signed_up(fred, referral_code=code) == referral_id
    visit = await starter.click(code)
    assert (await starter.sign_up(fred, referral_token=visit.token)).status_code == 410


async def test_rule_23_over_http_it_may_be_repeated_and_the_rest_answers_404_or_410(starter: Starter) -> None:
    http: Http = starter
    rita = await http.subscriber()
    code = await http.link(rita)
    path = f"/v1/accounts/{rita.account_id}"
    assert (await http.call("DELETE", path, key=None)).status_code == 401
    for _ in range(2):
        answer = await http.call("DELETE", path)
        assert (answer.status_code, answer.content) == (204, b"")
    unknown = await http.call("DELETE", "/v1/accounts/nobody-knows")
    assert (unknown.status_code, unknown.json()["status"]) == (404, 404)
    for rest in ("referral-summary", "bonus-minutes", "referrals"):
        assert (await http.call("GET", f"{path}/{rest}")).status_code == 404
    assert (await http.call("POST", f"{path}/usage", {"usage_id": "call", "minutes": 1})).status_code == 404
    assert (await http.put(rita)).status_code == 410
    assert (
        await http.send("GET", f"/r/{code}", headers={"User-Agent": "Mozilla/5.0 Firefox/140.0"})
    ).status_code == 404
    friend = person("fred")
    assert (await http.sign_up(friend, referral_code=code)).status_code == 422
