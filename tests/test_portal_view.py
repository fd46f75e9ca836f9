"""The member's dashboard as it is shown: in words, in every state, and with nothing of a friend's in it."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from babel import Locale

from ledger.dashboard import ChannelCount, Dashboard, MonthCount, OpenBonus
from ledger.queries import Referral
from program.doubts import Doubt
from program.eligibility import LAPSED_WORDS, TAKEN_BACK_WORDS, VOIDED_WORDS, Refusal
from program.plans import Plans
from program.referral import Role, Stage
from program.terms import TERMS_VERSION
from starter.portal_view import PortalView, Tone, in_minutes, portal_view
from starter.sharing import DISCLOSURE
from starter.site import Site
from tests.http_support import PUBLIC_URL, SIGNUP_URL, settings_for

NOW = datetime(2026, 3, 20, 12, 30, tzinfo=UTC)
ACCOUNT_URL = "https://app.kally.example/account"
FRIEND = "account-of-the-friend"

EMPTY = Dashboard(
    paid=True,
    code="K7Q2M9XD",
    clicks=0,
    invited=0,
    subscribed=0,
    minutes_earned=0,
    available=0,
    next_expiry=None,
    bonuses=(),
    more_bonuses=0,
    channels=(),
    months=tuple(MonthCount(date(2025 + (month > 12), (month - 1) % 12 + 1, 1), 0, 0, 0) for month in range(10, 16)),
    version="a version",
)


def bonus(number: int, minutes: int, remaining: int, role: Role = Role.REFERRER) -> OpenBonus:
    ends_at = NOW + timedelta(days=number)
    return OpenBonus(f"grant-{number}", minutes, remaining, ends_at - timedelta(days=31), ends_at, role)


FULL = replace(
    EMPTY,
    clicks=79,
    invited=9,
    subscribed=4,
    minutes_earned=502,
    available=176,
    next_expiry=NOW + timedelta(days=1),
    bonuses=(bonus(1, 22, 4, Role.REFEREE), bonus(2, 90, 82), bonus(3, 90, 90)),
    channels=(ChannelCount("whatsapp", 34, 6), ChannelCount("link", 40, 2), ChannelCount("newsletter", 5, 1)),
    months=tuple(
        replace(month, invited=number, subscribed=number // 2, minutes=number * 11)
        for number, month in enumerate(EMPTY.months)
    ),
)

HUGE = replace(
    FULL,
    clicks=12_345_678,
    invited=10_000,
    minutes_earned=1_234_567,
    bonuses=tuple(bonus(number, 300, 300) for number in range(1, 51)),
    more_bonuses=9_950,
    channels=tuple(ChannelCount(f"campaign_{number}", 1000 - number, 0) for number in range(40)),
    months=tuple(replace(month, invited=2_500, subscribed=2_000, minutes=1_034_567) for month in EMPTY.months),
)


def referral(stage: Stage, reason: str | None = None, **values: Any) -> Referral:
    credited = stage in (Stage.CREDITED, Stage.SETTLED)
    known: dict[str, Any] = {
        "referral_id": "the-referral",
        "stage": stage,
        "reason": reason,
        "referrer_account_id": "account-of-the-member",
        "referee_account_id": FRIEND,
        "plan": "pro" if credited else None,
        "bonus_minutes": 90 if credited else None,
        "needs_attention": None,
        "review_reasons": [],
        "clicked_at": NOW - timedelta(days=9),
        "signed_up_at": NOW - timedelta(days=8),
        "credited_at": NOW - timedelta(days=7) if credited else None,
        "expires_at": {Role.REFERRER: NOW + timedelta(days=24), Role.REFEREE: NOW + timedelta(days=9)}
        if credited
        else {},
    }
    return Referral(**known | values)


WHY = {Stage.LAPSED: LAPSED_WORDS, Stage.REFUSED: Refusal.KNOWN_EMAIL.words, Stage.VOIDED: VOIDED_WORDS}

ONE_OF_EACH = [referral(stage, WHY.get(stage)) for stage in Stage]

STATES: dict[str, tuple[Dashboard, list[Referral], dict[str, Any]]] = {
    "empty": (EMPTY, [], {}),
    "full": (FULL, ONE_OF_EACH, {"older": "a cursor+/=&"}),
    "last page": (FULL, ONE_OF_EACH, {"newest": False}),
    "beyond the last page": (FULL, [], {"newest": False}),
    "no link yet": (replace(EMPTY, code=None), [], {}),
    "new terms": (replace(EMPTY, code=None), [], {"problem": "terms-changed"}),
    "not paid": (replace(EMPTY, code=None, paid=False), [], {}),
    "lapsed": (replace(FULL, paid=False, available=0, next_expiry=None, bonuses=()), ONE_OF_EACH, {}),
    "huge": (HUGE, ONE_OF_EACH * 6, {"older": "next", "newest": False}),
}


@pytest.fixture(scope="module")
def site(plans: Plans) -> Site:
    return Site(settings_for("postgresql+psycopg://nobody@nowhere/nothing", "none", account_url=ACCOUNT_URL), plans)


class Page(HTMLParser):
    """A page as a reader meets it: its words, and its elements with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self._words.append(data)

    @property
    def text(self) -> str:
        """All its words."""
        return " ".join(" ".join(self._words).split())

    def all(self, tag: str, **attributes: str | None) -> list[dict[str, str | None]]:
        """The attributes of the elements of that name."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}.items()
        return [found for name, found in self.elements if name == tag and wanted <= found.items()]


def view_of(dashboard: Dashboard, *referrals: Referral, **options: Any) -> PortalView:
    return portal_view(dashboard, referrals, public_url=PUBLIC_URL, now=NOW, **options)


def page_of(site: Site, state: str, locale: str = "en_US") -> Page:
    dashboard, referrals, options = STATES[state]
    return Page(site.render("portal.html", Locale.parse(locale), view=view_of(dashboard, *referrals, **options)))


every_state = pytest.mark.parametrize("state", STATES)


# Stages in words


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_words_for_a_member(stage: Stage) -> None:
    (friend,) = view_of(FULL, referral(stage, WHY.get(stage))).friends

    words = friend.words(str)

    assert len(words) > 5
    assert "{" not in words
    assert stage.value not in words, "a member does not speak of stages"


@pytest.mark.parametrize("refusal", Refusal)
def test_rule_22_whoever_was_refused_reads_why(refusal: Refusal, site: Site) -> None:
    refused = referral(Stage.REFUSED, refusal.words)

    page = Page(site.render("portal.html", view=view_of(FULL, refused)))

    assert view_of(FULL, refused).friends[0].tone is Tone.BAD
    assert refusal.words in page.text


@pytest.mark.parametrize("stage", WHY)
def test_rule_22_whatever_ended_without_a_bonus_says_why(stage: Stage) -> None:
    (friend,) = view_of(FULL, referral(stage, WHY[stage])).friends

    assert friend.note == WHY[stage]
    assert friend.minutes is None


@pytest.mark.parametrize("stage", [Stage.CREDITED, Stage.SETTLED])
def test_rule_20_a_bonus_that_was_taken_back_is_not_shown_as_one(stage: Stage) -> None:
    (friend,) = view_of(FULL, referral(stage, TAKEN_BACK_WORDS)).friends

    assert (friend.tone, friend.note, friend.ends_at) == (Tone.BAD, TAKEN_BACK_WORDS, None)
    assert "You both got" not in friend.words(str)


def test_rule_19_whoever_is_held_is_told_so_but_not_what_was_found() -> None:
    held = referral(
        Stage.IN_REVIEW,
        Doubt.SAME_CARD.words,
        needs_attention=f"Held for review: {Doubt.SAME_CARD.words}",
        review_reasons=[Doubt.SAME_CARD],
    )

    (friend,) = view_of(FULL, held).friends

    assert "our team" in friend.words(str)
    assert friend.note is not None
    assert "card" not in friend.note


def test_a_payment_that_cannot_be_placed_yet_is_not_said_to_be_missing() -> None:
    stuck = referral(Stage.SIGNED_UP, needs_attention="Paid, but no plan is known for price_123: add it to the plans.")

    (friend,) = view_of(FULL, stuck).friends

    assert "waiting for the first payment" not in friend.words(str)
    assert friend.note is not None
    assert "price_123" not in friend.note


@pytest.mark.parametrize(("ends_in", "over"), [(timedelta(seconds=1), False), (timedelta(0), True)])
def test_rule_7_a_bonus_is_over_at_its_very_end_and_it_is_the_members_own_side_that_counts(
    ends_in: timedelta, over: bool
) -> None:
    ends = {Role.REFERRER: NOW + ends_in, Role.REFEREE: NOW + timedelta(days=30)}

    (friend,) = view_of(FULL, referral(Stage.CREDITED, expires_at=ends)).friends

    assert (friend.over, friend.ends_at) == (over, NOW + ends_in)


@pytest.mark.parametrize(("minutes", "words"), [(0, "0 minutes"), (1, "1 minute"), (90, "90 minutes")])
def test_minutes_are_counted_in_words(minutes: int, words: str) -> None:
    assert in_minutes(minutes, str) == words


# What the page says


@every_state
def test_a_page_can_be_made_of_every_state_and_has_nothing_inline_and_nothing_from_elsewhere(
    state: str, site: Site
) -> None:
    page = page_of(site, state)

    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag in ("script", "img", "link"):
            assert (attributes.get("src") or attributes["href"] or "").startswith("/"), tag
    assert page.all("style") == []
    scripts = [site.assets.path(name) for name in ("abilities.js", "portal.js")]
    assert [script.get("src") for script in page.all("script")] == scripts


@every_state
def test_ids_are_unique_labels_are_there_and_headings_come_in_order(state: str, site: Site) -> None:
    page = page_of(site, state)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]

    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


@every_state
def test_rule_24_nothing_of_a_friends_account_is_on_the_page(state: str, site: Site) -> None:
    html = page_of(site, state).html

    assert FRIEND not in html
    assert "account-of-the-member" not in html
    assert "the-referral" not in html


@every_state
def test_every_region_that_the_script_renews_is_there(state: str, site: Site) -> None:
    page = page_of(site, state)
    regions = [attributes["data-live"] for _, attributes in page.elements if "data-live" in attributes]

    assert regions == ["link", "minutes", "figures", "months", "channels", "friends"]
    assert len(page.all("div", data_portal=None, data_events="/portal/events", data_version="a version")) == 1


def test_rule_12_the_three_figures_are_shown_as_the_reader_writes_numbers(site: Site) -> None:
    assert "Invited 10,000" in page_of(site, "huge").text
    assert "Earned 1,234,567" in page_of(site, "huge").text
    assert "Earned 1.234.567" in page_of(site, "huge", "de_DE").text


@pytest.mark.parametrize("state", ["empty", "full", "lapsed"])
def test_rule_1_a_link_is_shown_to_its_owner_whether_paid_or_not(state: str, site: Site) -> None:
    page = page_of(site, state)

    assert page.all("input", id="link", value=f"{PUBLIC_URL}/r/K7Q2M9XD", readonly=None)
    assert page.all("button", data_copy=f"{PUBLIC_URL}/r/K7Q2M9XD?c=copy")
    assert page.all("button", data_share=f"{PUBLIC_URL}/r/K7Q2M9XD?c=share")
    assert page.all("a", href="/portal/qr.svg", download="kallyai-referral-qr.svg")
    assert page.all("form", action="/portal/link") == []


def test_rule_13_the_words_that_go_along_are_shown_and_handed_to_the_share_sheet(site: Site) -> None:
    page = page_of(site, "full")

    assert DISCLOSURE in page.text
    (sheet,) = page.all("button", id="share-link")
    assert DISCLOSURE in (sheet["data-text"] or "")
    (both,) = page.all("button", id="copy-words")
    assert DISCLOSURE in (both["data-copy"] or "")
    assert (both["data-copy"] or "").endswith("?c=copy")


def test_what_leads_to_another_site_opens_beside_this_one_and_tells_it_nothing(site: Site) -> None:
    links = [link for link in page_of(site, "full").all("a") if (link["href"] or "").startswith("https://")]
    elsewhere = [link for link in links if link["href"] != ACCOUNT_URL]

    assert len(elsewhere) == 4
    assert {(link.get("target"), link.get("rel")) for link in elsewhere} == {("_blank", "noopener noreferrer")}


def test_rule_1_a_paid_subscriber_without_a_link_can_take_one_and_accepts_the_terms_by_it(site: Site) -> None:
    page = page_of(site, "no link yet")

    assert page.all("form", method="post", action="/portal/link")
    assert page.all("input", type="hidden", name="terms_version", value=TERMS_VERSION)
    assert "By taking the link you accept the Program Terms" in page.text
    assert page.all("input", id="link") == []


def test_rule_13_who_accepted_older_terms_is_told_so(site: Site) -> None:
    assert "The Program Terms have changed" in page_of(site, "new terms").text
    assert "The Program Terms have changed" not in page_of(site, "no link yet").text


def test_rule_1_who_is_no_paid_subscriber_reads_why_there_is_no_link_and_how_to_get_one(site: Site) -> None:
    page = page_of(site, "not paid")

    assert "Only members with a paid plan" in page.text
    assert page.all("a", id="choose-plan", href=ACCOUNT_URL)
    assert page.all("form", action="/portal/link") == []
    assert SIGNUP_URL not in page.html


def test_rule_7_each_open_bonus_shows_what_is_left_and_until_when(site: Site) -> None:
    page = page_of(site, "full")

    assert "4 of 22 minutes left until 21 Mar 2026, 12:30 UTC" in page.text
    assert "82 of 90 minutes left until 22 Mar 2026, 12:30 UTC" in page.text
    assert page.all("rect", **{"class": "measure-left"}, width="18.18")
    assert page.all("rect", **{"class": "measure-left"}, width="100.0")
    assert page.all("time", datetime="2026-03-21T12:30:00+00:00", data_part="moment")


def test_a_long_list_is_shown_in_parts_and_the_rest_is_counted(site: Site) -> None:
    page = page_of(site, "huge")

    assert "9,995 more" in page.text
    assert "And 9,950 that end later still" in page.text
    assert page.all("details", id="more-channels")
    assert "campaign_39" in page.text


def test_every_month_is_in_the_chart_s_words_and_in_its_table(site: Site) -> None:
    page = page_of(site, "full")
    months = view_of(FULL).months

    assert [month.name for month in months][::5] == ["October 2025", "March 2026"]
    for month in months:
        assert f"{month.name}: {month.invited} invited, {month.subscribed} subscribed." in page.text
        minutes = in_minutes(month.minutes, str)
        assert f"{month.name}: {minutes}." in page.text
        assert f"{month.name} {month.invited} {month.subscribed} {month.minutes}" in page.text


def test_a_month_in_which_more_was_taken_back_than_earned_has_no_column() -> None:
    months = (*FULL.months[:-1], replace(FULL.months[-1], minutes=-90))

    view = view_of(replace(FULL, months=months))

    assert view.minutes_chart.groups[-1].columns[0].height == 0
    assert view.months[-1].minutes == -90


def test_channels_are_named_and_counted_in_the_order_of_the_ledger(site: Site) -> None:
    page = page_of(site, "full")

    assert "WhatsApp 34 6 Plain link 40 2 newsletter 5 1" in page.text
    assert [channel.share for channel in view_of(FULL).channels] == [85.0, 100.0, 12.5]


def test_pages_lead_to_older_friends_and_back_to_the_newest(site: Site) -> None:
    first, last = page_of(site, "full"), page_of(site, "last page")

    assert first.all("a", id="older", href="/portal?cursor=a%20cursor%2B/%3D%26#friends")
    assert first.all("a", id="newest") == []
    assert last.all("a", id="newest", href="/portal#friends")
    assert last.all("a", id="older") == []
    assert page_of(site, "beyond the last page").all("a", id="newest")


def test_who_has_brought_nobody_yet_is_told_what_to_do(site: Site) -> None:
    page = page_of(site, "empty")

    assert "Nobody yet" in page.text
    assert page.all("svg", **{"class": "chart"}) == []
    assert page.all("table") == []


@pytest.mark.parametrize(
    ("template", "words", "way_on"),
    [("portal_expired.html", "Your visit has ended", ACCOUNT_URL), ("portal_away.html", "Back in a moment", "/portal")],
)
def test_a_page_that_shows_no_numbers_says_why_and_where_to_go(
    template: str, words: str, way_on: str, site: Site
) -> None:
    page = Page(site.render(template))

    assert words in page.text
    assert page.all("a", **{"class": "button"}, href=way_on)
    assert page.all("script") == []


def test_a_visit_that_ends_while_the_page_is_open_has_its_notice_ready(site: Site) -> None:
    page = page_of(site, "full")

    assert page.all("template", data_over_words=None)
    assert "Your visit here has ended" in page.text
    assert page.all("div", role="alert")


def test_the_script_is_small(site: Site) -> None:
    digest, name = site.assets.path("portal.js").split("/")[-2:]

    assert len(site.assets.answer(digest, name, "").body) < 8 * 1024
