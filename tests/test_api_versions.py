"""Which of Stripe's API versions are read: the newest and one back alike, too old ones refused aloud, never misread."""

import copy
from datetime import UTC, datetime, timedelta

import pytest
import stripe

from billing.events import (
    HANDLED_TYPES,
    NEWEST_VERSION,
    OLDEST_VERSION,
    MalformedEventError,
    UnsupportedVersionError,
    reduce_event,
)
from tests.http_support import Starter, assert_problem
from tests.stripe_events import (
    Event,
    as_before_basil,
    charge_refunded,
    checkout_completed,
    dispute,
    event,
    invoice_paid,
    invoice_payment_paid,
    price,
    rendered_for,
    subscription,
)

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
END = START + timedelta(days=30)

SUBSCRIPTION = subscription("cus_1", "sub_1", START, END, created=START)
INVOICE = invoice_paid("cus_1", "sub_1", START, END, invoice_id="in_1")
EVENTS: dict[str, Event] = {
    **{
        type_: subscription("cus_1", "sub_1", START, END, created=START, type_=type_)
        for type_ in HANDLED_TYPES
        if type_.startswith("customer.subscription.")
    },
    "invoice.paid": INVOICE,
    "invoice_payment.paid": invoice_payment_paid("in_1", START),
    "checkout.session.completed": checkout_completed("cus_1", "account-1"),
    "charge.refunded": charge_refunded("pi_1", 900, customer="cus_1"),
    **{
        type_: dispute("pi_1", "lost", type_=type_.removeprefix("charge.dispute."), created=START)
        for type_ in HANDLED_TYPES
        if type_.startswith("charge.dispute.")
    },
    "price.created": price("price_pro", "pro", type_="created", created=START),
    "price.updated": price("price_pro", "pro", created=START),
}

# What the newest version has, the version before it not, of the objects that are read.
ADDED_SINCE_DAHLIA = {
    "subscription": {"status_details": {"paused": None}},
    "invoice": {"status_details": {"uncollectible": None}},
    "dispute": {"intended_submission_method": None},
    "checkout.session": {"allowed_payment_method_types": None},
}

NEWEST = ("2026-10-28.endive", "2026-09-30.endive")
ONE_BACK = ("2026-08-26.dahlia", "2026-07-29.dahlia", "2026-06-24.dahlia", "2026-03-25.dahlia")
FITTING = ("2026-02-25.clover", "2025-09-30.clover", OLDEST_VERSION)
UNKNOWN = (None, "2027-03-31.fennel", "2026-12-16.endive", "2026-10-28.preview", "unversioned")
TOO_OLD = ("2025-04-30.basil", "2025-03-31.basil", "2025-02-24.acacia", "2024-06-20", "2011-01-01")


def test_the_newest_version_is_the_one_that_the_stripe_package_pins() -> None:
    """A new version of the package is a reason to compare the shapes again, and then to move this."""
    assert stripe.api_version == NEWEST_VERSION == NEWEST[0]


def test_there_is_an_event_of_every_type_that_is_handled() -> None:
    assert EVENTS.keys() == HANDLED_TYPES
    assert all(EVENTS[type_]["type"] == type_ and reduce_event(EVENTS[type_]).facts for type_ in EVENTS)


@pytest.mark.parametrize("type_", sorted(EVENTS))
@pytest.mark.parametrize("version", [*NEWEST, *ONE_BACK, *FITTING, *UNKNOWN])
def test_every_supported_version_tells_the_same_facts(version: str | None, type_: str) -> None:
    document = copy.deepcopy(EVENTS[type_])
    if version in NEWEST:
        document["data"]["object"] |= ADDED_SINCE_DAHLIA.get(document["data"]["object"]["object"], {})
    assert reduce_event(rendered_for(version, document)) == reduce_event(EVENTS[type_])


def test_an_event_may_name_no_version_at_all() -> None:
    document = dict(INVOICE)
    del document["api_version"]
    assert reduce_event(document) == reduce_event(INVOICE)


@pytest.mark.parametrize("type_", sorted(EVENTS))
@pytest.mark.parametrize("version", TOO_OLD)
def test_a_version_that_is_too_old_is_refused_in_words_that_help(version: str, type_: str) -> None:
    for document in (rendered_for(version, EVENTS[type_]), as_before_basil(EVENTS[type_], version)):
        with pytest.raises(UnsupportedVersionError) as refused:
            reduce_event(document)
        assert version[:10] in str(refused.value)
        assert f"upgrade the webhook endpoint's API version in Stripe to {NEWEST_VERSION}" in str(refused.value)


def test_a_version_too_old_is_a_malformed_event_to_whoever_knows_no_better() -> None:
    assert issubclass(UnsupportedVersionError, MalformedEventError)


@pytest.mark.parametrize("version", TOO_OLD)
def test_what_is_not_read_may_be_of_any_version(version: str) -> None:
    document = rendered_for(version, event("customer.created", {"id": "cus_1"}, START, "evt_1"))
    assert reduce_event(document).facts == ()


@pytest.mark.parametrize("version", [None, "2027-03-31.fennel"])
@pytest.mark.parametrize("document", [SUBSCRIPTION, INVOICE], ids=["subscription", "invoice"])
def test_a_shape_that_does_not_fit_is_never_a_silent_loss(document: Event, version: str | None) -> None:
    """An invoice whose subscription stands where it stood before basil would look like one of no subscription."""
    with pytest.raises(MalformedEventError):
        reduce_event(as_before_basil(document, version))


def test_a_line_whose_price_stands_where_it_did_is_never_left_out_silently() -> None:
    document = copy.deepcopy(INVOICE)
    line = document["data"]["object"]["lines"]["data"][0]
    line["price"] = {"id": line.pop("pricing")["price_details"]["price"]}
    with pytest.raises(MalformedEventError, match=r"price stands where it did before 2025-03-31\.basil"):
        reduce_event(document)


def test_an_invoice_whose_subscription_stands_where_it_did_is_never_one_of_none() -> None:
    document = copy.deepcopy(INVOICE)
    invoice = document["data"]["object"]
    invoice["subscription"] = invoice.pop("parent")["subscription_details"]["subscription"]
    with pytest.raises(MalformedEventError, match=r"subscription stands where it did before 2025-03-31\.basil"):
        reduce_event(document)


def test_a_long_version_is_not_repeated_whole() -> None:
    with pytest.raises(UnsupportedVersionError) as refused:
        reduce_event(rendered_for("2024-06-20; account_beta=secret", INVOICE))
    assert "secret" not in str(refused.value)


READ: dict[type[stripe.StripeObject], set[str]] = {
    stripe.Event: {"id", "type", "api_version", "created", "data"},
    stripe.Subscription: {"id", "customer", "status", "ended_at", "items"},
    stripe.SubscriptionItem: {"price", "current_period_start", "current_period_end"},
    stripe.Invoice: {"id", "customer", "amount_paid", "total", "parent", "status_transitions", "lines"},
    stripe.InvoiceLineItem: {"amount", "period", "pricing", "parent"},
    stripe.InvoiceLineItem.Pricing: {"price_details"},
    stripe.InvoiceLineItem.Pricing.PriceDetails: {"price", "product"},
    stripe.InvoiceLineItem.Parent.SubscriptionItemDetails: {"proration"},
    stripe.InvoiceLineItem.Parent.InvoiceItemDetails: {"proration"},
    stripe.Invoice.Parent.SubscriptionDetails: {"subscription"},
    stripe.InvoicePayment: {"id", "invoice", "amount_paid", "payment", "status_transitions"},
    stripe.InvoicePayment.Payment: {"payment_intent", "charge"},
    stripe.checkout.Session: {"customer", "client_reference_id"},
    stripe.Charge: {"id", "customer", "payment_intent", "amount_refunded"},
    stripe.Dispute: {"id", "charge", "payment_intent", "status"},
    stripe.Price: {"id", "lookup_key", "product"},
}


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__qualname__)
def test_the_stripe_package_documents_everything_that_is_read(kind: type[stripe.StripeObject]) -> None:
    assert READ[kind] <= kind.__annotations__.keys()


async def test_the_webhook_answers_an_old_version_with_what_to_do(starter: Starter) -> None:
    now = datetime.now(UTC)
    old = as_before_basil(invoice_paid("cus_1", "sub_1", now, now + timedelta(days=30)))
    answer = await starter.stripe(old)
    assert_problem(answer, 400, "malformed-event")
    problem = answer.json()
    assert "2025-02-24 is older than" in problem["detail"]
    assert "upgrade the webhook endpoint's API version" in problem["detail"]
    taken = await starter.stripe(invoice_paid("cus_1", "sub_1", now, now + timedelta(days=30)))
    assert taken.json() == {"handled": True}
