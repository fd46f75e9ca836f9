"""What anybody may read: the program's page, its terms, and how both come over the wire."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from jinja2 import DictLoader
from temporalio.client import Client

from program.plans import Plan, load_plans
from program.terms import TERMS_VERSION
from runtime.settings import PROJECT
from starter.app import create_app
from starter.site import Site
from tests.conftest import free_port
from tests.http_support import PUBLIC_URL, SIGNUP_URL, settings_for

PLANS_FILE = PROJECT / "plans.toml"
ACCOUNT_URL = "https://app.kally.example/account"

OTHER_PLANS = """
[[plan]]
id = "solo"
name = "Solo"
minutes = 50
price_cents = 550
lookup_keys = ["solo"]

[[plan]]
id = "duo"
name = "Duo & Co"
minutes = 2468
price_cents = 123400
lookup_keys = ["duo"]
"""
"""12.5 and 617 minutes: a half goes to the even number."""


class Page(HTMLParser):
    """A page as its reader has it."""

    VOID = frozenset({"br", "img", "input", "link", "meta"})

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.metas: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[list[str]] = []
        self.questions: dict[str, tuple[str, str]] = {}
        self._open: list[str] = []
        self._question: list[str] | None = None
        self._texts: list[str] = []
        self.feed(answer.text)
        self.close()
        assert self._open == [], "every tag is closed"

    @property
    def text(self) -> str:
        """All that can be read, on one line."""
        return " ".join(" ".join(self._texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag == "meta":
            self.metas[attributes.get("property") or attributes.get("name", "")] = attributes.get("content", "")
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "details":
            self._question = [attributes["id"], "", ""]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "details" and self._question:
            name, asked, answered = self._question
            self.questions[name] = (" ".join(asked.split()), " ".join(answered.split()))
            self._question = None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if "head" in self._open:
            return
        self._texts.append(data)
        if "td" in self._open or "th" in self._open:
            self.cells[-1][-1] += data
        if self._question:
            self._question[1 if "summary" in self._open else 2] += data


@asynccontextmanager
async def site(**changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The starter, with neither a database nor Temporal behind it: these pages need none."""
    nobody = f"127.0.0.1:{free_port()}"
    settings = settings_for(f"postgresql+psycopg://nobody@{nobody}/nothing", "queue", **changes)
    app = create_app(settings, await Client.connect(nobody, lazy=True))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL) as client:
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """The site with the plans on sale."""
    async with site() as client:
        yield client


async def read(client: httpx.AsyncClient, path: str = "/refer", **headers: str) -> Page:
    answer = await client.get(path, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer)


def in_site(template: str, **values: Any) -> str:
    """What the site makes of a template."""
    site = Site(settings_for("postgresql+psycopg://nobody@localhost/nothing", "queue"), load_plans(PLANS_FILE))
    site._environment.loader = DictLoader({"template": template})
    return site.render("template", **values)


@pytest.fixture
def other_plans(tmp_path: Path) -> Path:
    path = tmp_path / "plans.toml"
    path.write_text(OTHER_PLANS, encoding="utf-8")
    return path


def row_of(plan: Plan) -> list[str]:
    """What the table says of a plan, in English."""
    price = f"${plan.price_cents // 100:,}" if plan.price_cents % 100 == 0 else f"${plan.price_cents / 100:,.2f}"
    return [plan.name, price, f"{plan.minutes:,}", f"{plan.bonus:,} min"]


async def test_the_root_leads_to_the_program(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/refer"


@pytest.mark.parametrize("path", ["/refer", "/terms"])
async def test_rule_3_what_each_plan_brings_comes_from_the_plans_file(path: str, other_plans: Path) -> None:
    for plans_file in (PLANS_FILE, other_plans):
        async with site(plans_file=plans_file) as client:
            page = await read(client, path)
        assert page.cells[1:] == [row_of(plan) for plan in load_plans(plans_file)]


async def test_no_number_or_name_of_a_plan_stands_in_the_words(other_plans: Path) -> None:
    async with site(plans_file=other_plans, attribution_window=timedelta(days=77)) as client:
        pages = [await read(client), await read(client, "/terms")]
    for page in pages:
        words = re.findall(r"[\w$]+", page.text)
        for plan in load_plans(PLANS_FILE):
            assert not {plan.name, str(plan.minutes), str(plan.bonus), f"${plan.price_cents // 100}"} & set(words)
    assert "With Duo & Co it is 617 minutes for your friend and 617 for you" in pages[0].text


SOURCE_QUESTIONS = {
    "how a member gets the link": ("where-is-my-link", ["paid plan", "Invite friends", "copy"]),
    "when the minutes are credited": ("when", ["first payment", "both sides in the same moment"]),
    "whether there is a limit": ("how-many", ["As many as you like", "Neither the friends nor the minutes"]),
    "whether bonus minutes expire": ("how-long", ["billing cycle", "31 days at most", "next cycle"]),
    "whether somebody with an account can be referred": ("existing-account", ["only new signups"]),
    "what becomes of it when the friend cancels": ("cancelled", ["keep", "no second bonus"]),
    "where the full terms are": ("all-the-rules", ["Section 7", "who can take part", "not allowed", "FTC"]),
}
"""Every question of the page that the program was founded on: where it is answered, and what the answer says."""

FURTHER_QUESTIONS = {
    "rule 14": ("what-counts", ["trial", "coupon", "credit", "no deadline", "wholly refunded"]),
    "rule 16": ("two-links", ["last one followed before the signup"]),
    "rule 20": ("refunded", ["Nothing is taken back by itself", "stay used", "below zero"]),
    "rule 21": ("which-first", ["before those of your plan", "soonest"]),
    "rules 1 and 8": ("my-plan-ended", ["goes on working", "31 days"]),
    "the first name": ("my-name", ["Only if you said so"]),
    "rule 13": ("say-so", ["Yes, wherever you share it"]),
}


async def test_every_question_is_answered(client: httpx.AsyncClient) -> None:
    page = await read(client)
    expected = SOURCE_QUESTIONS | FURTHER_QUESTIONS
    assert set(page.questions) == {name for name, _ in expected.values()}
    for topic, (name, says) in expected.items():
        asked, answered = page.questions[name]
        assert asked.endswith("?"), topic
        for words in says:
            assert words in answered, (topic, words)


async def test_rule_15_how_long_a_click_counts_is_the_settings(client: httpx.AsyncClient) -> None:
    async with site(attribution_window=timedelta(hours=36)) as other:
        for path in ("/refer", "/terms"):
            assert "within 90 days" in (await read(client, path)).text
            changed = (await read(other, path)).text
            assert "within 36 hours" in changed
            assert "90 days" not in changed


async def test_the_way_to_the_link_is_where_members_sign_in() -> None:
    for account_url, expected in ((ACCOUNT_URL, ACCOUNT_URL), (None, SIGNUP_URL)):
        async with site(account_url=account_url) as client:
            elsewhere = [link["href"] for link in (await read(client)).all("a") if link["href"].startswith("http")]
        assert len(elsewhere) >= 3
        assert set(elsewhere) == {expected}


TERMS = {
    "eligibility": ["paid subscribers only", "up to 3 days", "somebody new", "2 minutes", "within 90 days"],
    "earning": ["25% of that plan\u2019s minutes, once", "is paid by the year", "no limit", "held for review"],
    "using": ["billing cycle", "31 days at most", "A renewal moves nothing", "before plan minutes"],
    "afterwards": ["both of you keep", "no second bonus", "nothing is taken back by itself"],
    "prohibited": ["Referring yourself", "your own card", "made up", "in bulk", "paid ads"],
    "review": ["again before the credit", "until a person has decided", "below zero", "says why"],
    "disclosure": ["Federal Trade Commission", "you get a bonus too"],
    "privacy": ["only if you agreed", "keyed hash", "link stops working", "you keep everything", "90 days", "1 day"],
    "changes": [TERMS_VERSION, "on record with the time"],
}
"""The sections of the terms, by their anchors, and what each holds."""


async def test_rule_13_the_terms_hold_every_section_under_an_anchor_and_their_version(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/terms")
    page = Page(answer)
    assert "Section 7" in page.text
    assert f"Version {TERMS_VERSION}" in page.text
    _, *sections = re.split(r'<h2 id="([a-z-]+)"><a', answer.text)
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    assert list(found) == list(TERMS)
    for name, says in TERMS.items():
        text = " ".join(re.sub(r"<[^>]+>", " ", found[name]).split())
        for words in says:
            assert words in text, (name, words)


async def test_every_anchor_that_is_pointed_to_is_there(client: httpx.AsyncClient) -> None:
    pages = {path: await read(client, path) for path in ("/refer", "/terms")}
    ids = {path: [tag["id"] for _, tag in page.tags if "id" in tag] for path, page in pages.items()}
    for path, page in pages.items():
        assert len(set(ids[path])) == len(ids[path]), "an id stands once"
        for link in page.all("a"):
            target, _, anchor = link["href"].partition("#")
            if anchor:
                assert anchor in ids[target or path], link["href"]
            elif target.startswith("/"):
                assert target in pages
        for _, tag in page.tags:
            for name in tag.get("aria-labelledby", "").split():
                assert name in ids[path]


@pytest.mark.parametrize("path", ["/refer", "/terms"])
async def test_a_page_is_in_order_for_whoever_does_not_see_it(client: httpx.AsyncClient, path: str) -> None:
    page = await read(client, path)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))
    names = [tag for tag, _ in page.tags]
    for landmark in ("main", "header", "footer", "nav"):
        assert landmark in names
    assert "caption" in names
    assert {cell.get("scope") for cell in page.all("th")} == {"col", "row"}
    assert all(drawing.get("aria-hidden") == "true" for drawing in page.all("svg"))
    assert "lang" in page.all("html")[0]


@pytest.mark.parametrize("path", ["/refer", "/terms"])
async def test_nothing_is_inline_or_from_elsewhere_and_no_script_is_needed(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.get(path)
    page = Page(answer)
    assert page.all("script") == page.all("style") == page.all("img") == []
    assert not any(name == "style" or name.startswith("on") for _, tag in page.tags for name in tag)
    for link in page.all("link"):
        assert link["href"].startswith("/assets/") or link["rel"] == "canonical"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/refer", "/terms"])
async def test_a_page_is_kept_for_some_minutes_and_head_says_so_too(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert got.headers["cache-control"] == "public, max-age=300"
    assert head.status_code == 200
    assert head.content == b""
    assert dict(head.headers) == dict(got.headers)
    assert {"Accept-Encoding", "Accept-Language"} <= set(got.headers["vary"].split(", "))


async def over_the_wire(client: httpx.AsyncClient, path: str, *, gzip: bool = True) -> int:
    """How many bytes a file has on its way, headers not counted."""
    request = client.build_request("GET", path, headers={"Accept-Encoding": "gzip" if gzip else "identity"})
    answer = await client.send(request, stream=True)
    assert answer.status_code == 200
    assert (answer.headers.get("content-encoding") == "gzip") is gzip
    size = sum([len(part) async for part in answer.aiter_raw()])
    await answer.aclose()
    return size


@pytest.mark.parametrize("accepts", ["gzip;q=0", "gzip; q=0.000, *", "identity", "x-gzip-like"])
async def test_who_does_not_take_compressed_answers_gets_none(client: httpx.AsyncClient, accepts: str) -> None:
    page = await client.get("/refer", headers={"Accept-Encoding": accepts})
    (style, *_) = (link["href"] for link in Page(page).all("link") if link["href"].endswith(".css"))
    for answer in (page, await client.get(style, headers={"Accept-Encoding": accepts})):
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
        assert "Accept-Encoding" in answer.headers["vary"]


@pytest.mark.parametrize("path", ["/refer", "/terms"])
async def test_the_first_view_is_small(client: httpx.AsyncClient, path: str) -> None:
    page = await read(client, path)
    files = [link["href"] for link in page.all("link") if link["href"].startswith("/assets/")]
    assert len(files) == 3
    whole = sum([await over_the_wire(client, each) for each in (path, *files)])
    assert whole < 20_000, "a third of what a first view may have"
    assert whole < sum([await over_the_wire(client, each, gzip=False) for each in (path, *files)]) / 2


async def test_numbers_are_written_as_the_reader_writes_them(client: httpx.AsyncClient) -> None:
    german = await read(client, **{"Accept-Language": "de-DE,de;q=0.9,en;q=0.5"})
    assert german.cells[-1][1:3] == ["79\u00a0$", "1.200"]
    assert "each of you gets 25 % of that plan" in german.text
    spaced = await read(client, **{"Accept-Language": "en; q=0.5, de ; q=0.9"})
    assert spaced.cells == german.cells
    assert (await read(client, **{"Accept-Language": "tlh, *;q=0.1"})).cells[-1][2] == "1,200"


async def test_the_page_unfurls_with_a_picture_made_from_the_plans(
    client: httpx.AsyncClient, other_plans: Path
) -> None:
    metas = (await read(client)).metas
    assert metas["og:url"] == f"{PUBLIC_URL}/refer"
    assert metas["og:title"]
    assert metas["og:title"] == metas["twitter:title"]
    assert "you both get 25%" in metas["og:description"]
    assert metas["twitter:card"] == "summary_large_image"
    assert metas["og:image"].startswith(f"{PUBLIC_URL}/assets/")
    picture = await client.get(metas["og:image"].removeprefix(PUBLIC_URL))
    assert picture.headers["content-type"] == metas["og:image:type"] == "image/png"
    assert picture.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert picture.content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture.content[at : at + 4]) for at in (16, 20))
    assert (metas["og:image:width"], metas["og:image:height"]) == (str(width), str(height)) == ("1200", "630")
    async with site(plans_file=other_plans) as other:
        changed = (await read(other)).metas
        assert changed["og:image"] != metas["og:image"]
        assert (await other.get(metas["og:image"].removeprefix(PUBLIC_URL))).status_code == 404
    assert "Duo & Co 617" in changed["og:image:alt"]


async def test_the_pages_are_documented(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/refer", "/terms"):
        assert list(paths[path]["get"]["responses"]["200"]["content"]) == ["text/html"]
    assert not any(path.startswith("/assets") or path == "/" for path in paths)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (timedelta(days=90), "90 days"),
        (timedelta(days=1), "1 day"),
        (timedelta(hours=36), "36 hours"),
        (timedelta(minutes=90), "90 minutes"),
        (timedelta(seconds=90), "90 seconds"),
        (timedelta(days=1234), "1,234 days"),
    ],
)
def test_a_length_of_time_is_told_in_the_largest_whole_unit(length: timedelta, words: str) -> None:
    assert in_site("{{ span(it) }}", it=length) == words


def test_a_share_is_told_with_all_its_decimals_and_a_price_with_its_cents() -> None:
    assert in_site("{{ percent(it) }}", it=Fraction(1, 8)) == "12.5%"
    assert in_site("{{ dollars(it) }}", it=1250) == "$12.50"
    assert in_site("{{ dollars(it) }}", it=120000) == "$1,200"
