"""Billing cycles: paid subscribers (rule 1), how long a bonus can be used (rules 7 and 8), what moves that (rule 9)."""

import calendar
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from program.cycles import Period, bonus_expiry, cycle_at, expired, is_paid_subscriber, moved_expiry

INSTANT = timedelta(microseconds=1)
DAYS_31 = timedelta(days=31)

moments = st.datetimes(datetime(2023, 1, 1), datetime(2033, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(text: str) -> datetime:
    """A time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def paid(start: str, end: str, subscription: str = "sub") -> Period:
    return Period(subscription, at(start), at(end), paid=True)


def seen(start: str, end: str, subscription: str = "sub") -> Period:
    return Period(subscription, at(start), at(end), paid=False)


def months_after(anchor: datetime, months: int) -> datetime:
    """The renewal as Stripe dates it: the anchor's day, or the month's last where there is no such day."""
    years, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + years, month + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, calendar.monthrange(year, month)[1]))


def renewals(anchor: datetime, months: int, *, step: int = 1, subscription: str = "sub") -> list[Period]:
    """The paid periods of a subscription, one after the other."""
    ends = [months_after(anchor, number) for number in range(0, months + 1, step)]
    return [Period(subscription, start, end, paid=True) for start, end in pairwise(ends)]


def inside(period: Period) -> st.SearchStrategy[datetime]:
    """Any moment of a period, its very first and last among them."""
    length = (period.end - period.start) // INSTANT
    return st.integers(0, length - 1).map(lambda after: period.start + after * INSTANT)


# Rule 1: who is a paid subscriber.

JANUARY = paid("2027-01-15T12:00", "2027-02-15T12:00")


@pytest.mark.parametrize(
    ("now", "subscriber"),
    [
        ("2027-01-15T11:59:59.999999", False),
        ("2027-01-15T12:00:00", True),
        ("2027-02-15T11:59:59.999999", True),
        ("2027-02-15T12:00:00", True),
        ("2027-02-18T11:59:59.999999", True),
        ("2027-02-18T12:00:00", False),
        ("2028-01-20T12:00:00", False),
    ],
)
def test_rule_1_a_renewal_is_waited_for_three_days_and_no_longer(now: str, subscriber: bool) -> None:
    assert is_paid_subscriber(at(now), [JANUARY], {}) is subscriber


@pytest.mark.parametrize(
    ("ended", "now", "subscriber"),
    [
        # What is paid for is paid for, also where the subscription was ended within it.
        ("2027-02-01T00:00", "2027-02-15T11:59:59.999999", True),
        ("2027-02-01T00:00", "2027-02-15T12:00:00", False),
        ("2027-02-15T12:00", "2027-02-15T12:00:00", False),
        # Given up within the three days.
        ("2027-02-16T00:00", "2027-02-15T23:59:59.999999", True),
        ("2027-02-16T00:00", "2027-02-16T00:00:00", False),
    ],
)
def test_rule_1_nothing_is_waited_for_once_the_subscription_has_ended(ended: str, now: str, subscriber: bool) -> None:
    assert is_paid_subscriber(at(now), [JANUARY], {"sub": at(ended)}) is subscriber


def test_rule_1_another_subscription_s_end_changes_nothing() -> None:
    assert is_paid_subscriber(at("2027-02-16"), [JANUARY], {"other": at("2027-02-01")})


def test_rule_1_one_running_subscription_of_several_is_enough() -> None:
    other = paid("2027-02-01", "2027-03-01", "other")

    assert is_paid_subscriber(at("2027-02-20"), [JANUARY, other], {"sub": at("2027-02-15T12:00")})
    assert not is_paid_subscriber(at("2027-03-02"), [JANUARY, other], {"other": at("2027-03-01")})


def test_rule_1_a_period_that_nobody_paid_for_makes_no_subscriber() -> None:
    trial = seen("2027-01-15", "2027-02-15")

    assert not is_paid_subscriber(at("2027-01-20"), [trial], {})
    assert not is_paid_subscriber(at("2027-02-16"), [trial], {})
    assert not is_paid_subscriber(at("2027-01-20"), [], {})


def test_rule_1_a_paid_period_is_as_long_as_the_longest_one_seen_with_its_start() -> None:
    longer = Period("sub", JANUARY.start, at("2027-03-01T12:00"), paid=False)

    for periods in ([JANUARY, longer], [longer, JANUARY]):
        assert is_paid_subscriber(at("2027-03-04T11:59:59"), periods, {})
        assert not is_paid_subscriber(at("2027-03-04T12:00"), periods, {})
    assert not is_paid_subscriber(at("2027-02-25"), [JANUARY, seen("2027-01-16", "2027-03-01")], {})
    other = Period("other", JANUARY.start, longer.end, paid=False)
    assert not is_paid_subscriber(at("2027-02-25"), [JANUARY, other], {})


@given(st.data(), moments, st.integers(1, 14), st.sampled_from([1, 12]))
@settings(max_examples=60, deadline=None)
def test_rule_1_who_keeps_paying_is_a_subscriber_without_a_gap(
    data: st.DataObject, anchor: datetime, months: int, step: int
) -> None:
    periods = renewals(anchor, months * step, step=step)
    known = data.draw(st.integers(1, len(periods)), label="renewals collected so far")
    late = data.draw(st.integers(0, timedelta(days=3) // INSTANT - 1), label="how late the next one is") * INSTANT
    now = data.draw(
        inside(Period("", anchor, periods[known - 1].end, paid=True)) | st.just(periods[known - 1].end + late)
    )

    assert is_paid_subscriber(now, data.draw(st.permutations(periods[:known])), {})
    assert not is_paid_subscriber(periods[known - 1].end + timedelta(days=3), periods[:known], {})
    assert not is_paid_subscriber(anchor - INSTANT, periods, {})


# The cycle that an account is in.


def test_rule_7_a_cycle_begins_with_its_first_instant_and_is_over_at_its_end() -> None:
    february = paid("2027-02-15T12:00", "2027-03-15T12:00")

    for periods in ([JANUARY, february], [february, JANUARY]):
        assert cycle_at(JANUARY.start - INSTANT, periods) is None
        assert cycle_at(JANUARY.start, periods) == JANUARY
        assert cycle_at(february.start - INSTANT, periods) == JANUARY
        assert cycle_at(february.start, periods) == february
        assert cycle_at(february.end, periods) is None


def test_rule_7_of_several_subscriptions_the_cycle_that_ends_last_counts() -> None:
    early, late = paid("2027-01-20", "2027-02-10", "a"), paid("2027-01-10", "2027-02-20", "b")

    for periods in ([early, late], [late, early]):
        assert cycle_at(at("2027-01-25"), periods) == late
        assert bonus_expiry(at("2027-01-25"), periods) == late.end


def test_rule_7_a_period_that_nobody_paid_for_is_no_cycle() -> None:
    assert cycle_at(at("2027-01-20"), [seen("2027-01-15", "2027-02-15")]) is None


# Rules 7 and 8: when a grant expires.


@pytest.mark.parametrize(
    ("cycle", "credited_at", "expires_at"),
    [
        # A month of 28, 29, 30 and 31 days: never cut short.
        (("2027-02-01", "2027-03-01"), "2027-02-01", "2027-03-01"),
        (("2028-02-01", "2028-03-01"), "2028-02-01", "2028-03-01"),
        (("2027-04-01", "2027-05-01"), "2027-04-01", "2027-05-01"),
        (("2027-01-01", "2027-02-01"), "2027-01-01", "2027-02-01"),
        # The end of a month, and the leap day.
        (("2027-01-31", "2027-02-28"), "2027-02-27T23:59:59.999999", "2027-02-28"),
        (("2028-01-31", "2028-02-29"), "2028-02-28", "2028-02-29"),
        (("2028-02-29", "2028-03-31"), "2028-02-29", "2028-03-31"),
        (("2027-02-28", "2027-03-31"), "2027-02-28", "2027-03-31"),
        (("2027-12-31", "2028-01-31"), "2027-12-31", "2028-01-31"),
        # A year is capped, and runs out as any other cycle at its end.
        (("2028-01-10", "2029-01-10"), "2028-01-31T08:30", "2028-03-02T08:30"),
        (("2027-01-10", "2028-01-10"), "2027-01-31T08:30", "2027-03-03T08:30"),
        (("2027-02-28", "2028-02-28"), "2028-02-01", "2028-02-28"),
        (("2027-01-10", "2028-01-10"), "2027-12-10T00:00", "2028-01-10"),
        (("2027-01-10", "2028-01-10"), "2027-12-09T23:59:59", "2028-01-09T23:59:59"),
        # A quarter.
        (("2027-11-30", "2028-02-29"), "2028-01-29", "2028-02-29"),
        (("2027-11-30", "2028-02-29"), "2028-01-28", "2028-02-28"),
    ],
)
def test_rule_7_the_cycle_s_end_and_31_days_at_most(cycle: tuple[str, str], credited_at: str, expires_at: str) -> None:
    assert bonus_expiry(at(credited_at), [paid(*cycle)]) == at(expires_at)


@given(st.data(), moments, st.timedeltas(INSTANT, timedelta(days=800)))
@settings(max_examples=150, deadline=None)
def test_rule_7_any_cycle_of_any_length(data: st.DataObject, start: datetime, length: timedelta) -> None:
    cycle = Period("sub", start, start + length, paid=True)
    credited_at = data.draw(inside(cycle))

    assert bonus_expiry(credited_at, [cycle]) == min(cycle.end, credited_at + DAYS_31)


@given(st.data(), moments, st.integers(0, 24))
@settings(max_examples=150, deadline=None)
@example(data=None, anchor=at("2027-01-31"), month=0)
@example(data=None, anchor=at("2028-01-31"), month=1)
@example(data=None, anchor=at("2028-02-29T23:59:59"), month=12)
def test_rule_7_no_monthly_cycle_is_cut_short(data: st.DataObject | None, anchor: datetime, month: int) -> None:
    periods = renewals(anchor, month + 1)
    cycle = periods[month]
    credited_at = data.draw(inside(cycle)) if data else cycle.start

    assert bonus_expiry(credited_at, periods) == cycle.end
    assert bonus_expiry(cycle.start, periods) == cycle.end


def test_rule_7_a_grant_is_expired_at_its_expiry_and_not_before() -> None:
    expires_at = at("2028-02-29T23:59:59")

    assert not expired(expires_at, expires_at - INSTANT)
    assert expired(expires_at, expires_at)
    assert expired(expires_at, expires_at + INSTANT)


@pytest.mark.parametrize(
    "periods",
    [
        [],
        [paid("2027-01-01", "2027-02-01")],
        [paid("2027-01-10T12:00", "2027-02-10T12:00")],
        [seen("2027-01-15", "2027-02-15")],
    ],
    ids=["never paid", "lapsed", "over this instant", "a trial within the 31 days"],
)
def test_rule_8_without_a_cycle_31_days(periods: list[Period]) -> None:
    credited_at = at("2027-02-10T12:00")

    assert bonus_expiry(credited_at, periods) == at("2027-03-13T12:00")


def test_rule_8_31_days_over_a_leap_day() -> None:
    assert bonus_expiry(at("2028-02-10T12:00"), []) == at("2028-03-12T12:00")


@given(st.data(), moments, st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_rule_8_a_cycle_that_is_over_gives_31_days_however_late(
    data: st.DataObject, anchor: datetime, months: int
) -> None:
    periods = renewals(anchor, months)
    late = data.draw(st.timedeltas(timedelta(0), timedelta(days=400)))
    credited_at = periods[-1].end + late

    assert bonus_expiry(credited_at, periods) == credited_at + DAYS_31


# Rule 9: what moves an expiry.

CREDITED_AT = at("2027-01-20T12:00")
CYCLE_END = JANUARY.end


@pytest.mark.parametrize(
    ("later", "expires_at"),
    [
        # The anchor was reset: a new period begins within the old one.
        (paid("2027-02-01", "2027-02-18"), "2027-02-18"),
        (seen("2027-02-01", "2027-02-18"), "2027-02-18"),
        (paid("2027-02-01", "2027-03-01"), "2027-02-20T12:00"),
        (paid("2027-02-15T11:59:59.999999", "2027-02-18"), "2027-02-18"),
        # A trial was added: the same period ends later.
        (seen("2027-01-15T12:00", "2027-02-19"), "2027-02-19"),
        (seen("2027-01-15T12:00", "2027-03-19"), "2027-02-20T12:00"),
        # Another subscription of the account.
        (paid("2027-02-01", "2027-02-18", "other"), "2027-02-18"),
        # A renewal, on time or late.
        (paid("2027-02-15T12:00", "2027-03-15T12:00"), "2027-02-15T12:00"),
        (paid("2027-02-15T12:00:01", "2027-03-15T12:00"), "2027-02-15T12:00"),
        (paid("2027-02-18", "2027-03-15T12:00"), "2027-02-15T12:00"),
        # Nothing makes it earlier.
        (paid("2027-02-01", "2027-02-15T11:59:59"), "2027-02-15T12:00"),
        (seen("2027-01-15T12:00", "2027-02-01"), "2027-02-15T12:00"),
        (paid("2027-02-01", "2027-02-15T12:00"), "2027-02-15T12:00"),
    ],
)
def test_rule_9_what_a_later_period_does_to_the_expiry(later: Period, expires_at: str) -> None:
    assert moved_expiry(CYCLE_END, CREDITED_AT, [JANUARY, later]) == at(expires_at)
    assert bonus_expiry(CREDITED_AT, [later, JANUARY]) == at(expires_at)


def test_rule_9_one_period_may_take_the_grant_to_the_next() -> None:
    first, second = paid("2027-02-10", "2027-02-17"), paid("2027-02-16", "2027-02-19")

    assert moved_expiry(CYCLE_END, CREDITED_AT, [JANUARY, second]) == CYCLE_END
    assert moved_expiry(CYCLE_END, CREDITED_AT, [second, first, JANUARY]) == second.end


def test_rule_9_without_periods_nothing_moves() -> None:
    assert moved_expiry(CYCLE_END, CREDITED_AT, []) == CYCLE_END


@given(st.data(), moments, st.integers(0, 13), st.integers(1, 6), st.timedeltas(timedelta(0), timedelta(days=3)))
@settings(max_examples=80, deadline=None)
def test_rule_9_renewals_move_nothing(
    data: st.DataObject, anchor: datetime, month: int, later: int, late: timedelta
) -> None:
    periods = renewals(anchor, month + 1 + later)
    cycle, following = periods[month], periods[month + 1 :]
    credited_at = data.draw(inside(cycle))
    # Stripe collects late, but the period begins when the old one ends; a new subscription begins when it begins.
    renewed = [Period("new", period.start + late, period.end, paid=False) for period in following]

    assert bonus_expiry(credited_at, periods[: month + 1]) == cycle.end
    assert bonus_expiry(credited_at, periods + renewed) == cycle.end
    assert moved_expiry(cycle.end, credited_at, periods + renewed) == cycle.end


# Halves of a day around one credit, so that beginnings and ends often meet.
HALF_DAY = timedelta(hours=12)
CREDIT = at("2028-02-10T00:00")


def half_days(lowest: int, highest: int) -> st.SearchStrategy[datetime]:
    return st.integers(lowest, highest).map(lambda number: CREDIT + number * HALF_DAY)


periods_around = st.lists(
    st.builds(
        lambda subscription, start, length, paid: Period(subscription, start, start + length * HALF_DAY, paid),
        st.sampled_from(["a", "b"]),
        half_days(-20, 70),
        st.integers(1, 90),
        st.booleans(),
    ),
    max_size=8,
)
expiries = half_days(1, 62)


def by_fixpoint(expires_at: datetime, periods: Sequence[Period]) -> datetime:
    """Rule 9 as it reads, applied until nothing more moves."""
    cap = CREDIT + DAYS_31
    while movers := [p for p in periods if p.start < expires_at < p.end and min(p.end, cap) > expires_at]:
        expires_at = min(movers[0].end, cap)
    return expires_at


@given(expiries, periods_around)
@settings(max_examples=300, deadline=None)
def test_rule_9_all_that_can_move_the_expiry_has_moved_it(expires_at: datetime, periods: list[Period]) -> None:
    assert moved_expiry(expires_at, CREDIT, periods) == by_fixpoint(expires_at, periods)


@given(half_days(1, 80), periods_around, periods_around)
@settings(max_examples=200, deadline=None)
def test_rule_9_never_earlier_never_past_the_cap_and_more_periods_only_add(
    expires_at: datetime, some: list[Period], more: list[Period]
) -> None:
    moved = moved_expiry(expires_at, CREDIT, some)

    assert expires_at <= moved <= max(expires_at, CREDIT + DAYS_31)
    assert moved <= moved_expiry(expires_at, CREDIT, some + more)
    assert bonus_expiry(CREDIT, some) <= CREDIT + DAYS_31


@given(expiries, periods_around)
@settings(max_examples=150, deadline=None)
def test_rule_9_applied_again_nothing_more_moves(expires_at: datetime, periods: list[Period]) -> None:
    moved = moved_expiry(expires_at, CREDIT, periods)

    assert moved_expiry(moved, CREDIT, periods) == moved
    expiry = bonus_expiry(CREDIT, periods)
    assert moved_expiry(expiry, CREDIT, periods) == expiry


@given(st.data(), expiries, periods_around)
@settings(max_examples=150, deadline=None)
def test_rule_9_order_and_repetition_of_the_facts_change_nothing(
    data: st.DataObject, expires_at: datetime, periods: list[Period]
) -> None:
    repeated = periods + (data.draw(st.lists(st.sampled_from(periods), max_size=5)) if periods else [])
    shuffled = data.draw(st.permutations(repeated))

    assert moved_expiry(expires_at, CREDIT, shuffled) == moved_expiry(expires_at, CREDIT, periods)
    assert bonus_expiry(CREDIT, shuffled) == bonus_expiry(CREDIT, periods)
    assert cycle_at(CREDIT, shuffled) == cycle_at(CREDIT, periods)
    assert is_paid_subscriber(CREDIT, shuffled, {}) == is_paid_subscriber(CREDIT, periods, {})


@given(st.data(), periods_around, half_days(-20, 0), half_days(1, 70))
@settings(max_examples=200, deadline=None)
def test_rule_9_facts_known_before_the_credit_and_facts_that_come_after_end_alike(
    data: st.DataObject, others: list[Period], start: datetime, end: datetime
) -> None:
    # The cycle itself is known when the credit is made; all else may have been, or may come in any order.
    cycle = Period("a", start, end, paid=True)
    arrivals = data.draw(st.permutations(others))
    before = data.draw(st.integers(0, len(arrivals)))

    expires_at = bonus_expiry(CREDIT, [cycle, *arrivals[:before]])
    for known in range(before, len(arrivals) + 1):
        expires_at = moved_expiry(expires_at, CREDIT, [cycle, *arrivals[:known]])

    assert expires_at == bonus_expiry(CREDIT, [cycle, *others])


@given(half_days(-20, 0), half_days(1, 62), half_days(1, 120), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rule_9_a_period_that_grows_takes_the_grant_along_up_to_the_cap(
    start: datetime, end: datetime, other_end: datetime, paid_for: bool
) -> None:
    cycle, grown = Period("a", start, end, paid=True), Period("a", start, other_end, paid=paid_for)
    expected = max(end, min(other_end, CREDIT + DAYS_31))

    assert moved_expiry(end, CREDIT, [cycle, grown]) == expected
    assert bonus_expiry(CREDIT, [grown, cycle]) == expected


def test_rule_7_a_cycle_that_begins_by_a_clock_that_is_a_little_ahead_is_the_one_the_account_is_in() -> None:
    begins = CREDIT + timedelta(seconds=3)
    paid = Period("sub", begins, begins + timedelta(days=28), paid=True)
    unpaid = replace(paid, paid=False)

    assert bonus_expiry(CREDIT, [paid]) == paid.end
    assert bonus_expiry(CREDIT, [unpaid]) == CREDIT + timedelta(days=31)
    assert bonus_expiry(CREDIT - timedelta(minutes=2), [paid]) == CREDIT + timedelta(days=31, minutes=-2)
