"""Which payment of a referee counts, and for which plan: rule 14."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from program.doubts import Doubt
from program.payments import (
    Line,
    Payment,
    QualifyingPayment,
    UnknownPriceError,
    first_qualifying_payment,
    plan_paid_for,
)
from program.plans import NotPlans, Plans, Price

MONDAY = datetime(2027, 3, 1, 9, tzinfo=UTC)
STARTER = Price("price_starter", "starter")
PRO = Price("price_pro", "pro")
POWER = Price("price_power", "power")
NEW = Price("price_new", "not_in_the_plans_yet")
FOREIGN = Price("price_foreign")


def line(price: Price, amount: int = 2900, *, proration: bool = False) -> Line:
    return Line(price, proration, amount)


def payment(*lines: Line, invoice: str = "in_1", day: int = 0, amount_paid: int = 2900) -> Payment:
    return Payment(invoice, MONDAY + timedelta(days=day), amount_paid, lines)


def test_rule_14_a_paid_invoice_of_a_plan_qualifies(plans: Plans) -> None:
    first = payment(line(PRO))

    assert first_qualifying_payment([first], plans) == QualifyingPayment(first, plans.named("pro"))


def test_rule_14_nothing_paid_nothing_qualifies(plans: Plans) -> None:
    assert first_qualifying_payment([], plans) is None


@pytest.mark.parametrize(
    "unpaid",
    [
        payment(line(PRO, 0), amount_paid=0),
        payment(line(PRO, 2900), line(PRO, -2900, proration=True), amount_paid=0),
        payment(line(PRO, 2900), amount_paid=0),
    ],
    ids=["a trial or a full coupon", "settled by a credit", "settled from the customer's balance"],
)
def test_rule_14_an_invoice_that_moved_no_money_does_not_qualify(plans: Plans, unpaid: Payment) -> None:
    assert first_qualifying_payment([unpaid], plans) is None


def test_rule_14_the_first_real_payment_after_a_trial_qualifies(plans: Plans) -> None:
    trial = payment(line(PRO, 0), invoice="in_trial", amount_paid=0)
    real = payment(line(PRO), invoice="in_real", day=14)

    assert first_qualifying_payment([trial, real], plans) == QualifyingPayment(real, plans.named("pro"))


def test_rule_14_a_cent_is_a_payment(plans: Plans) -> None:
    discounted = payment(line(POWER, 1), amount_paid=1)

    assert first_qualifying_payment([discounted], plans) == QualifyingPayment(discounted, plans.named("power"))


def test_rule_14_the_earliest_payment_wins_in_whatever_order_they_are_known(plans: Plans) -> None:
    early, late = payment(line(STARTER), invoice="in_9"), payment(line(POWER), invoice="in_1", day=1)

    for known in ([early, late], [late, early]):
        assert first_qualifying_payment(known, plans) == QualifyingPayment(early, plans.named("starter"))


def test_rule_14_the_plan_is_of_the_line_that_is_no_proration(plans: Plans) -> None:
    changed = payment(line(STARTER, 900), line(POWER, 5000, proration=True), line(PRO, -500, proration=True))

    assert plan_paid_for(changed, plans) == plans.named("starter")


def test_rule_14_of_several_lines_the_plan_with_most_minutes(plans: Plans) -> None:
    both = [line(STARTER, 900), line(POWER, 7900), line(PRO, 2900)]

    for lines in (both, both[::-1]):
        assert plan_paid_for(payment(*lines), plans) == plans.named("power")


def test_rule_14_a_yearly_price_counts_one_month_s_minutes(plans: Plans) -> None:
    yearly = payment(line(Price("price_pro_yearly", "pro_yearly"), 29_000), amount_paid=29_000)

    found = first_qualifying_payment([yearly], plans)

    assert found is not None
    assert (found.plan.minutes, found.plan.bonus) == (360, 90)


def test_rule_14_with_prorations_alone_it_is_what_they_charge_for(plans: Plans) -> None:
    upgraded = payment(line(POWER, -7900, proration=True), line(PRO, 1450, proration=True))

    assert plan_paid_for(upgraded, plans) == plans.named("pro")


def test_rule_14_a_proration_that_charges_nothing_buys_nothing(plans: Plans) -> None:
    moved = payment(line(POWER, 0, proration=True), line(PRO, -1, proration=True))

    assert plan_paid_for(moved, plans) is None
    assert first_qualifying_payment([moved], plans) is None


def test_rule_14_beside_a_plan_other_lines_do_not_matter(plans: Plans) -> None:
    with_extra = payment(line(FOREIGN, 500), line(PRO))

    assert first_qualifying_payment([with_extra], plans) == QualifyingPayment(with_extra, plans.named("pro"))


def test_rule_14_a_real_payment_none_of_whose_lines_can_be_read_is_named_and_not_forgotten(plans: Plans) -> None:
    with pytest.raises(UnknownPriceError, match=r"in_1$"):
        first_qualifying_payment([payment()], plans)


def test_rule_14_paid_for_prices_that_sell_no_known_plan_they_are_named(plans: Plans) -> None:
    with pytest.raises(UnknownPriceError, match=r"no plan is known for price_foreign, price_new$") as refused:
        first_qualifying_payment([payment(line(NEW)), payment(line(FOREIGN), invoice="in_2")], plans)

    assert refused.value.prices == {"price_new", "price_foreign"}


def test_rule_14_a_known_price_is_not_called_unknown(plans: Plans) -> None:
    with pytest.raises(UnknownPriceError) as refused:
        first_qualifying_payment([payment(line(NEW), line(PRO, 100, proration=True))], plans)

    assert refused.value.prices == {"price_new"}


@pytest.mark.parametrize(
    "listed",
    [
        NotPlans(prices=frozenset({"price_extra"})),
        NotPlans(lookup_keys=frozenset({"extra"})),
        NotPlans(products=frozenset({"prod_extra"})),
    ],
)
def test_rule_14_what_is_listed_as_no_plan_neither_qualifies_nor_asks_for_attention(
    plans: Plans, listed: NotPlans
) -> None:
    known = Plans(plans, listed)
    extra = payment(line(Price("price_extra", "extra", "prod_extra")))
    real = payment(line(PRO), invoice="in_2", day=3)

    with pytest.raises(UnknownPriceError):
        first_qualifying_payment([extra], plans)
    assert first_qualifying_payment([extra], known) is None
    assert first_qualifying_payment([extra, real], known) == QualifyingPayment(real, plans.named("pro"))
    with pytest.raises(UnknownPriceError) as refused:
        first_qualifying_payment([extra, payment(line(NEW), invoice="in_3")], known)
    assert refused.value.prices == {"price_new"}


def test_rule_14_what_names_a_price_most_closely_decides_whether_it_sells_a_plan(plans: Plans) -> None:
    pro = replace(plans.named("pro"), products=frozenset({"prod_pro"}))
    known = Plans(
        [pro],
        NotPlans(prices=frozenset({"price_setup"}), products=frozenset({"prod_other"})),
    )

    assert known.sold_by(Price("price_setup", "pro", "prod_pro")) is None
    assert known.sold_by(Price("price_monthly", "pro", "prod_other")) == pro
    assert not known.place(Price("price_nobody_knows"))


def test_rule_14_an_unknown_price_does_not_stand_in_the_way_of_a_known_one(plans: Plans) -> None:
    unknown, known = payment(line(FOREIGN)), payment(line(PRO), invoice="in_2", day=30)

    assert first_qualifying_payment([unknown, known], plans) == QualifyingPayment(known, plans.named("pro"))


def test_rule_14_an_unknown_price_that_cost_nothing_is_no_trouble(plans: Plans) -> None:
    assert first_qualifying_payment([payment(line(NEW), amount_paid=0)], plans) is None


PLAN_OF = {STARTER: "starter", PRO: "pro", POWER: "power"}

lines = st.builds(Line, st.sampled_from([STARTER, PRO, POWER, NEW, FOREIGN]), st.booleans(), st.integers(-3000, 8000))
histories = st.lists(
    st.builds(
        Payment,
        st.uuids().map(str),
        st.integers(0, 6).map(lambda day: MONDAY + timedelta(days=day)),
        st.integers(0, 2),
        st.lists(lines, max_size=3).map(tuple),
    ),
    max_size=6,
    unique_by=lambda payment: payment.invoice,
)


def outcome(known: list[Payment], plans: Plans) -> QualifyingPayment | frozenset[str] | None:
    """What was found, or which prices stood in the way."""
    try:
        return first_qualifying_payment(known, plans)
    except UnknownPriceError as error:
        return error.prices


@given(data=st.data(), known=histories)
@settings(max_examples=200, deadline=None)
def test_rule_14_no_order_and_no_repetition_of_the_facts_matters(
    plans: Plans, data: st.DataObject, known: list[Payment]
) -> None:
    repeated = known + (data.draw(st.lists(st.sampled_from(known), max_size=4)) if known else [])

    assert outcome(data.draw(st.permutations(repeated)), plans) == outcome(known, plans)


@given(known=histories)
@settings(max_examples=300, deadline=None)
def test_rule_14_what_is_found_is_real_and_nothing_earlier_would_do(plans: Plans, known: list[Payment]) -> None:
    found = outcome(known, plans)
    real = [payment for payment in known if payment.amount_paid > 0]

    if isinstance(found, QualifyingPayment):
        assert found.payment in real
        assert found.plan.id in {PLAN_OF.get(line.price) for line in found.payment.lines}
        earlier = [payment for payment in real if payment.paid_at < found.payment.paid_at]
        assert all(plan_paid_for(payment, plans) is None for payment in earlier)
    else:
        assert all(plan_paid_for(payment, plans) is None for payment in real)
        strange = {line.price.id for payment in real for line in payment.lines if line.price not in PLAN_OF}
        strange |= {payment.invoice for payment in real if not payment.lines}
        assert (found or set()) == strange


@given(known=histories, free=histories)
@settings(max_examples=100, deadline=None)
def test_rule_14_free_invoices_change_nothing(plans: Plans, known: list[Payment], free: list[Payment]) -> None:
    unpaid = [Payment(invoice.invoice, invoice.paid_at, 0, invoice.lines) for invoice in free]

    assert outcome(known + unpaid, plans) == outcome(known, plans)


@given(bought=st.lists(lines, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_rule_14_prorations_beside_a_real_line_change_nothing(plans: Plans, bought: list[Line]) -> None:
    real = [line for line in bought if not line.proration]
    sold = [plans.named(PLAN_OF[line.price]).minutes for line in real if line.price in PLAN_OF]
    plan = plan_paid_for(payment(*bought), plans)

    if real:
        assert (plan.minutes if plan else None) == max(sold, default=None)
        assert plan_paid_for(payment(*real), plans) == plan


def test_rule_14_a_payment_that_was_wholly_refunded_does_not_qualify_and_the_next_one_does(plans: Plans) -> None:
    refunded = replace(payment(line(STARTER), invoice="in_refunded"), refunded=2900)
    second = payment(line(PRO), invoice="in_second", day=3)

    assert first_qualifying_payment([refunded], plans) is None
    assert first_qualifying_payment([second, refunded], plans) == QualifyingPayment(second, plans.named("pro"))


@pytest.mark.parametrize(("refunded", "disputed"), [(1, False), (2899, False), (0, True)])
def test_rules_14_and_19_a_payment_refunded_in_part_or_disputed_is_doubtful(
    plans: Plans, refunded: int, disputed: bool
) -> None:
    paid = replace(payment(line(PRO)), refunded=refunded, disputed=disputed)
    qualifying = first_qualifying_payment([paid], plans)

    assert qualifying is not None
    assert qualifying.payment.doubts == ((Doubt.DISPUTED,) if disputed else (Doubt.REFUNDED_IN_PART,))
    assert payment(line(PRO)).doubts == ()
