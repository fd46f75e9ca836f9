"""The times that decide about a click: rules 10 (two minutes), 15 (90 days, and 7) and 16 (a repeated click)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from program.referral import (
    ATTRIBUTION_WINDOW,
    CLICK_TOLERANCE,
    REPEATED_CLICK,
    REPORTING_GRACE,
    AttributionWindow,
    is_new_account,
)

INSTANT = timedelta(microseconds=1)
CLICK = datetime(2027, 3, 1, 9, 30, tzinfo=UTC)

moments = st.datetimes(datetime(2023, 1, 1), datetime(2033, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
lengths = st.timedeltas(timedelta(seconds=1), timedelta(days=365))
BEFORE_LEAP_DAY = datetime(2028, 2, 28, 23, 59, 59, tzinfo=UTC)


def test_rule_15_the_times_of_the_program() -> None:
    assert timedelta(days=90) == ATTRIBUTION_WINDOW
    assert timedelta(days=7) == REPORTING_GRACE
    assert AttributionWindow(CLICK).length == timedelta(days=90)


@pytest.mark.parametrize(
    ("created_at", "admitted"),
    [
        ("2027-03-01T09:30:00", True),
        ("2027-05-29T09:30:00", True),  # the 89th day
        ("2027-05-30T09:29:59.999999", True),
        ("2027-05-30T09:30:00", False),  # the 90th day
        ("2027-05-30T09:30:00.000001", False),
        ("2028-03-01T09:30:00", False),
    ],
)
def test_rule_15_an_account_made_within_ninety_days_counts(created_at: str, admitted: bool) -> None:
    window = AttributionWindow(CLICK)

    assert window.admits(datetime.fromisoformat(created_at).replace(tzinfo=UTC)) is admitted


@pytest.mark.parametrize(
    ("now", "lapsed"),
    [
        ("2027-05-30T09:30:00", False),
        ("2027-06-06T09:29:59.999999", False),
        ("2027-06-06T09:30:00", True),
        ("2027-06-07T00:00:00", True),
    ],
)
def test_rule_15_a_signup_may_be_reported_for_seven_days_more(now: str, lapsed: bool) -> None:
    assert AttributionWindow(CLICK).lapsed(datetime.fromisoformat(now).replace(tzinfo=UTC)) is lapsed


def test_rule_15_ninety_days_are_days_over_a_leap_day_too() -> None:
    window = AttributionWindow(datetime(2028, 2, 1, tzinfo=UTC))

    assert window.closes_at == datetime(2028, 5, 1, tzinfo=UTC)
    assert window.lapses_at == datetime(2028, 5, 8, tzinfo=UTC)


@given(clicked_at=moments, length=lengths)
@example(clicked_at=BEFORE_LEAP_DAY, length=timedelta(days=90))
@settings(max_examples=100, deadline=None)
def test_rule_15_any_window_is_half_open(clicked_at: datetime, length: timedelta) -> None:
    window = AttributionWindow(clicked_at, length)
    end = clicked_at + length

    assert window.admits(clicked_at)
    assert window.admits(end - INSTANT)
    assert not window.admits(end)
    assert not window.lapsed(end + timedelta(days=7) - INSTANT)
    assert window.lapsed(end + timedelta(days=7))


@given(clicked_at=moments, length=lengths, first=moments, second=moments)
@settings(max_examples=100, deadline=None)
def test_rule_15_too_late_stays_too_late(
    clicked_at: datetime, length: timedelta, first: datetime, second: datetime
) -> None:
    window = AttributionWindow(clicked_at, length)
    early, late = sorted([first, second])

    assert window.admits(early) or not window.admits(late)
    assert window.lapsed(late) or not window.lapsed(early)


@given(clicked_at=moments, length=lengths, created_at=moments)
@settings(max_examples=100, deadline=None)
def test_rule_15_whoever_signed_up_in_time_can_still_be_reported(
    clicked_at: datetime, length: timedelta, created_at: datetime
) -> None:
    window = AttributionWindow(clicked_at, length)

    if window.admits(created_at):
        assert not window.lapsed(created_at + timedelta(days=7) - INSTANT)


@pytest.mark.parametrize(
    ("after", "same"),
    [
        (timedelta(0), True),
        (timedelta(hours=23, minutes=59, seconds=59), True),
        (timedelta(hours=24) - INSTANT, True),
        (timedelta(hours=24), False),
        (timedelta(days=2), False),
    ],
)
def test_rule_16_a_click_repeated_within_a_day_is_the_same_referral(after: timedelta, same: bool) -> None:
    assert AttributionWindow(CLICK).same_visit(CLICK + after) is same


@given(clicked_at=moments, length=lengths)
@example(clicked_at=BEFORE_LEAP_DAY, length=timedelta(days=90))
@settings(max_examples=50, deadline=None)
def test_rule_16_a_day_has_24_hours_however_long_the_window_is(clicked_at: datetime, length: timedelta) -> None:
    window = AttributionWindow(clicked_at, length)

    assert timedelta(hours=24) == REPEATED_CLICK
    assert window.same_visit(clicked_at + timedelta(hours=24) - INSTANT)
    assert not window.same_visit(clicked_at + timedelta(hours=24))


@pytest.mark.parametrize(
    ("older_by", "new"),
    [
        (timedelta(minutes=2) + INSTANT, False),
        (timedelta(days=400), False),
        (timedelta(minutes=2), True),
        (timedelta(minutes=1), True),
        (timedelta(0), True),
        (-timedelta(days=30), True),
    ],
)
def test_rule_10_an_account_may_be_two_minutes_older_than_the_click(older_by: timedelta, new: bool) -> None:
    assert timedelta(minutes=2) == CLICK_TOLERANCE
    assert is_new_account(CLICK - older_by, CLICK) is new


@given(clicked_at=moments, created_at=moments)
@settings(max_examples=100, deadline=None)
def test_rule_10_who_signs_up_after_the_click_is_new(clicked_at: datetime, created_at: datetime) -> None:
    early, late = sorted([clicked_at, created_at])

    assert is_new_account(late, early)
    assert is_new_account(early, late) is (late - early <= timedelta(minutes=2))
