"""Paid with the referrer's own card: compared through Stripe's API before anybody is credited (rule 19)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from activities.referral import LedgerActivities
from billing.api import StripeApi, StripeRefusedError
from billing.cards import Cards
from program.doubts import Doubt
from program.referral import Stage
from program.signals import SignalPolicy
from tests.stripe_events import Event, invoice_paid, subscription
from tests.stripe_server import StripeServer
from tests.support import MONTH, Member, World, until
from workflows.messages import workflow_id


@pytest.fixture
async def world(live_idle_world: World, api: StripeApi) -> AsyncIterator[World]:
    """The program on the real Temporal server, with cards compared."""
    live_idle_world.policy, live_idle_world.cards = SignalPolicy(same_card=True), Cards(api)
    async with live_idle_world.worker():
        yield live_idle_world


def charge(customer: str, fingerprint: str | None, number: str) -> dict[str, object]:
    card = {"type": "card", "card": {"fingerprint": fingerprint}} if fingerprint else {"type": "link", "link": {}}
    return {"object": "charge", "id": f"ch_{number}", "customer": customer, "payment_method_details": card}


def charged(server: StripeServer, invoice: str, customer: str, fingerprint: str | None) -> None:
    """Let Stripe know by which card an invoice was paid."""
    payment = {"type": "payment_intent", "payment_intent": f"pi_{invoice}"}
    server.add(
        {
            "object": "invoice_payment",
            "id": f"inpay_{invoice}",
            "invoice": invoice,
            "status": "paid",
            "payment": payment,
        },
        {"object": "payment_intent", "id": f"pi_{invoice}", "latest_charge": f"ch_{invoice}"},
        charge(customer, fingerprint, invoice),
    )


def saved(server: StripeServer, customer: str, fingerprint: str) -> None:
    """Let Stripe know a card that a customer has saved."""
    card = {"fingerprint": fingerprint}
    server.add(
        {"object": "customer", "id": customer},
        {"object": "payment_method", "id": f"pm_{customer}", "customer": customer, "type": "card", "card": card},
    )


def payment_of(friend: Member) -> list[Event]:
    now = datetime.now(UTC).replace(microsecond=0)
    period = (friend.customer_id, friend.subscription_id, now, now + MONTH)
    return [subscription(*period), invoice_paid(*period)]


@pytest.mark.parametrize("known_as", ["saved", "charged before"])
async def test_rule_19_the_referrer_s_own_card_holds_it_until_an_operator_approves(
    world: World, server: StripeServer, known_as: str
) -> None:
    referral_id, referrer, friend = await world.waiting_friend()
    payment = payment_of(friend)
    charged(server, payment[1]["data"]["object"]["id"], friend.customer_id, "fp_shared")
    if known_as == "saved":
        saved(server, referrer.customer_id, "fp_shared")
    else:
        saved(server, referrer.customer_id, "fp_other")
        server.add(charge(referrer.customer_id, "fp_shared", "earlier"))
    await world.report(*payment)

    await world.reaches(referral_id, Stage.IN_REVIEW)

    shown = await world.referral(referral_id)
    assert (shown.reason, shown.review_reasons) == (Doubt.SAME_CARD.words, ["same-card"])
    assert await world.lots(friend) == []
    outcome = await world.review(workflow_id(referral_id), "approve")
    assert outcome.stage is Stage.CREDITED
    assert len(await world.lots(friend)) == len(await world.lots(referrer)) == 1
    async with world.database.transaction() as transaction:
        kept = (await transaction.execute(text("SELECT card_check::text FROM card_check"))).scalars().all()
    assert len(kept) == 1
    assert "fp_shared" not in kept[0]


@pytest.mark.parametrize("fingerprint", ["fp_of_the_friend", None])
async def test_rule_19_another_card_or_no_card_at_all_is_credited_at_once(
    world: World, server: StripeServer, fingerprint: str | None
) -> None:
    referral_id, referrer, friend = await world.waiting_friend()
    payment = payment_of(friend)
    charged(server, payment[1]["data"]["object"]["id"], friend.customer_id, fingerprint)
    saved(server, referrer.customer_id, "fp_of_the_referrer")
    await world.report(*payment)
    await world.reaches(referral_id, Stage.CREDITED)
    assert (await world.referral(referral_id)).review_reasons == []
    assert server.reads("/v1/invoice_payments") == 1


async def test_rule_19_while_stripe_is_away_the_credit_waits_and_the_check_is_not_skipped(
    world: World, server: StripeServer
) -> None:
    referral_id, referrer, friend = await world.waiting_friend()
    payment = payment_of(friend)
    charged(server, payment[1]["data"]["object"]["id"], friend.customer_id, "fp_shared")
    saved(server, referrer.customer_id, "fp_shared")
    server.failures.extend([500, 429, 503])
    await world.report(*payment)

    await until(lambda: _asked(server), lambda asked: asked >= 3)
    assert await world.lots(friend) == []
    await world.reaches(referral_id, Stage.IN_REVIEW)

    assert (await world.referral(referral_id)).review_reasons == ["same-card"]


async def _asked(server: StripeServer) -> int:
    return len(server.asked)


async def test_rule_19_an_erased_referrer_has_no_cards_to_compare_and_both_are_credited(
    world: World, server: StripeServer
) -> None:
    referral_id, referrer, friend = await world.waiting_friend()
    await world.erase(referrer)
    payment = payment_of(friend)
    charged(server, payment[1]["data"]["object"]["id"], friend.customer_id, "fp_shared")
    await world.report(*payment)
    await world.reaches(referral_id, Stage.CREDITED)
    assert server.reads(f"/v1/customers/{referrer.customer_id}") == 0


async def test_rule_19_a_customer_that_stripe_has_not_has_no_card_and_keeps_nobody_waiting(
    server: StripeServer, api: StripeApi
) -> None:
    charged(server, "in_1", "cus_friend", "fp_shared")
    assert not await Cards(api).same_card("in_1", ["cus_nobody"])
    saved(server, "cus_referrer", "fp_shared")
    assert await Cards(api).same_card("in_1", ["cus_nobody", "cus_referrer"])


async def test_rule_19_a_key_that_may_not_look_is_no_answer(server: StripeServer) -> None:
    api = StripeApi("sk_test_of_somebody_else", server.base, requests_a_second=1000.0, retries=0)
    with pytest.raises(StripeRefusedError):
        await Cards(api).same_card("in_1", ["cus_1"])
    await api.close()


async def test_rule_19_the_check_cannot_be_on_with_nobody_to_make_it(live_idle_world: World) -> None:
    world = live_idle_world
    with pytest.raises(ValueError, match="nobody can"):
        LedgerActivities(world.database, world.plans, SignalPolicy(same_card=True))
