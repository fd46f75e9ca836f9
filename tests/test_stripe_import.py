"""`referrals import`: what Stripe knew before the program did becomes facts, once, whatever interrupts it."""

import json
from datetime import timedelta
from typing import Any

import pytest

from billing.api import StripeApi, StripeUnreachableError
from cli.stripe_import import Imported, StripeImport
from ledger import accounts, reconciliation
from tests.stripe_events import invoice_paid, invoice_payment_paid, price, subscription, unique
from tests.stripe_server import API_KEY, StripeServer
from tests.support import HASHES, MONTH, Books, DatabaseUrls, Member, command

FACTS = ("paid_period", "seen_period", "subscription", "invoice_payment")


async def of_old(server: StripeServer, books: Books, number: int, **options: Any) -> list[Member]:
    """People who subscribed before anybody told us; Stripe has them, and what they paid."""
    members = [await books.someone(age=timedelta(days=400)) for _ in range(number)]
    start = await books.clock.now() - MONTH / 2
    for member in members:
        bill = invoice_paid(member.customer_id, member.subscription_id, start, start + MONTH)["data"]["object"]
        paid = invoice_payment_paid(bill["id"], start)["data"]["object"]
        bought = subscription(member.customer_id, member.subscription_id, start, start + MONTH, **options)
        server.add(bought["data"]["object"], bill, paid, created=start)
    return members


async def imported(books: Books, api: StripeApi, *, anew: bool = False, dry_run: bool = False) -> Imported:
    return await StripeImport(books.database, api, books.plans, HASHES, print, dry_run=dry_run).run(anew=anew)


async def known(books: Books) -> dict[str, list[tuple[Any, ...]]]:
    """All facts, in one order."""
    return {table: await books.rows(f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in FACTS}  # noqa: S608


async def stopped_at(books: Books) -> str | None:
    async with books.database.transaction() as transaction:
        return await reconciliation.position(transaction, "import")


async def test_rule_1_a_member_of_old_has_a_link_once_imported_and_reported(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    [member] = await of_old(server, books, 1)
    await books.put(member)
    with pytest.raises(accounts.NotAPaidSubscriberError):
        await books.link(member)

    await imported(books, api)

    # Nobody has said yet whose customer it is.
    with pytest.raises(accounts.NotAPaidSubscriberError):
        await books.link(member)
    await books.put(member, linked=True)
    assert (await books.link(member)).account_id == member.account_id
    assert (await books.cycle(member)).paid


async def test_rule_10_a_friend_who_had_paid_before_the_import_is_no_new_signup(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    [friend] = await of_old(server, books, 1)
    await imported(books, api)
    referral_id = await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)

    assert (await books.credit(referral_id)).stage.value == "refused"


async def test_an_import_that_is_interrupted_anywhere_and_goes_on_ends_in_the_facts_of_one_that_is_not(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    await of_old(server, books, 103)
    interrupted: list[str | None] = []
    # Each import comes a little further than the last one before Stripe goes away.
    while True:
        asked = len(server.asked)

        async def go_away(_: object, since: int = asked) -> None:
            if len(server.asked) - since == 2:
                server.failures.append(500)

        server.before = go_away
        try:
            await imported(books, api)
            break
        except StripeUnreachableError:
            interrupted.append(await stopped_at(books))
    server.before = None
    after = await known(books)

    assert {str(place).partition("/")[0] for place in interrupted} == {"subscriptions", "invoices", "invoice_payments"}
    assert len(interrupted) == 6
    assert [len(after[table]) for table in FACTS] == [103, 103, 0, 103]
    assert await stopped_at(books) is None
    assert await books.rows("SELECT count(*) FROM stripe_event WHERE signalled_at IS NULL") == [(0,)]
    again = await imported(books, api)
    assert (again.read, again.new) == (309, 0)
    assert await known(books) == after


async def test_an_import_that_is_repeated_later_finds_what_has_changed_since(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    [member, _] = await of_old(server, books, 2)
    await imported(books, api)
    now = await books.clock.now()
    renewed = subscription(
        member.customer_id, member.subscription_id, now, now + MONTH, status="canceled", ended_at=now
    )
    server.add(renewed["data"]["object"])

    again = await imported(books, api)

    assert again.new == 1
    assert len(await books.rows("SELECT 1 FROM seen_period")) == 3
    assert await books.rows("SELECT subscription_id FROM subscription") == [(member.subscription_id,)]


async def test_rule_14_a_price_is_sold_by_the_key_that_it_has_now(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    now = await books.clock.now()
    await books.report(price("price_of_old", "starter", created=now - MONTH))
    server.add(price("price_of_old", "pro", created=now)["data"]["object"], created=now - 10 * MONTH)

    await imported(books, api)

    assert await books.rows("SELECT lookup_key FROM price WHERE price_id = 'price_of_old'") == [("pro",)]


async def test_a_dry_run_counts_and_stores_nothing(server: StripeServer, books: Books, api: StripeApi) -> None:
    await of_old(server, books, 101)

    counted = await imported(books, api, dry_run=True)

    assert (counted.read, counted.new) == (303, 303)
    assert not any((await known(books)).values())
    assert await books.rows("SELECT count(*) FROM stripe_event") == [(0,)]
    assert await stopped_at(books) is None
    assert (await imported(books, api)).new == 303


async def test_what_cannot_be_read_is_named_and_holds_nothing_up(
    server: StripeServer, books: Books, api: StripeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    await of_old(server, books, 2)
    server.add({"id": "sub_broken", "object": "subscription", "status": "active", "customer_email": "hush@example.com"})

    done = await imported(books, api)

    assert (done.new, done.unreadable) == (6, 1)
    out = capsys.readouterr().out
    assert "sub_broken cannot be read" in out
    assert "hush" not in out


async def test_referrals_that_wait_for_what_is_found_are_left_to_reconciliation(
    server: StripeServer, books: Books, api: StripeApi
) -> None:
    friend = await books.someone()
    await books.sign_up(await books.subscriber(), friend)
    await books.put(friend, linked=True)
    now = await books.clock.now()
    bill = invoice_paid(friend.customer_id, friend.subscription_id, now, now + MONTH)["data"]["object"]
    server.add(bill)

    done = await imported(books, api)

    assert done.to_tell == 1
    async with books.database.transaction() as transaction:
        untold = await reconciliation.untold(transaction, timedelta(0), 10)
    assert [(one.event_id, one.type) for one in untold] == [(bill["id"], "invoice.paid")]


async def test_an_invoice_is_read_to_its_last_line(server: StripeServer, books: Books, api: StripeApi) -> None:
    now = await books.clock.now()
    bill = invoice_paid("cus_long", "sub_long", now, now + MONTH)
    lines = bill["data"]["object"]["lines"]["data"]
    lines += [{**lines[0], "id": unique("il")} for _ in range(24)]
    server.add(bill["data"]["object"])

    await imported(books, api)

    assert await books.rows("SELECT jsonb_array_length(lines) FROM paid_period") == [(25,)]


async def test_the_command_says_how_far_it_is_and_what_keeps_it(
    server: StripeServer, books: Books, database_urls: DatabaseUrls
) -> None:
    await of_old(server, books, 3)
    environment = {
        "REFERRALS_DATABASE_URL": database_urls.app,
        "REFERRALS_STRIPE_API_KEY": API_KEY,
        "REFERRALS_IDENTITY_HASH_KEY": "a key that only tests use",
        "REFERRALS_STRIPE_API_BASE": server.base,
    }

    refused = await command("import", **environment | {"REFERRALS_STRIPE_API_KEY": "sk_test_of_somebody_else"})
    assert (refused[0], refused[2]) == (1, "referrals: /v1/prices: HTTP 401\n")
    status, out, err = await command("import", **environment)
    assert (status, err) == (0, "")
    assert out.splitlines()[1] == "subscriptions: 3 read, 3 new"
    assert out.splitlines()[-1] == "9 read, 9 new, all stored"
    assert len(await books.rows("SELECT 1 FROM paid_period")) == 3
    again = await command("import", "--json", **environment)
    assert json.loads(again[1]) == {"read": 9, "new": 0, "unreadable": 0, "to_tell": 0, "stored": True}
    lacking = await command("import")
    assert lacking[0] == 1
    assert "REFERRALS_STRIPE_API_KEY: Field required" in lacking[2]
