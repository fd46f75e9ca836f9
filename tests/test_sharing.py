"""Ways to share a link: each with its channel and, in its words, the sharer's own advantage (rule 13)."""

import re
import xml.etree.ElementTree as ElementTree
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from segno import make

from ledger import attributions
from starter import sharing
from starter.models import channel_of
from starter.sharing import DISCLOSURE, INVITATION, WORDS, Share, address, channel_name, link_address, qr_svg, shares
from tests.http_support import PUBLIC_URL

CODE = "K7Q2M9XD"
WAYS = shares(PUBLIC_URL, CODE)

each_way = pytest.mark.parametrize("way", WAYS, ids=[way.channel for way in WAYS])


def said(way: Share) -> str:
    """All that whoever presses the button hands on, as the program that takes it reads it."""
    assert "+" not in way.href, "some programs read a plus as a plus"
    query = urlsplit(way.href).query
    values = parse_qs(query.removeprefix("&") if way.channel == "sms" else query, strict_parsing=True)
    return " ".join(value for each in values.values() for value in each)


def test_every_way_that_is_promised_is_there() -> None:
    assert [way.channel for way in WAYS] == ["sms", "email", "whatsapp", "x", "facebook", "linkedin"]


@each_way
def test_rule_13_every_ready_made_text_says_that_the_sharer_gets_a_bonus_too(way: Share) -> None:
    assert DISCLOSURE in said(way)
    assert INVITATION in said(way)


@each_way
def test_every_way_shares_the_link_with_its_own_channel(way: Share) -> None:
    assert f"{PUBLIC_URL}/r/{CODE}?c={way.channel}" in said(way).split()


def test_rule_13_the_text_that_goes_with_a_copied_or_handed_on_link_discloses_too() -> None:
    assert DISCLOSURE in WORDS
    assert "bonus" in DISCLOSURE.lower()
    assert "I get" in DISCLOSURE


def test_a_post_on_x_is_not_cut_off() -> None:
    # An address counts for 23 characters there, however long it is.
    assert len(WORDS) + 1 + 23 <= 280


@each_way
def test_only_what_leads_to_another_site_is_one(way: Share) -> None:
    parts = urlsplit(way.href)

    assert way.elsewhere == (parts.scheme == "https")
    assert way.elsewhere == bool(parts.netloc)


def test_a_text_message_has_its_words_and_no_receiver() -> None:
    (sms,) = (way for way in WAYS if way.channel == "sms")

    assert sms.href.startswith("sms:?&body=")
    assert unquote(sms.href.removeprefix("sms:?&body=")) == f"{WORDS} {address(PUBLIC_URL, CODE, 'sms')}"


@pytest.mark.parametrize("channel", ["copy", "share", "qr"])
def test_a_link_is_shared_under_its_channel(channel: str) -> None:
    assert address(f"{PUBLIC_URL}/", CODE, channel) == f"{PUBLIC_URL}/r/{CODE}?c={channel}"


def test_nothing_in_a_code_or_channel_gets_out_of_its_place() -> None:
    parts = urlsplit(address(PUBLIC_URL, "a/b?c#d", "e&f=g"))

    assert unquote(parts.path) == "/r/a/b?c#d"
    assert parts.path.count("/") == 2
    assert parse_qs(parts.query) == {"c": ["e&f=g"]}
    assert parts.fragment == ""


@pytest.mark.parametrize("channel", [attributions.CHANNEL, channel_of(None), channel_of("<b>")])
def test_a_channel_that_the_program_itself_writes_has_a_name(channel: str) -> None:
    assert channel_name(channel) != channel


@pytest.mark.parametrize("channel", sharing.CHANNELS)
def test_a_known_channel_has_a_name(channel: str) -> None:
    assert channel_name(channel) == sharing.CHANNELS[channel] != ""


def test_an_unknown_channel_is_called_what_it_was_called_in_the_address() -> None:
    assert channel_name("newsletter_2026") == "newsletter_2026"


def test_the_qr_code_holds_the_address_it_is_made_of() -> None:
    url = address(PUBLIC_URL, CODE, "qr")
    svg = "{http://www.w3.org/2000/svg}"

    drawing = ElementTree.fromstring(qr_svg(url))  # noqa: S314

    paper, ink = drawing.findall(f"{svg}path")
    assert paper.get("fill") == "#fff"
    assert modules(ink.get("d", "")) == {
        (x + 4, y + 4)
        for y, row in enumerate(make(url, error="m", micro=False).matrix)
        for x, dark in enumerate(row)
        if dark
    }
    assert drawing.get("viewBox") is not None
    assert b"style" not in qr_svg(url)


def modules(path: str) -> set[tuple[int, int]]:
    """The dark modules that a path of horizontal strokes covers."""
    dark: set[tuple[int, int]] = set()
    x = y = 0.0
    for kind, numbers in re.findall(r"([Mmh])([-.\d ]+)", path):
        first, *rest = map(float, numbers.split())
        match kind:
            case "M":
                x, y = first, rest[0]
            case "m":
                x, y = x + first, y + rest[0]
            case "h":
                dark |= {(int(x) + step, int(y)) for step in range(int(first))}
                x += first
    return dark


def test_link_address_has_no_channel() -> None:
    assert link_address(PUBLIC_URL, CODE) == f"{PUBLIC_URL}/r/{CODE}"
