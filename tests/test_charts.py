"""Where the columns of a chart stand."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from starter.charts import Chart, axis, columns

MONTHS = ["Oct", "Nov", "Dec", "Jan", "Feb", "Mar"]

values = st.lists(st.integers(min_value=0, max_value=10**15), min_size=6, max_size=6)


def values_of(chart: Chart) -> list[list[int]]:
    return [[column.value for column in group.columns] for group in chart.groups]


@pytest.mark.parametrize(
    ("highest", "numbers"),
    [
        (0, (0, 1)),
        (1, (0, 1)),
        (2, (0, 1, 2)),
        (4, (0, 1, 2, 3, 4)),
        (5, (0, 2, 4, 6)),
        (90, (0, 50, 100)),
        (390, (0, 100, 200, 300, 400)),
        (1_234_567, (0, 500_000, 1_000_000, 1_500_000)),
    ],
)
def test_an_axis_has_few_round_whole_numbers(highest: int, numbers: tuple[int, ...]) -> None:
    assert axis(highest) == numbers


@given(st.integers(min_value=0, max_value=10**18))
def test_an_axis_reaches_its_highest_value_in_even_steps_and_not_much_further(highest: int) -> None:
    numbers = axis(highest)
    step = numbers[1]

    assert list(numbers) == [step * place for place in range(len(numbers))]
    assert numbers[-1] >= highest
    assert numbers[-1] - max(highest, 1) < step
    assert len(numbers) <= 5
    assert str(step).rstrip("0") in {"1", "2", "5"}


@given(values, values)
@example([0] * 6, [0] * 6)
@example([10**15] * 6, [1] * 6)
def test_columns_stand_on_the_base_line_side_by_side_within_the_drawing(first: list[int], second: list[int]) -> None:
    chart = columns(MONTHS, [first, second])
    base, top = chart.ticks[0].y, chart.ticks[-1].y

    assert [group.label for group in chart.groups] == MONTHS
    assert values_of(chart) == [list(pair) for pair in zip(first, second, strict=True)]
    place = chart.left
    for column in (column for group in chart.groups for column in group.columns):
        assert column.x >= place
        place = column.x + column.width
        assert column.y + column.height == pytest.approx(base)
        assert top - 0.1 <= column.y <= base
    assert place <= chart.width


def test_a_column_is_as_high_as_its_value_says() -> None:
    chart = columns(["a", "b", "c"], [[0, 50, 100]])

    heights = [group.columns[0].height for group in chart.groups]

    assert heights[0] == 0
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.2)
    assert chart.groups[2].columns[0].y == chart.ticks[-1].y


@pytest.mark.parametrize(("counts", "empty"), [([0] * 6, True), ([0, 0, 0, 0, 0, 1], False)])
def test_a_chart_knows_whether_there_is_anything_to_see(counts: list[int], empty: bool) -> None:
    assert columns(MONTHS, [counts, [0] * 6]).empty is empty


def test_there_is_more_room_for_longer_numbers() -> None:
    assert columns(MONTHS, [[1_000_000] * 6]).left > columns(MONTHS, [[1] * 6]).left + 40


def test_no_places_are_a_chart_as_well() -> None:
    assert columns([], [[]]).empty


@pytest.mark.parametrize("series", [[[1, 2]], [[1, 2, 3], [1, 2]], [[1, -1, 2]]])
def test_what_cannot_be_drawn_is_refused(series: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"needs one value|below 0"):
        columns(["a", "b", "c"], series)
