"""Which first names a stranger is shown."""

import pytest

from starter.names import fit_to_show


@pytest.mark.parametrize(
    "name",
    [
        "Rita",
        "Jean-Luc",
        "O'Neill",
        "D\u2019Arcy",
        "Mary Ann",
        "Zoë",
        "Łukasz",
        "Björk",
        "Sammy Jr.",
        "李",
        "Ольга",
        "श्रीनिवास",
        "Nguyễn",
        "محمد",
    ],
)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert fit_to_show(name) == name


def test_a_name_is_shown_without_what_surrounds_it_and_in_one_spelling() -> None:
    assert fit_to_show(" Zoe\u0308 ") == "Zoë"


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        " ",
        "<b>Rita</b>",
        "evil.example",
        "www.evil.example/a",
        "Rita & Co",
        "Rita!",
        "rita@people.example",
        "4ever",
        "Rita  Two Spaces",
        "-",
        "'; --",
        "R" * 25,
        "Win A New Phone Right Now Here",
        "Z\u0351\u0301\u0311\u0300\u0302a",
        "\u202eatiR",
        "Rita\u200b",
        "\u3164",
        "\uffa0\u1160",
        "Rita\u115f",
        "👋",
    ],
)
def test_what_is_no_name_is_not_shown(name: str | None) -> None:
    assert fit_to_show(name) is None
