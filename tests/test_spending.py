"""Which minutes a call uses (rule 21), by examples and by properties."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from program.spending import Draw, Spendable, draws

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def lot(grant_id: str, remaining: int, hours: float) -> Spendable:
    return Spendable(grant_id, remaining, NOW + timedelta(hours=hours))


lots = st.lists(
    st.builds(
        lot,
        st.uuids().map(str),
        st.integers(min_value=0, max_value=300),
        st.integers(min_value=-50, max_value=50),
    ),
    max_size=12,
)
minutes = st.integers(min_value=1, max_value=2000)


def test_rule_21_the_soonest_to_expire_is_used_first_and_the_last_one_in_part() -> None:
    owned = [lot("late", 90, 30), lot("soon", 22, 2), lot("middle", 300, 9)]
    assert draws(100, owned, NOW) == [Draw("soon", 22), Draw("middle", 78)]


def test_rule_21_what_the_bonus_does_not_cover_is_left_to_the_plan() -> None:
    assert draws(100, [lot("only", 22, 1)], NOW) == [Draw("only", 22)]


def test_rule_7_an_expired_lot_gives_nothing_from_the_very_instant_on() -> None:
    assert draws(5, [lot("over", 90, 0)], NOW) == []
    assert draws(5, [lot("over", 90, 0)], NOW - timedelta(microseconds=1)) == [Draw("over", 5)]


@pytest.mark.parametrize("none", [0, -1])
def test_rule_21_less_than_one_minute_is_no_use(none: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draws(none, [lot("any", 90, 1)], NOW)


@given(minutes, lots)
def test_rule_21_no_lot_gives_more_than_it_has_and_all_that_can_be_is_covered(
    used: int, owned: list[Spendable]
) -> None:
    taken = draws(used, owned, NOW)
    usable = {lot.grant_id: lot for lot in owned if lot.expires_at > NOW}
    assert all(1 <= draw.minutes <= usable[draw.grant_id].remaining for draw in taken)
    assert len({draw.grant_id for draw in taken}) == len(taken)
    assert sum(draw.minutes for draw in taken) == min(used, sum(lot.remaining for lot in usable.values()))


@given(minutes, lots)
def test_rule_21_nothing_is_taken_from_a_lot_while_a_sooner_one_has_minutes_left(
    used: int, owned: list[Spendable]
) -> None:
    taken = {draw.grant_id: draw.minutes for draw in draws(used, owned, NOW)}
    touched = [lot for lot in owned if lot.grant_id in taken]
    for last in touched:
        for other in owned:
            if NOW < other.expires_at < last.expires_at:
                assert taken.get(other.grant_id, 0) == other.remaining
