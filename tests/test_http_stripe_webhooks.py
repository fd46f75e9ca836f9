"""`POST /stripe/webhooks`: signatures, what is ours, any order and number of events (rules 3, 6, 11 and 14)."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import stripe
from sqlalchemy import func, select
from temporalio.client import Client

from ledger import accounts, referrals
from ledger.accounts import Profile
from ledger.tables import paid_period, stripe_event
from tests.conftest import free_port
from tests.http_support import STRIPE_SECRETS, Endless, Starter, assert_problem, paid, person, tokens
from tests.stripe_events import (
    Event,
    checkout_completed,
    event,
    invoice_paid,
    invoice_payment_paid,
    line,
    signed,
    subscription,
    unique,
)
from tests.support import HASHES, MONTH, Member, until

TOLERANCE = 300


async def stored(starter: Starter) -> dict[str, bool]:
    """The events of the ledger, and whether all that they concern have been told."""
    async with starter.world.database.transaction() as transaction:
        rows = (await transaction.execute(select(stripe_event))).all()
    return {row.event_id: row.signalled_at is not None for row in rows}


async def referred(starter: Starter, *, put: bool = True) -> tuple[Member, Member, str]:
    """A referrer, a friend who has signed up by its link, and their referral."""
    rita = await starter.subscriber()
    visit = await starter.click(await starter.link(rita))
    fred = person("fred")
    await starter.signed_up(fred, referral_token=visit.token)
    await starter.reaches(visit.referral_id, "signed_up")
    if put:
        await starter.account(fred)
    return rita, fred, visit.referral_id


async def deliver(starter: Starter, *events: Event) -> None:
    """Deliver events, one after the other; each must be taken."""
    for each in events:
        answer = await starter.stripe(each)
        assert answer.status_code == 200, answer.text


async def credited_once(starter: Starter, referral_id: str, *members: Member, minutes: int = 90) -> None:
    """Hold that both sides were credited, once, alike and together (rules 3 and 6)."""
    shown = await starter.reaches(referral_id, "credited")
    assert shown["bonus_minutes"] == minutes
    grants = [grant for member in members for grant in (await starter.bonus(member))["grants"]]
    assert [grant["role"] for grant in grants] == ["referrer", "referee"]
    assert {(grant["referral_id"], grant["minutes"], grant["credited_at"]) for grant in grants} == {
        (referral_id, minutes, shown["credited_at"])
    }


async def test_an_event_signed_by_stripe_is_taken(starter: Starter) -> None:
    rita = await starter.account(person("rita"))
    now = datetime.now(UTC)
    first, second = paid(rita, now, now + MONTH)
    answer = await starter.stripe(first)
    assert (answer.status_code, answer.json()) == (200, {"handled": True})
    await deliver(starter, second)
    assert await stored(starter) == {first["id"]: True, second["id"]: True}
    assert (await starter.put(rita)).json()["paid"]
    assert await starter.metric("referrals_stripe_events_total", type="invoice.paid", answer="handled") == 1


async def test_each_of_several_secrets_is_good_and_one_that_was_removed_is_not(starter: Starter) -> None:
    member = person("rita")
    now = datetime.now(UTC)
    for secret in STRIPE_SECRETS:
        answer = await starter.stripe(paid(member, now, now + MONTH)[1], secret)
        assert answer.status_code == 200
    async with starter.another(stripe_webhook_secrets=[STRIPE_SECRETS[1]]) as after:
        answer = await after.stripe(paid(member, now, now + MONTH)[1], STRIPE_SECRETS[0])
        assert_problem(answer, 400, "invalid-signature")
        assert (await after.stripe(paid(member, now, now + MONTH)[1], STRIPE_SECRETS[1])).status_code == 200
    both = signed(paid(member, now, now + MONTH)[1], STRIPE_SECRETS[0])
    signature = both[1]["Stripe-Signature"]
    rolled = {**both[1], "Stripe-Signature": signature.replace("v1=", f"v1={'0' * 64},v1=")}
    answer = await starter.send("POST", "/stripe/webhooks", content=both[0], headers=rolled)
    assert answer.status_code == 200, "while a secret is rolled, Stripe signs with both"


async def test_a_signature_that_does_not_fit_is_refused(starter: Starter) -> None:
    now = datetime.now(UTC)
    body, headers = signed(paid(person("rita"), now, now + MONTH)[1], STRIPE_SECRETS[0])
    good = headers["Stripe-Signature"]
    at, _, signature = good.partition(",")
    wrong: list[str | bytes | None] = [
        None,
        "",
        "nonsense",
        at,
        signature,
        f"{at},v1=",
        f"{at},v0={signature.removeprefix('v1=')}",
        f"{at},v1={'0' * 64}",
        f"t=,{signature}",
        f"t={int(time.time()) + 1},{signature}",
        f"t={'9' * 400},{signature}",
        f"t=-1,{signature}",
        f"{at},v1=\xe9".encode("latin-1"),
        f"t=\xb2,{signature}".encode("latin-1"),
        stripe.WebhookSignature.generate_signature_header(body.decode(), "whsec_of_somebody_else"),
        stripe.WebhookSignature.generate_signature_header(body.decode() + " ", STRIPE_SECRETS[0]),
        stripe.WebhookSignature.generate_signature_header(body.decode(), ""),
    ]
    for header in wrong:
        sent = {} if header is None else {"Stripe-Signature": header}
        answer = await starter.send("POST", "/stripe/webhooks", content=body, headers=sent)
        assert_problem(answer, 400, "invalid-signature")
    answer = await starter.send("POST", "/stripe/webhooks", content=b"\xff\xfe", headers=headers)
    assert_problem(answer, 400, "invalid-signature")
    assert await stored(starter) == {}


async def test_a_signature_is_good_for_five_minutes_either_way(starter: Starter) -> None:
    now = datetime.now(UTC)
    member = person("rita")

    async def delivered(off: int) -> int:
        each = paid(member, now, now + MONTH)[1]
        return (await starter.stripe(each, timestamp=int(time.time()) + off)).status_code

    assert await delivered(-TOLERANCE - 5) == 400
    assert await delivered(-TOLERANCE + 30) == 200
    assert await delivered(TOLERANCE - 30) == 200
    assert await delivered(TOLERANCE + 30) == 400


def _signed_text(text: bytes) -> dict[str, str]:
    return {"Stripe-Signature": stripe.WebhookSignature.generate_signature_header(text.decode(), STRIPE_SECRETS[0])}


def _changed(path: str, value: Any) -> Event:
    now = datetime.now(UTC)
    document: Any = paid(person("rita"), now, now + MONTH)[1]
    *way, last = path.split(".")
    place = document
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    assert isinstance(document, dict)
    return document


async def test_what_is_signed_but_no_event_is_refused(starter: Starter) -> None:
    bodies = [b"", b"{", b"[]", b"null", b"7", b'"a"', b"{}", b"[" * 200_000, b'{"id": 1e999}', b"\xef\xbb\xbf{}"]
    bodies += [
        json.dumps(_changed(path, value)).encode()
        for path, value in (
            ("id", ...),
            ("id", ""),
            ("id", 7),
            ("id", "evt_\0"),
            ("id", "e" * 5000),
            ("type", ...),
            ("created", "today"),
            ("created", -1),
            ("created", 10**18),
            ("data", ...),
            ("data.object", ...),
            ("data.object", []),
            ("data.object.id", None),
            ("data.object.customer", "cus_\0"),
            ("data.object.customer", 7),
            ("data.object.amount_paid", "much"),
            ("data.object.amount_paid", -1),
            ("data.object.amount_paid", 10**30),
            ("data.object.lines", ...),
            ("data.object.lines.data.0.period", None),
            ("data.object.lines.data.0.period.end", 10**15),
            ("data.object.status_transitions.paid_at", 1.5),
        )
    ]
    for body in bodies:
        answer = await starter.send("POST", "/stripe/webhooks", content=body, headers=_signed_text(body))
        assert_problem(answer, 400, "malformed-event")
    assert await starter.metric("referrals_stripe_events_total", answer="malformed") == len(bodies)


async def test_a_body_that_is_too_large_is_refused_unread(starter: Starter) -> None:
    now = datetime.now(UTC)
    event_of_a_megabyte = paid(person("rita"), now, now + MONTH)[1]
    event_of_a_megabyte["data"]["object"]["description"] = "a" * 1_100_000
    body = json.dumps(event_of_a_megabyte).encode()
    assert_problem(
        await starter.send("POST", "/stripe/webhooks", content=body, headers=_signed_text(body)),
        400,
        "malformed-event",
    )
    endless = Endless()
    answer = await starter.send("POST", "/stripe/webhooks", content=endless, headers={"Stripe-Signature": "t=1,v1=0"})
    assert_problem(answer, 400, "malformed-event")
    assert endless.taken < 2_000_000, "whoever signs nothing is not listened to for ever"


async def test_what_is_not_ours_is_fine(starter: Starter) -> None:
    not_ours = [
        event("charge.succeeded", {"id": "ch_1", "object": "charge"}),
        event("something.new", {"whatever": [1, 2, 3]}),
        event("invoice.created", {"id": "in_1"}),
    ]
    one_off = invoice_paid("cus_1", "sub_1", datetime.now(UTC), datetime.now(UTC) + MONTH)
    one_off["data"]["object"]["parent"] = None
    for each in [*not_ours, one_off]:
        answer = await starter.stripe(each)
        assert (answer.status_code, answer.json()) == (200, {"handled": False})
    assert await stored(starter) == {}
    assert await starter.metric("referrals_stripe_events_total", type="other", answer="not_ours") == 3


async def test_rules_3_and_6_the_first_payment_credits_both_at_once(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    await whole_program.pay(fred)
    await credited_once(whole_program, referral_id, rita, fred)


@pytest.mark.parametrize(("plan", "minutes"), [("starter", 22), ("power", 300)])
async def test_rule_3_each_plan_has_its_bonus(whole_program: Starter, plan: str, minutes: int) -> None:
    rita, fred, referral_id = await referred(whole_program)
    await whole_program.pay(fred, plan=plan)
    await credited_once(whole_program, referral_id, rita, fred, minutes=minutes)
    assert (await whole_program.referral(referral_id))["plan"] == plan


async def test_rule_9_an_invoice_alone_moves_the_end_of_an_open_bonus(whole_program: Starter) -> None:
    """It names no price and nobody who waits for a bonus, and yet it concerns one."""
    _, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    await deliver(whole_program, *paid(fred, now, now + timedelta(days=10)))
    await whole_program.reaches(referral_id, "credited")
    later = (now + timedelta(days=20)).replace(microsecond=0)
    await deliver(whole_program, invoice_paid(fred.customer_id, fred.subscription_id, now, later))
    shown = await whole_program.referral(referral_id)
    assert datetime.fromisoformat(shown["expires_at"]["referee"]) == later


async def test_rule_11_the_same_events_again_and_further_payments_credit_nothing_more(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    events = paid(fred, now, now + MONTH)
    await deliver(whole_program, *events, *events, *reversed(events))
    await credited_once(whole_program, referral_id, rita, fred)
    renewal = paid(fred, now + MONTH, now + 2 * MONTH, plan="power", reason="subscription_cycle")
    await deliver(whole_program, *renewal, *events)
    again = person("again")
    again.customer_id, again.subscription_id = fred.customer_id, unique("sub")
    await deliver(whole_program, *paid(again, now, now + MONTH, plan="power"))
    await credited_once(whole_program, referral_id, rita, fred)
    assert len(await stored(whole_program)) == 2 + 2 + 2 + 2


async def test_events_may_come_in_any_order(starter: Starter) -> None:
    now = datetime.now(UTC)
    for order in itertools.permutations(range(4)):
        fred = await starter.account(person("fred", customer=False))
        customer, invoice_id = unique("cus"), unique("in")
        events = [
            subscription(customer, fred.subscription_id, now, now + MONTH),
            invoice_paid(customer, fred.subscription_id, now, now + MONTH, invoice_id=invoice_id),
            invoice_payment_paid(invoice_id, now),
            checkout_completed(customer, fred.account_id),
        ]
        await deliver(starter, *(events[place] for place in order))
        standing = (await starter.put(fred)).json()
        assert (standing["paid"], standing["plan"]) == (True, "pro"), order
        assert {each["id"] for each in events} <= (await stored(starter)).keys()


async def test_a_customer_linked_late_by_the_backend_brings_the_bonus(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program, put=False)
    await whole_program.pay(fred)
    assert (await whole_program.referral(referral_id))["stage"] == "signed_up"
    await whole_program.account(fred)
    await credited_once(whole_program, referral_id, rita, fred)


async def test_a_customer_linked_late_by_the_checkout_brings_the_bonus(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program, put=False)
    await whole_program.pay(fred)
    await deliver(whole_program, checkout_completed(fred.customer_id, fred.account_id))
    await credited_once(whole_program, referral_id, rita, fred)


async def test_a_checkout_may_come_before_the_account_is_known(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    fred = person("fred")
    await deliver(whole_program, checkout_completed(fred.customer_id, fred.account_id))
    await whole_program.pay(fred)
    await whole_program.signed_up(fred, referral_token=visit.token)
    await credited_once(whole_program, visit.referral_id, rita, fred)


async def test_a_payment_may_come_before_the_signup_is_told(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    fred = await whole_program.account(person("fred"))
    # Stripe's times are whole seconds: a payment of the very second of the click is not one before it.
    await whole_program.pay(fred)
    await whole_program.signed_up(fred, referral_token=visit.token)
    await credited_once(whole_program, visit.referral_id, rita, fred)


async def test_with_temporal_away_the_event_is_sent_again_and_nothing_is_lost(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    first, payment = paid(fred, now, now + MONTH)
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        await deliver(cut_off, first)
        for _ in range(2):
            answer = await cut_off.stripe(payment)
            assert_problem(answer, 503, "temporarily-unavailable")
            assert int(answer.headers["retry-after"]) > 0
    assert await stored(whole_program) | {payment["id"]: False} == await stored(whole_program)
    await deliver(whole_program, payment)
    await credited_once(whole_program, referral_id, rita, fred)
    assert (await stored(whole_program))[payment["id"]]


async def test_two_deliveries_of_one_event_at_once_credit_once(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    events = paid(fred, now, now + MONTH)
    answers = await asyncio.gather(*(whole_program.stripe(each) for each in events * 4))
    assert {answer.status_code for answer in answers} == {200}
    await credited_once(whole_program, referral_id, rita, fred)


async def test_rule_14_a_payment_that_is_waited_for_is_found_in_a_burst_of_others(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    known, payment = paid(fred, now, now + MONTH)
    await deliver(whole_program, known)
    burst = [paid(person("carl"), now, now + MONTH)[1] for _ in range(40)]
    burst[20:20] = [payment, payment]
    answers = await asyncio.gather(*(whole_program.stripe(each) for each in burst))
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"handled": True})] * 42
    await credited_once(whole_program, referral_id, rita, fred)
    known_events = await stored(whole_program)
    assert all(known_events[each["id"]] for each in burst)
    assert await whole_program.metric("referrals_stripe_events_total", type="invoice.paid", answer="handled") == 43


async def test_with_the_database_away_each_of_a_burst_is_told_to_come_again(starter: Starter) -> None:
    now = datetime.now(UTC)
    burst = [paid(person("carl"), now, now + MONTH)[1] for _ in range(10)]
    async with starter.another(database_url=f"postgresql+psycopg://x:x@127.0.0.1:{free_port()}/x") as cut_off:
        for answer in await asyncio.gather(*(cut_off.stripe(each) for each in burst)):
            assert_problem(answer, 503, "temporarily-unavailable")
            assert int(answer.headers["retry-after"]) > 0
    await asyncio.gather(*(deliver(starter, each) for each in burst))
    assert await stored(starter) == {each["id"]: True for each in burst}


def _not_counting(case: str, fred: Member, now: datetime) -> list[Event]:
    """Payments that do not count, or not yet (rule 14)."""
    customer, own, end = fred.customer_id, fred.subscription_id, now + MONTH
    match case:
        case "trial":
            return [
                subscription(customer, own, now, end, status="trialing"),
                invoice_paid(customer, own, now, end, amount_paid=0, total=0),
            ]
        case "full coupon":
            return paid(fred, now, end, amount_paid=0, total=0)
        case "paid from a balance":
            return paid(fred, now, end, amount_paid=0, total=2900)
        case "active but unpaid":
            return [subscription(customer, own, now, end, status="active")]
        case _:
            raise AssertionError(case)


@pytest.mark.parametrize("case", ["trial", "full coupon", "paid from a balance", "active but unpaid"])
async def test_rule_14_not_yet_but_the_first_real_payment_after_it(whole_program: Starter, case: str) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    await deliver(whole_program, *_not_counting(case, fred, now))
    assert (await whole_program.referral(referral_id))["stage"] == "signed_up"
    assert not (await whole_program.bonus(fred))["grants"]
    await deliver(
        whole_program,
        *paid(fred, now + timedelta(seconds=1), now + MONTH, plan="power", reason="subscription_cycle"),
    )
    await credited_once(whole_program, referral_id, rita, fred, minutes=300)


def _lines(case: str, now: datetime) -> tuple[list[dict[str, Any]], int]:
    end = now + MONTH
    match case:
        case "of several, the one with most minutes":
            return [line("starter", now, end, 900), line("power", now, end, 7900), line("pro", now, end, 2900)], 300
        case "prorations do not count":
            return [line("power", now, end, 5000, proration=True), line("starter", now, end, 900)], 22
        case _:
            raise AssertionError(case)


@pytest.mark.parametrize("case", ["of several, the one with most minutes", "prorations do not count"])
async def test_rule_14_the_plan_of_an_invoice(whole_program: Starter, case: str) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    for plan in ("power", "starter", "pro"):
        other = person("other")
        await deliver(
            whole_program, subscription(other.customer_id, other.subscription_id, now, now + MONTH, plan=plan)
        )
    lines, minutes = _lines(case, now)
    await deliver(
        whole_program,
        invoice_paid(fred.customer_id, fred.subscription_id, now, now + MONTH, lines=lines, amount_paid=900),
    )
    await credited_once(whole_program, referral_id, rita, fred, minutes=minutes)


async def test_rule_14_a_yearly_price_counts_one_months_minutes(whole_program: Starter) -> None:
    rita, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    yearly = subscription(
        fred.customer_id, fred.subscription_id, now, now + timedelta(days=365), lookup_key="pro_yearly"
    )
    await deliver(
        whole_program,
        yearly,
        invoice_paid(fred.customer_id, fred.subscription_id, now, now + timedelta(days=365), amount_paid=29000),
    )
    await credited_once(whole_program, referral_id, rita, fred, minutes=90)


async def test_rule_14_a_payment_for_no_known_plan_waits_for_attention(whole_program: Starter) -> None:
    _, fred, referral_id = await referred(whole_program)
    now = datetime.now(UTC)
    await deliver(whole_program, *paid(fred, now, now + MONTH, plan="platinum"))
    shown = await until(lambda: whole_program.referral(referral_id), lambda seen: bool(seen["needs_attention"]))
    assert shown["stage"] == "signed_up"
    assert "price_platinum" in shown["attention"]
    # It goes on as soon as Stripe has told what the price sells.
    known = subscription(fred.customer_id, fred.subscription_id, now, now + MONTH, plan="platinum", lookup_key="power")
    known["created"] += 1
    await deliver(whole_program, known)
    shown = await whole_program.reaches(referral_id, "credited")
    assert (shown["plan"], shown["needs_attention"]) == ("power", False)


async def test_rule_18_a_second_account_never_takes_the_payments_of_anothers_customer(whole_program: Starter) -> None:
    _, fred, referral_id = await referred(whole_program)
    other = await whole_program.account(person("other"))
    await whole_program.put(fred, stripe_customer_id=other.customer_id)
    await deliver(whole_program, checkout_completed(other.customer_id, fred.account_id))
    await whole_program.pay(other)
    shown = await whole_program.reaches(referral_id, "refused")
    assert "another account's before" in shown["reason"], "rule 10: the customer was another's"
    async with whole_program.world.database.transaction() as transaction:
        payments = await transaction.execute(select(func.count()).select_from(paid_period))
    assert payments.scalar_one() == 2, "rita's and the other's"
    assert (await whole_program.bonus(fred))["grants"] == []


async def test_rule_9_a_period_that_begins_earlier_and_ends_later_moves_the_expiry(whole_program: Starter) -> None:
    now = datetime.now(UTC)
    rita = await whole_program.subscriber(cycle_ends_in=timedelta(days=10))
    visit = await whole_program.click(await whole_program.link(rita))
    fred = await whole_program.account(person("fred"))
    await whole_program.signed_up(fred, referral_token=visit.token)
    await whole_program.pay(fred)
    shown = await whole_program.reaches(visit.referral_id, "credited")
    before = datetime.fromisoformat(shown["expires_at"]["referrer"])
    assert abs(before - now - timedelta(days=10)) < timedelta(minutes=1)
    moved = before + timedelta(days=5)
    start = before - MONTH
    await deliver(
        whole_program,
        subscription(rita.customer_id, rita.subscription_id, start, moved, type_="customer.subscription.updated"),
    )
    after = (await whole_program.referral(visit.referral_id))["expires_at"]
    assert datetime.fromisoformat(after["referrer"]) == moved
    assert after["referee"] == shown["expires_at"]["referee"]
    bonus = await whole_program.bonus(rita)
    assert datetime.fromisoformat(bonus["grants"][0]["expires_at"]) == moved


Step = Callable[[], Awaitable[object]]


async def test_link_signup_and_payment_in_any_order_bring_the_bonus(whole_program: Starter) -> None:
    code = await whole_program.link(await whole_program.subscriber())
    for order in itertools.permutations(("link", "signup", "payment")):
        visit = await whole_program.click(code)
        fred = person("fred")
        steps: dict[str, Step] = {
            "link": partial(whole_program.account, fred),
            "signup": partial(whole_program.signed_up, fred, referral_token=visit.token),
            "payment": partial(whole_program.pay, fred),
        }
        for step in order:
            await steps[step]()
        assert (await whole_program.reaches(visit.referral_id, "credited"))["bonus_minutes"] == 90, order
        assert len((await whole_program.bonus(fred))["grants"]) == 1, order


async def test_a_payment_reaches_a_sleeping_run_whose_signup_was_stored_but_never_told(whole_program: Starter) -> None:
    """The report of the signup was cut short between PostgreSQL and Temporal, and nobody repeated it."""
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    fred = person("fred")
    async with whole_program.world.database.transaction() as transaction:
        await accounts.put(transaction, Profile(fred.account_id, fred.email, fred.created_at), HASHES)
        await referrals.reserve(transaction, tokens().read(visit.token), rita.account_id, fred.account_id)
    assert (await whole_program.referral(visit.referral_id))["stage"] == "clicked"
    await whole_program.put(fred)
    await whole_program.pay(fred)
    assert (await whole_program.reaches(visit.referral_id, "credited", "refused"))["stage"] == "credited"


async def test_a_payment_for_a_run_that_was_ended_from_outside_is_answered_and_told_to_operators(
    whole_program: Starter,
) -> None:
    _, fred, referral_id = await referred(whole_program)
    await whole_program.world.handle(referral_id).terminate("by an operator")
    await whole_program.pay(fred)
    assert await whole_program.metric("referrals_runs_over_total") >= 1
    assert (await whole_program.referral(referral_id))["stage"] == "signed_up"
