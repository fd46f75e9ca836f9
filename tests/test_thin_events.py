"""Events that do not hold all that they tell: thin ones, old ones, long invoices. The rest is asked of Stripe."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
from pydantic import SecretStr
from sqlalchemy import select

from ledger.tables import paid_period, seen_period, stripe_event
from tests.http_support import STRIPE_SECRETS, Starter, assert_problem, paid, person
from tests.stripe_events import Event, as_before_basil, invoice_paid, line, signed, unique
from tests.stripe_server import API_KEY, StripeServer
from tests.support import MONTH, Member


@pytest.fixture
async def asking(starter: Starter, server: StripeServer) -> AsyncIterator[Starter]:
    """The starter with a key for Stripe's API."""
    async with starter.another(stripe_api_key=SecretStr(API_KEY), stripe_api_base=server.base) as asking:
        yield asking


def thin(server: StripeServer, snapshot: Event) -> Event:
    """The thin form of an event, both of which Stripe knows then."""
    server.happen(snapshot)
    about = snapshot["data"]["object"]
    notification = {
        "id": unique("evt_thin"),
        "object": "v2.core.event",
        "type": f"v1.{snapshot['type']}",
        "livemode": False,
        "created": datetime.fromtimestamp(snapshot["created"], UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "context": None,
        "reason": None,
        "related_object": {
            "id": about["id"],
            "type": about["object"],
            "url": f"/v1/{about['object']}s/{about['id']}",
        },
    }
    server.add(notification | {"snapshot_event": snapshot["id"]})
    body, headers = signed(notification, STRIPE_SECRETS[0])
    # The shape is what the package reads as such a notification, and its signature what the package verifies.
    read = stripe.StripeClient(API_KEY).parse_event_notification(body, headers["Stripe-Signature"], STRIPE_SECRETS[0])
    assert isinstance(read, stripe.v2.core.EventNotification)
    assert read.type == notification["type"]
    return notification


def paid_now(member: Member) -> list[Event]:
    now = datetime.now(UTC)
    return paid(member, now, now + MONTH)


async def facts(starter: Starter) -> list[Any]:
    async with starter.world.database.transaction() as transaction:
        return [
            [tuple(row) for row in await transaction.execute(select(table).order_by(table.columns[0]))]
            for table in (paid_period, seen_period)
        ]


async def events(starter: Starter) -> list[str]:
    async with starter.world.database.transaction() as transaction:
        return list((await transaction.execute(select(stripe_event.c.event_id))).scalars())


async def test_rule_3_a_payment_that_only_a_thin_event_tells_of_credits_both(
    asking: Starter, server: StripeServer
) -> None:
    async with asking.world.worker():
        rita, fred = await asking.subscriber(), person("fred")
        visit = await asking.click(await asking.link(rita))
        await asking.signed_up(fred, referral_token=visit.token)
        await asking.account(fred)

        for snapshot in paid_now(fred):
            answer = await asking.stripe(thin(server, snapshot))
            assert (answer.status_code, answer.json()) == (200, {"handled": True})

        shown = await asking.reaches(visit.referral_id, "credited")
    assert (shown["plan"], shown["bonus_minutes"]) == ("pro", 90)


async def test_both_forms_of_an_event_in_any_order_and_number_are_one(asking: Starter, server: StripeServer) -> None:
    one, other = person("rita"), person("rolf")
    first, second = (paid_now(member)[1] for member in (one, other))
    forms = [thin(server, first), first, first], [second, thin(server, second), thin(server, second)]

    for order in forms:
        answers = [(await asking.stripe(form)).json() for form in order]
        assert answers == [{"handled": True}] * 3
        known = await facts(asking)
        assert (await asking.stripe(order[0])).status_code == 200
        assert await facts(asking) == known

    assert sorted(await events(asking)) == sorted([first["id"], second["id"]])


async def test_a_thin_event_says_what_its_snapshot_says(
    starter: Starter, asking: Starter, server: StripeServer
) -> None:
    rita = person("rita")
    snapshots = paid_now(rita)
    for snapshot in snapshots:
        assert (await starter.stripe(snapshot)).json() == {"handled": True}
    told_by_snapshots = await facts(starter)
    async with asking.world.database.transaction() as transaction:
        await transaction.execute(stripe_event.update().values(signalled_at=None))

    for snapshot in snapshots:
        assert (await asking.stripe(thin(server, snapshot))).json() == {"handled": True}

    assert told_by_snapshots[0]
    assert await facts(asking) == told_by_snapshots


async def test_a_thin_event_without_a_key_is_refused_so_that_stripe_shows_it(
    starter: Starter, server: StripeServer
) -> None:
    notification = thin(server, paid_now(person("rita"))[1])

    assert_problem(await starter.stripe(notification), 503, "stripe-api-key-missing")

    async with starter.another(stripe_api_key=SecretStr(API_KEY), stripe_api_base=server.base) as mended:
        assert (await mended.stripe(notification)).json() == {"handled": True}


async def test_a_thin_event_of_another_type_is_not_ours_and_nothing_is_asked(
    starter: Starter, asking: Starter, server: StripeServer
) -> None:
    notification = thin(server, paid_now(person("rita"))[1])
    for type_ in ("v1.customer.updated", "v2.core.account.updated", "invoice.paid"):
        for here in (starter, asking):
            answer = await here.stripe(notification | {"type": type_})
            assert (answer.status_code, answer.json()) == (200, {"handled": False})

    assert server.asked == []


async def test_a_thin_event_is_taken_once_stripe_is_back(asking: Starter, server: StripeServer) -> None:
    notification = thin(server, paid_now(person("rita"))[1])
    server.failures.extend([429])

    assert_problem(await asking.stripe(notification), 503, "temporarily-unavailable")
    assert await facts(asking) == [[], []]

    assert (await asking.stripe(notification)).json() == {"handled": True}


@pytest.mark.parametrize("status", [401, 403])
async def test_a_thin_event_waits_for_a_key_that_may_read_what_it_is_about(
    asking: Starter, server: StripeServer, status: int
) -> None:
    notification = thin(server, paid_now(person("fred"))[1])
    server.failures.append(status)

    refused = await asking.stripe(notification)
    assert_problem(refused, 503, "stripe-refused")
    assert "retry-after" in refused.headers
    assert "example.com" not in refused.text
    assert await facts(asking) == [[], []]
    assert (await asking.stripe(notification)).json() == {"handled": True}
    assert len((await facts(asking))[0]) == 1


async def test_a_thin_event_about_what_is_gone_says_nothing(asking: Starter, server: StripeServer) -> None:
    snapshot = paid_now(person("rita"))[1]
    notification = thin(server, snapshot)
    server.forget("invoice", snapshot["data"]["object"]["id"])

    answer = await asking.stripe(notification)

    assert (answer.status_code, answer.json()) == (200, {"handled": False})


async def test_a_thin_event_with_a_foreign_signature_or_no_object_is_refused(
    asking: Starter, server: StripeServer
) -> None:
    notification = thin(server, paid_now(person("rita"))[1])

    assert_problem(await asking.stripe(notification, "whsec_of_somebody_else"), 400, "invalid-signature")
    assert_problem(await asking.stripe(notification | {"related_object": None}), 400, "malformed-event")
    elsewhere = {"id": "x", "type": "../../v1/charges", "url": "/"}
    assert_problem(await asking.stripe(notification | {"related_object": elsewhere}), 400, "malformed-event")
    assert server.asked == []


async def test_rule_14_the_plan_is_found_on_any_line_of_a_long_invoice(asking: Starter, server: StripeServer) -> None:
    rita = await asking.account(person("rita"))
    now = datetime.now(UTC)
    lines = [line("gadget", now, now + MONTH, 100) for _ in range(150)] + [line("pro", now, now + MONTH, 2900)]
    bought = invoice_paid(rita.customer_id, rita.subscription_id, now, now + MONTH, lines=lines)
    server.happen(paid_now(rita)[0], bought)
    shown = json.loads(json.dumps(bought))
    shown["data"]["object"]["lines"] |= {"data": lines[:10], "has_more": True}
    await asking.stripe(paid_now(rita)[0])

    assert (await asking.stripe(shown)).json() == {"handled": True}

    assert (await asking.put(rita)).json()["plan"] == "pro"


async def test_an_event_of_an_old_version_is_read_anew_where_there_is_a_key(
    starter: Starter, asking: Starter, server: StripeServer
) -> None:
    rita = await asking.account(person("rita"))
    for snapshot in paid_now(rita):
        server.happen(snapshot)
        old = as_before_basil(snapshot)
        assert_problem(await starter.stripe(old), 400, "malformed-event")
        assert (await asking.stripe(old)).json() == {"handled": True}

    standing = (await asking.put(rita)).json()
    assert (standing["paid"], standing["plan"]) == (True, "pro")
