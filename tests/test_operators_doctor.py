"""`referrals doctor`, where everything is there and something does not go on."""

from datetime import timedelta

import psycopg

from ledger import condition, outbox, webhook_watch
from ledger.database import Database
from ledger.webhook_watch import WebhookWatch
from starter.signatures import WRITTEN_EVERY_SECONDS, Signatures
from tests.http_support import STRIPE_SECRETS, Starter, paid, person
from tests.operator_support import Operator, operator_of
from tests.support import DatabaseUrls, World, until

WRONG = "whsec_of_another_endpoint"


async def seen(database: Database) -> WebhookWatch:
    async with database.transaction() as transaction:
        return await webhook_watch.seen(transaction)


async def words(operator: Operator, what: str) -> dict[str, str]:
    """What the doctor says of something, by how that is: all runs of the namespace, those of other tests too."""
    said = await operator.says("doctor", "--json")
    found: dict[str, str] = {}
    for each in said.document["examined"]:
        if each["what"] == what:
            found[each["verdict"]] = f"{found.get(each['verdict'], '')}\n{each['words']}".strip()
    return found


async def test_events_whose_signatures_do_not_fit_are_a_problem_until_one_fits(
    starter: Starter, database: Database, database_urls: DatabaseUrls, owner: psycopg.Connection
) -> None:
    operator = operator_of(starter.world, database_urls)
    member = await starter.account(person("rita"))
    (event, other) = paid(member, member.created_at, member.created_at + timedelta(days=30))
    before = await words(operator, "webhooks")
    assert (await starter.stripe(event, WRONG)).status_code == 400
    nobodys = await starter.send("POST", "/stripe/webhooks", content=b"{}")
    wrong = await words(operator, "webhooks")
    counted = (await seen(database)).refused
    assert (await starter.stripe(event, STRIPE_SECRETS[0])).status_code == 200
    right = await words(operator, "webhooks")
    assert (await starter.stripe(other, WRONG)).status_code == 400
    rubbish = await words(operator, "webhooks")
    owner.execute("UPDATE webhook_watch SET verified_at = verified_at - interval '2 hours'")
    rotated = await words(operator, "webhooks")

    assert before == {}
    assert (nobodys.status_code, counted) == (400, 1), "what bears no signature was not sent by Stripe"
    assert wrong["problem"].startswith("no signature ever fitted, and at least 1 did not since, the last ")
    assert right["ok"].startswith("a signature last fitted ")
    assert rubbish["note"].startswith("a signature last fitted ")
    assert rotated["problem"].startswith("a signature last fitted 2 hours ago, and at least 1 did not since")


async def test_rubbish_does_not_set_the_pace_of_the_database(database: Database) -> None:
    now = 0.0
    signatures = Signatures(database, lambda: now)
    for _ in range(5):
        await signatures.did_not_fit()
    first = await seen(database)
    now = WRITTEN_EVERY_SECONDS
    await signatures.did_not_fit()
    later = await seen(database)
    await signatures.fitted()
    fitted = await seen(database)

    assert (first.refused, first.verified_at) == (1, None)
    assert later.refused == 6, "what came meanwhile is written down together"
    assert fitted.refused == 0
    assert fitted.verified_at is not None
    assert fitted.refused_at == later.refused_at


async def test_a_referral_whose_run_is_gone_and_messages_that_were_given_up_are_named(
    live_world: World, database_urls: DatabaseUrls, owner: psycopg.Connection
) -> None:
    operator = operator_of(live_world, database_urls)
    lost, _, friend = await live_world.waiting_friend()
    await live_world.handle(lost).terminate("by mistake")
    await live_world.pay(friend)
    owner.execute("UPDATE paid_period SET paid_at = paid_at - interval '1 minute'")
    async with live_world.database.transaction() as transaction:
        (message, *_) = await outbox.undelivered(transaction, 10)
        await outbox.give_up(transaction, message, "crm", "no answer")
    paid = f"{lost}: the friend has paid and nobody is credited; its run is over"
    amiss = await until(lambda: words(operator, "runs"), lambda found: paid in found.get("problem", ""))
    deliveries = await words(operator, "deliveries")

    assert paid in amiss["problem"]
    assert deliveries["warning"].startswith("crm has not taken 1 message in the end")


async def test_a_customer_of_two_accounts_is_told_of_until_one_is_erased(
    live_idle_world: World, database: Database
) -> None:
    async def told() -> list[list[str]]:
        async with database.transaction() as transaction:
            return await condition.one_customer(transaction)

    first = await live_idle_world.member("first")
    await live_idle_world.member("alone")
    alone = await told()
    second = await live_idle_world.member("second", customer=first.customer_id)
    both = await told()
    await live_idle_world.erase(second)

    assert (alone, both) == ([], [[first.account_id, second.account_id]])
    assert await told() == []


async def test_redelivering_wants_a_message_or_all_that_wait(
    live_idle_world: World, database_urls: DatabaseUrls
) -> None:
    operator = operator_of(live_idle_world, database_urls)
    neither, both = await operator.says("redeliver"), await operator.says("redeliver", "msg_1", "--waiting")

    assert [neither.status, both.status] == [1, 1]
    assert neither.err == both.err == "referrals: give either a message or --waiting\n"
