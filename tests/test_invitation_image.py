"""The picture that a link unfurls with: made from the plans, the same for the same plans."""

from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from program.plans import Plan, Plans
from starter import invitation_image
from starter.assets import Assets

KEYS = iter(f"key-{number}" for number in range(1000))


def plan(name: str, minutes: int) -> Plan:
    return Plan(name, name, minutes, 1900, frozenset({next(KEYS)}))


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


def test_it_is_a_png_of_the_size_that_networks_show_whole(plans: Plans) -> None:
    png = invitation_image.draw(plans)
    assert opened(png).size == (1200, 630)
    assert len(png) < 60_000, "messengers leave large pictures out"


def test_it_changes_with_the_plans_and_with_nothing_else(plans: Plans) -> None:
    first = invitation_image.draw(plans)
    assert invitation_image.draw(Plans(list(plans))) == first
    starter, *others = plans
    drawn = {
        first,
        invitation_image.draw(Plans([replace(starter, minutes=100), *others])),
        invitation_image.draw(Plans([replace(starter, name="Small"), *others])),
        invitation_image.draw(Plans(others)),
        invitation_image.draw(Plans([*others, starter])),
    }
    assert len(drawn) == 5
    dearer = Plans([replace(each, price_cents=each.price_cents + 100) for each in plans])
    assert invitation_image.draw(dearer) == first, "it shows no price"


def test_its_words_say_what_it_shows(plans: Plans) -> None:
    words = invitation_image.alternative(plans)
    for each in plans:
        assert f"{each.name} {each.bonus}" in words
    assert "the friend who invites you" in words, "rule 13"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_it_has_room_for_any_plans(count: int) -> None:
    many = Plans([plan(f"An uncommonly long name for a plan, number {number}", 400_000_000) for number in range(count)])
    image = opened(invitation_image.draw(many))
    paper = image.getpixel((0, 0))
    right_edge = image.crop((1200 - 63, 0, 1200, 630))
    assert right_edge.getcolors() == [(63 * 630, paper)], "nothing runs out of its bubble into the margin"
    shown = invitation_image.shown_plans(many)
    assert list(shown) == list(many)[:4]


def test_it_is_drawn_when_it_is_first_asked_for_by_its_address_too(plans: Plans) -> None:
    drawn: list[bytes] = []

    def draw() -> bytes:
        drawn.append(invitation_image.draw(plans))
        return drawn[-1]

    here, there = Assets(), Assets()
    for assets in (here, there):
        assets.add_later(invitation_image.NAME, draw)
    assert drawn == []
    _, _, digest, name = here.path(invitation_image.NAME).split("/")
    answer = there.answer(digest, name, "gzip")
    assert answer.status_code == 200, "another process knows the address that this one gave"
    assert answer.media_type == "image/png"
    assert answer.body == drawn[0]
    here.path(invitation_image.NAME)
    there.path(invitation_image.NAME)
    assert len(drawn) == 2, "once in each"
