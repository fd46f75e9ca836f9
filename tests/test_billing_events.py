"""The reduction of Stripe's events: every shape that Stripe documents, and nothing but a clear refusal of the rest."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.events import HANDLED_TYPES, MalformedEventError, reduce_event
from billing.facts import (
    CustomerLinked,
    DisputeSeen,
    EventFacts,
    Fact,
    InvoicePaymentSeen,
    PaidLine,
    PeriodPaid,
    PeriodSeen,
    PriceSeen,
    RefundSeen,
    SubscriptionEnded,
)
from tests.stripe_events import (
    Event,
    charge_refunded,
    checkout_completed,
    dispute,
    event,
    invoice_paid,
    invoice_payment_paid,
    invoice_unpaid,
    line,
    paid_by,
    price,
    subscription,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = datetime(2026, 4, 1, 12, tzinfo=UTC)
SECRET = "sk-what-nobody-may-read"


def facts_of(document: Event) -> tuple[Fact, ...]:
    return reduce_event(document).facts


def a_subscription(**values: Any) -> Event:
    return subscription("cus_1", "sub_1", START, END, created=START, **values)


def an_invoice(**values: Any) -> Event:
    return invoice_paid("cus_1", "sub_1", START, END, invoice_id="in_1", **values)


def one_of_each() -> list[Event]:
    return [
        a_subscription(),
        an_invoice(),
        invoice_payment_paid("in_1", START),
        checkout_completed("cus_1", "account-1"),
        charge_refunded("pi_1", 900, customer="cus_1", created=START),
        dispute("pi_1", "needs_response", created=START),
        price("price_pro", "pro", created=START),
    ]


SEEN = PeriodSeen("sub_1", "cus_1", "price_pro", START, END)
PRICE = PriceSeen("price_pro", "pro", "prod_pro", START)


def test_an_event_keeps_its_id_type_and_time() -> None:
    document = a_subscription()
    assert reduce_event(document) == EventFacts(document["id"], "customer.subscription.created", START, (PRICE, SEEN))


@pytest.mark.parametrize("type_", sorted(kind for kind in HANDLED_TYPES if kind.startswith("customer.subscription.")))
def test_every_subscription_event_tells_price_and_period(type_: str) -> None:
    assert facts_of(a_subscription(type_=type_)) == (PRICE, SEEN)


def test_the_types_in_scope_are_handled() -> None:
    assert {
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "invoice.paid",
        "invoice_payment.paid",
        "checkout.session.completed",
    } <= HANDLED_TYPES


@pytest.mark.parametrize("type_", ["invoice.payment_failed", "customer.created", "something.new"])
def test_a_type_that_is_not_handled_says_nothing(type_: str) -> None:
    reduced = reduce_event(event(type_, {"id": 7, "items": None, "lines": "none"}, START, "evt_1"))
    assert reduced == EventFacts("evt_1", type_, START, ())


# Subscriptions


@pytest.mark.parametrize("status", ["trialing", "active", "past_due", "unpaid", "paused"])
def test_a_subscription_that_goes_on_is_in_a_period(status: str) -> None:
    assert facts_of(a_subscription(status=status)) == (PRICE, SEEN)


def test_rule_14_an_incomplete_subscription_is_in_no_period() -> None:
    assert facts_of(a_subscription(status="incomplete")) == (PRICE,)


def test_a_subscription_that_never_began_has_ended_without_a_period() -> None:
    ended = START + timedelta(hours=23)
    assert facts_of(a_subscription(status="incomplete_expired", ended_at=ended)) == (
        PRICE,
        SubscriptionEnded("sub_1", "cus_1", ended),
    )


def test_rule_1_a_cancelled_subscription_ended_when_stripe_says() -> None:
    ended = START + timedelta(days=3)
    document = a_subscription(status="canceled", ended_at=ended, type_="customer.subscription.deleted")
    assert facts_of(document) == (PRICE, SEEN, SubscriptionEnded("sub_1", "cus_1", ended))


def test_a_cancelled_subscription_without_an_end_ended_by_the_event() -> None:
    assert facts_of(a_subscription(status="canceled"))[-1] == SubscriptionEnded("sub_1", "cus_1", START)


def test_every_item_of_a_subscription_tells_its_own_price_and_period() -> None:
    document = a_subscription()
    items = document["data"]["object"]["items"]["data"]
    other = copy.deepcopy(items[0])
    other["price"] |= {"id": "price_power", "lookup_key": None, "product": {"id": "prod_power", "object": "product"}}
    other["current_period_end"] = int((END + timedelta(days=2)).timestamp())
    items.append(other)
    assert facts_of(document) == (
        PRICE,
        SEEN,
        PriceSeen("price_power", None, "prod_power", START),
        PeriodSeen("sub_1", "cus_1", "price_power", START, END + timedelta(days=2)),
    )


def test_a_period_of_no_length_is_none() -> None:
    assert facts_of(subscription("cus_1", "sub_1", START, START, created=START)) == (PRICE,)


def test_the_customer_may_stand_expanded_or_deleted() -> None:
    document = a_subscription()
    for customer in ({"id": "cus_1", "object": "customer", "email": SECRET}, {"id": "cus_1", "deleted": True}):
        document["data"]["object"]["customer"] = customer
        assert facts_of(document) == (PRICE, SEEN)


# Invoices

PAID_LINE = PaidLine("price_pro", "prod_pro", START, END, False, 2900)
PAID = PeriodPaid("in_1", "cus_1", "sub_1", START, 2900, 2900, (PAID_LINE,))


def test_a_paid_invoice_tells_what_was_paid_and_for_what() -> None:
    assert facts_of(an_invoice()) == (PAID,)


def test_rule_14_what_was_paid_and_what_it_was_worth_are_told_apart() -> None:
    (fact,) = facts_of(an_invoice(amount_paid=0, total=2900))
    assert isinstance(fact, PeriodPaid)
    assert (fact.amount_paid, fact.total) == (0, 2900)


@pytest.mark.parametrize("reason", ["subscription_create", "subscription_cycle", "subscription_update", "manual"])
def test_rule_14_the_billing_reason_decides_nothing(reason: str) -> None:
    assert facts_of(an_invoice(reason=reason)) == (PAID,)


def test_ids_in_an_invoice_may_stand_expanded() -> None:
    document = an_invoice()
    invoice = document["data"]["object"]
    invoice["customer"] = {"id": "cus_1"}
    invoice["parent"]["subscription_details"]["subscription"] = {"id": "sub_1", "object": "subscription"}
    details = invoice["lines"]["data"][0]["pricing"]["price_details"]
    details["price"] = {"id": "price_pro", "lookup_key": "pro"}
    details["product"] = {"id": "prod_pro"}
    assert facts_of(document) == (PAID,)


@pytest.mark.parametrize("transitions", [{"paid_at": None}, {}, None])
def test_without_a_time_of_payment_the_event_s_own_counts(transitions: dict[str, Any] | None) -> None:
    document = an_invoice()
    document["created"] += 5
    if transitions is None:
        del document["data"]["object"]["status_transitions"]
    else:
        document["data"]["object"]["status_transitions"] = transitions
    (fact,) = facts_of(document)
    assert isinstance(fact, PeriodPaid)
    assert fact.paid_at == START + timedelta(seconds=5)


@pytest.mark.parametrize("kind", ["subscription_item_details", "invoice_item_details"])
def test_rule_14_a_proration_is_told_by_either_parent(kind: str) -> None:
    prorated = line("power", START, END, 5000)
    prorated["parent"] = {
        "type": kind,
        "subscription_item_details": None,
        "invoice_item_details": None,
        kind: {"proration": True, "subscription": "sub_1"},
    }
    (fact,) = facts_of(an_invoice(lines=[line("pro", START, END, 2900), prorated]))
    assert isinstance(fact, PeriodPaid)
    assert [(paid.price_id, paid.proration) for paid in fact.lines] == [("price_pro", False), ("price_power", True)]


def test_a_line_without_a_price_is_left_out() -> None:
    lines = [line("pro", START, END, 2900) for _ in range(4)]
    lines[1]["pricing"] = None
    lines[2]["pricing"] = {"type": "price_details", "price_details": None}
    lines[3]["parent"] = None
    (fact,) = facts_of(an_invoice(lines=lines))
    assert isinstance(fact, PeriodPaid)
    assert fact.lines == (PAID_LINE, PAID_LINE)


@pytest.mark.parametrize("parent", [None, {"type": "quote_details", "subscription_details": None}])
def test_an_invoice_of_no_subscription_says_nothing(parent: dict[str, Any] | None) -> None:
    document = an_invoice()
    document["data"]["object"]["parent"] = parent
    assert facts_of(document) == ()


def test_an_invoice_of_no_customer_says_nothing() -> None:
    document = an_invoice()
    document["data"]["object"]["customer"] = None
    assert facts_of(document) == ()


# Payments and checkouts


def test_an_invoice_payment_tells_the_way_from_a_payment_to_its_invoice() -> None:
    document = invoice_payment_paid("in_1", START)
    obj = document["data"]["object"]
    intent = obj["payment"]["payment_intent"]
    expected = (InvoicePaymentSeen(obj["id"], "in_1", intent, 2900, START),)
    assert facts_of(document) == expected
    obj["invoice"], obj["payment"]["payment_intent"] = {"id": "in_1"}, {"id": intent}
    assert facts_of(document) == expected


def test_an_invoice_payment_without_an_intent_still_names_its_invoice() -> None:
    document = invoice_payment_paid("in_1", START)
    obj = document["data"]["object"]
    obj |= {"payment": {"type": "charge", "charge": "ch_1"}, "amount_paid": None, "status_transitions": {}}
    assert facts_of(document) == (InvoicePaymentSeen(obj["id"], "in_1", None, 0, None, "ch_1"),)


def test_a_checkout_links_the_customer_to_the_account_that_it_names() -> None:
    assert facts_of(checkout_completed("cus_1", "account-1")) == (CustomerLinked("cus_1", "account-1"),)


@pytest.mark.parametrize("missing", ["customer", "client_reference_id"])
def test_a_checkout_without_customer_or_account_says_nothing(missing: str) -> None:
    document = checkout_completed("cus_1", "account-1")
    document["data"]["object"][missing] = None
    assert facts_of(document) == ()
    del document["data"]["object"][missing]
    assert facts_of(document) == ()


# What is malformed

Breaking = Callable[[Event], None]


def _set(*path: str | int, value: Any) -> Breaking:
    def change(document: Event) -> None:
        target: Any = document
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return change


OBJECT = ("data", "object")
ITEM = (*OBJECT, "items", "data", 0)
LINE = (*OBJECT, "lines", "data", 0)
BROKEN: dict[str, tuple[Event, Breaking]] = {
    "no items": (a_subscription(), _set(*OBJECT, "items", value=None)),
    "items of another shape": (a_subscription(), _set(*OBJECT, "items", value=[SECRET])),
    "no period on the item": (a_subscription(), _set(*ITEM, "current_period_end", value=None)),
    "a period before time began": (a_subscription(), _set(*ITEM, "current_period_start", value=-1)),
    "a period beyond all time": (a_subscription(), _set(*ITEM, "current_period_end", value=10**30)),
    "a time as text": (a_subscription(), _set(*ITEM, "current_period_end", value=SECRET)),
    "a time as truth": (a_subscription(), _set(*ITEM, "current_period_end", value=True)),
    "no price": (a_subscription(), _set(*ITEM, "price", value=None)),
    "a price without an id": (a_subscription(), _set(*ITEM, "price", value={"lookup_key": SECRET})),
    "a lookup key with NUL": (a_subscription(), _set(*ITEM, "price", "lookup_key", value=f"{SECRET}\0")),
    "no customer": (a_subscription(), _set(*OBJECT, "customer", value=None)),
    "a customer without an id": (a_subscription(), _set(*OBJECT, "customer", value={"email": SECRET})),
    "a customer that is a number": (a_subscription(), _set(*OBJECT, "customer", value=7)),
    "an empty customer": (a_subscription(), _set(*OBJECT, "customer", value="")),
    "a customer with NUL": (a_subscription(), _set(*OBJECT, "customer", value=f"cus\0{SECRET}")),
    "a customer without end": (a_subscription(), _set(*OBJECT, "customer", value=SECRET * 1000)),
    "half a character": (a_subscription(), _set(*OBJECT, "customer", value="\ud800")),
    "a subscription id that is a list": (a_subscription(), _set(*OBJECT, "id", value=[SECRET])),
    "no lines": (an_invoice(), _set(*OBJECT, "lines", value=None)),
    "an invoice without an id": (an_invoice(), _set(*OBJECT, "id", value="")),
    "an invoice of a customer without an id": (an_invoice(), _set(*OBJECT, "customer", value={"name": SECRET})),
    "a payment below zero": (an_invoice(), _set(*OBJECT, "amount_paid", value=-1)),
    "a payment beyond all money": (an_invoice(), _set(*OBJECT, "amount_paid", value=2**63)),
    "a total beyond all debt": (an_invoice(), _set(*OBJECT, "total", value=-(2**63) - 1)),
    "a payment of no number": (an_invoice(), _set(*OBJECT, "amount_paid", value=float("nan"))),
    "a fraction of a cent": (an_invoice(), _set(*OBJECT, "amount_paid", value=0.5)),
    "a line without a period": (an_invoice(), _set(*LINE, "period", value=None)),
    "a line without an amount": (an_invoice(), _set(*LINE, "amount", value=None)),
    "a price on a line that is a number": (an_invoice(), _set(*LINE, "pricing", "price_details", "price", value=7)),
    "a payment for no invoice": (invoice_payment_paid("in_1", START), _set(*OBJECT, "invoice", value=None)),
    "an account that is a number": (checkout_completed("c", "a"), _set(*OBJECT, "client_reference_id", value=7)),
    "an account with NUL": (checkout_completed("c", "a"), _set(*OBJECT, "client_reference_id", value=f"{SECRET}\0")),
    "no object": (a_subscription(), _set("data", value={})),
    "no id": (a_subscription(), _set("id", value=None)),
    "an id with NUL": (event("customer.created", {}), _set("id", value="evt\0")),
    "a time that is text": (a_subscription(), _set("created", value=SECRET)),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_malformed_event_is_refused_in_words_that_repeat_no_value(name: str) -> None:
    document, break_it = BROKEN[name]
    document = copy.deepcopy(document)
    break_it(document)
    with pytest.raises(MalformedEventError) as refused:
        reduce_event(document)
    assert SECRET not in str(refused.value)
    assert str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__, "what was wrong would be logged with the traceback"


@pytest.mark.parametrize("document", [None, [], "event", 7, {}, {"id": "evt_1"}])
def test_what_is_no_event_is_refused(document: object) -> None:
    with pytest.raises(MalformedEventError):
        reduce_event(document)


# Anything at all

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**40, -1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\0", "\ud800", "x" * 5000])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def _storable(value: object) -> bool:
    """Whether PostgreSQL takes everything that a fact holds, and Python can add days to its times."""
    if isinstance(value, str):
        return "\0" not in value and value.encode(errors="replace").decode() == value and len(value) <= 255
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, datetime):
        return value.tzinfo is UTC and bool(value + timedelta(days=1000))
    if isinstance(value, tuple):
        return all(map(_storable, value))
    return all(_storable(getattr(value, name)) for name in value.__slots__)  # type: ignore[attr-defined]


def _reduces_or_refuses(document: object) -> None:
    try:
        reduced = reduce_event(document)
    except MalformedEventError:
        return
    assert _storable(reduced)


@given(JSON)
def test_any_json_is_reduced_or_refused(document: object) -> None:
    _reduces_or_refuses(document)


@given(st.sampled_from(sorted(HANDLED_TYPES)), st.dictionaries(st.text(max_size=6), JSON, max_size=3))
def test_any_object_of_a_handled_type_is_reduced_or_refused(type_: str, obj: dict[str, Any]) -> None:
    _reduces_or_refuses(event(type_, obj))


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_in_a_real_event_is_reduced_or_refused(data: st.DataObject) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(one_of_each()))))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_places(document)[1:]))
        _set(*place, value=data.draw(JSON))(document)
    _reduces_or_refuses(document)


# What becomes of a subscription

LATER = START + timedelta(days=14)
TRIAL = PeriodSeen("sub_1", "cus_1", "price_pro", START, LATER)


def changed(start: datetime, end: datetime, status: str = "active", **changes: Any) -> Event:
    document = subscription(
        "cus_1", "sub_1", start, end, status=status, created=START, type_="customer.subscription.updated"
    )
    document["data"]["object"] |= changes
    return document


TRANSITIONS: dict[str, tuple[Event, tuple[Fact, ...]]] = {
    "a trial": (changed(START, LATER, "trialing", trial_end=int(LATER.timestamp())), (PRICE, TRIAL)),
    "a trial extended": (changed(START, END, "trialing"), (PRICE, SEEN)),
    "trial to active": (
        changed(LATER, LATER + timedelta(days=31)),
        (PRICE, PeriodSeen("sub_1", "cus_1", "price_pro", LATER, LATER + timedelta(days=31))),
    ),
    "incomplete": (changed(START, END, "incomplete"), (PRICE,)),
    "incomplete to active": (changed(START, END), (PRICE, SEEN)),
    "past due": (changed(START, END, "past_due"), (PRICE, SEEN)),
    "past due to active": (changed(START, END), (PRICE, SEEN)),
    "to be cancelled at the end": (
        changed(START, END, cancel_at_period_end=True, cancel_at=int(END.timestamp()), canceled_at=1),
        (PRICE, SEEN),
    ),
    "paused": (changed(START, LATER, "paused"), (PRICE, TRIAL)),
    "collection paused": (
        changed(START, END, pause_collection={"behavior": "void", "resumes_at": None}),
        (PRICE, SEEN),
    ),
    "resumed with a new anchor": (
        changed(LATER, END + timedelta(days=14)),
        (PRICE, PeriodSeen("sub_1", "cus_1", "price_pro", LATER, END + timedelta(days=14))),
    ),
    "ended": (
        changed(START, END, "canceled", ended_at=int(LATER.timestamp())),
        (PRICE, SEEN, SubscriptionEnded("sub_1", "cus_1", LATER)),
    ),
}


@pytest.mark.parametrize("name", sorted(TRANSITIONS))
def test_every_transition_of_a_subscription_says_where_it_is_and_whether_it_ended(name: str) -> None:
    document, expected = TRANSITIONS[name]
    assert facts_of(document) == expected


def test_rule_9_an_upgrade_with_a_new_anchor_begins_a_period_of_the_new_price() -> None:
    document = subscription("cus_1", "sub_1", LATER, END, plan="power", created=LATER)
    document["data"]["previous_attributes"] = {"items": a_subscription()["data"]["object"]["items"]}
    assert facts_of(document) == (
        PriceSeen("price_power", "power", "prod_power", LATER),
        PeriodSeen("sub_1", "cus_1", "price_power", LATER, END),
    )


# Invoices, paid and unpaid in every way


@pytest.mark.parametrize(
    "type_",
    [
        "invoice.created",
        "invoice.finalized",
        "invoice.payment_failed",
        "invoice.payment_action_required",
        "invoice.voided",
        "invoice.marked_uncollectible",
    ],
)
def test_rule_14_an_invoice_that_nobody_paid_is_no_fact(type_: str) -> None:
    document = invoice_unpaid(type_, "cus_1", "sub_1", START, END)
    assert reduce_event(document) == EventFacts(document["id"], type_, START, ())
    assert type_ not in HANDLED_TYPES


def test_rule_14_what_was_paid_outside_of_stripe_was_paid() -> None:
    """`amount_paid` has it, the payment is a record of it, and no charge and no intent stands behind it."""
    assert facts_of(an_invoice()) == (PAID,)
    record = paid_by("in_1", None, START, payment_record="pr_1")
    (fact,) = facts_of(record)
    assert fact == InvoicePaymentSeen(record["data"]["object"]["id"], "in_1", None, 2900, START)


def test_rule_14_what_is_only_said_to_be_paid_outside_of_stripe_was_not() -> None:
    document = an_invoice(amount_paid=0, total=2900)
    document["data"]["object"] |= {"amount_paid_off_stripe": 2900, "paid_out_of_band": True}
    (fact,) = facts_of(document)
    assert isinstance(fact, PeriodPaid)
    assert fact.amount_paid == 0


def test_rule_14_a_balance_pays_nothing_and_tax_belongs_to_what_is_paid() -> None:
    document = an_invoice(amount_paid=451, total=3451)
    taxed = {"starting_balance": -3000, "total_taxes": [{"amount": 551}], "total_excluding_tax": 2900}
    document["data"]["object"] |= taxed
    document["data"]["object"]["lines"]["data"][0] |= {"amount": 2900, "taxes": [{"amount": 551}]}
    (fact,) = facts_of(document)
    assert isinstance(fact, PeriodPaid)
    assert (fact.amount_paid, fact.total, fact.lines) == (451, 3451, (PAID_LINE,))


def test_rule_14_every_line_is_told_with_the_time_that_it_pays_for() -> None:
    year = START + timedelta(days=365)
    lines = [
        line("pro", START, END, -1450, proration=True),
        line("power", START, END, 3950, proration=True),
        line("power", END, year, 79000),
        line("seats", END, END + timedelta(days=31), 500),
    ]
    (fact,) = facts_of(an_invoice(lines=lines, amount_paid=82000))
    assert isinstance(fact, PeriodPaid)
    assert fact.lines == (
        PaidLine("price_pro", "prod_pro", START, END, True, -1450),
        PaidLine("price_power", "prod_power", START, END, True, 3950),
        PaidLine("price_power", "prod_power", END, year, False, 79000),
        PaidLine("price_seats", "prod_seats", END, END + timedelta(days=31), False, 500),
    )


# What is given back, disputed, and sold


@pytest.mark.parametrize("amount", [1, 900, 2900])
def test_rule_20_a_refund_tells_how_much_of_which_payment_was_given_back(amount: int) -> None:
    document = charge_refunded("pi_1", amount, customer="cus_1", charge_id="ch_1")
    assert facts_of(document) == (RefundSeen("ch_1", "cus_1", "pi_1", amount),)
    document["data"]["object"] |= {"customer": {"id": "cus_1"}, "payment_intent": {"id": "pi_1"}}
    assert facts_of(document) == (RefundSeen("ch_1", "cus_1", "pi_1", amount),)


def test_a_charge_need_not_name_its_customer_or_its_intent() -> None:
    assert facts_of(charge_refunded(None, 900, charge_id="ch_1")) == (RefundSeen("ch_1", None, None, 900),)


def test_a_charge_of_which_nothing_was_given_back_says_nothing() -> None:
    assert facts_of(charge_refunded("pi_1", 0)) == ()


@pytest.mark.parametrize("type_", ["created", "updated", "funds_withdrawn", "funds_reinstated", "closed"])
@pytest.mark.parametrize("status", ["needs_response", "under_review", "won", "lost", "warning_closed", "new_to_us"])
def test_rule_20_a_dispute_tells_how_it_stands(type_: str, status: str) -> None:
    document = dispute("pi_1", status, dispute_id="du_1", type_=type_, created=START)
    assert facts_of(document) == (DisputeSeen("du_1", "ch_disputed", "pi_1", status, START),)
    document["data"]["object"] |= {"charge": {"id": "ch_disputed", "object": "charge"}, "payment_intent": None}
    assert facts_of(document) == (DisputeSeen("du_1", "ch_disputed", None, status, START),)


@pytest.mark.parametrize("type_", ["created", "updated"])
def test_a_price_tells_its_key_and_product(type_: str) -> None:
    document = price("price_pro", "pro", type_=type_, created=START)
    assert facts_of(document) == (PRICE,)
    document["data"]["object"] |= {"lookup_key": None, "product": {"id": "prod_pro", "name": SECRET}}
    assert facts_of(document) == (PriceSeen("price_pro", None, "prod_pro", START),)


A_REFUND, A_DISPUTE, A_PRICE = (
    charge_refunded("pi_1", 900),
    dispute("pi_1", "lost"),
    price("price_pro", "pro", created=START),
)
BROKEN_REVERSALS: dict[str, tuple[Event, Breaking]] = {
    "a refund below zero": (A_REFUND, _set(*OBJECT, "amount_refunded", value=-1)),
    "a refund beyond all money": (A_REFUND, _set(*OBJECT, "amount_refunded", value=2**63)),
    "a refund of nothing known": (A_REFUND, _set(*OBJECT, "amount_refunded", value=None)),
    "a charge without an id": (A_REFUND, _set(*OBJECT, "id", value=None)),
    "a charge of a customer that is a number": (A_REFUND, _set(*OBJECT, "customer", value=7)),
    "a dispute of no charge": (A_DISPUTE, _set(*OBJECT, "charge", value=None)),
    "a dispute without a status": (A_DISPUTE, _set(*OBJECT, "status", value=None)),
    "a dispute with an empty status": (A_DISPUTE, _set(*OBJECT, "status", value="")),
    "an intent with NUL": (A_DISPUTE, _set(*OBJECT, "payment_intent", value=f"{SECRET}\0")),
    "a sold price without an id": (A_PRICE, _set(*OBJECT, "id", value=None)),
    "a version that is a number": (A_PRICE, _set("api_version", value=20261028)),
}


@pytest.mark.parametrize("name", sorted(BROKEN_REVERSALS))
def test_a_malformed_reversal_or_price_is_refused(name: str) -> None:
    document, break_it = BROKEN_REVERSALS[name]
    document = copy.deepcopy(document)
    assert facts_of(document)
    break_it(document)
    with pytest.raises(MalformedEventError) as refused:
        reduce_event(document)
    assert SECRET not in str(refused.value)
    assert str(refused.value)
