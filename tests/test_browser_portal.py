"""The dashboard as members meet it in a real browser: every state, copying and sharing, news, the way in and out."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import psycopg
import pytest
from playwright.async_api import Page, Request, Route, expect

from tests.browser_support import (
    DESKTOP,
    PHONE,
    WAIT_MILLISECONDS,
    WIDTHS,
    Person,
    Site,
    Wire,
    arrives_piece_by_piece,
    assert_stands_still,
)
from tests.conftest import free_port
from tests.http_support import WHATSAPP, Visit, person
from tests.population import Past, plant
from tests.stripe_events import subscription
from tests.support import MONTH, DatabaseUrls, Member

pytestmark = pytest.mark.asyncio(loop_scope="module")

expect.set_options(timeout=WAIT_MILLISECONDS)

DISCLOSURE = "I get bonus minutes too"
PAGE_BYTES = 60_000
FRIENDS_A_PAGE = 20


@pytest.fixture(scope="module")
def owner(module_urls: DatabaseUrls) -> Iterator[psycopg.Connection]:
    """The owner of the module's database."""
    with psycopg.connect(module_urls.owner.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


async def address_for(site: Site, member: Member) -> str:
    """The address that KallyAI leads a signed-in member to."""
    answer = await site.starter.call("POST", f"/v1/accounts/{member.account_id}/portal-sessions")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"])


async def enter(site: Site, visitor: Person, member: Member) -> Page:
    """Let somebody into a member's dashboard."""
    await visitor.page.goto(await address_for(site, member))
    await expect(visitor.page.get_by_role("heading", level=1, name="Your referrals")).to_be_visible()
    return visitor.page


async def friend_of(site: Site, code: str, *, channel: str = "whatsapp") -> tuple[Member, str]:
    """A friend who has followed the link and signed up; with the referral's id."""
    visit: Visit = await site.starter.click(code, channel=channel)
    friend = person("fred")
    referral_id = await site.starter.signed_up(friend, referral_token=visit.token)
    await site.starter.reaches(referral_id, "signed_up")
    await site.starter.account(friend)
    return friend, referral_id


# Members in every state


async def nobody_invited(site: Site) -> Member:
    rita = await site.starter.subscriber()
    await site.starter.link(rita)
    return rita


async def without_link(site: Site) -> Member:
    return await site.starter.subscriber()


async def not_a_subscriber(site: Site) -> Member:
    return await site.starter.account(person("nora"))


async def subscriber_no_more(site: Site) -> Member:
    """Whose plan ended after the link was taken."""
    rita = await site.starter.subscriber(cycle_ends_in=-timedelta(minutes=1))
    await site.starter.link(rita)
    now = datetime.now(UTC)
    ended = subscription(
        rita.customer_id,
        rita.subscription_id,
        now - MONTH,
        now,
        status="canceled",
        ended_at=now,
        type_="customer.subscription.deleted",
    )
    assert (await site.starter.stripe(ended)).status_code == 200
    return rita


async def with_friends(site: Site) -> Member:
    """One of each kind: one who paid, one who has not yet, and one who is gone again."""
    rita = await site.starter.subscriber()
    code = await site.starter.link(rita)
    paying, referral_id = await friend_of(site, code)
    await site.starter.pay(paying)
    await site.starter.reaches(referral_id, "credited")
    await friend_of(site, code, channel="sms")
    gone, referral_id = await friend_of(site, code, channel="email")
    assert (await site.starter.call("DELETE", f"/v1/accounts/{gone.account_id}")).status_code == 204
    await site.starter.reaches(referral_id, "refused")
    return rita


STATES: dict[str, tuple[Callable[[Site], Awaitable[Member]], str]] = {
    "nobody invited yet": (nobody_invited, "that is how everybody starts"),
    "no link yet": (without_link, "By taking the link you accept"),
    "not a subscriber": (not_a_subscriber, "A link comes with a paid plan"),
    "a subscriber no more": (subscriber_no_more, "The link stays yours and goes on working"),
    "with friends": (with_friends, "Signed up, waiting for the first payment"),
}


@pytest.mark.parametrize("state", STATES)
async def test_every_state_is_told_in_words_and_accessible(site: Site, state: str) -> None:
    make, words = STATES[state]
    member = await make(site)
    for width in WIDTHS.values():
        async with site.person(width) as visitor:
            page = await enter(site, visitor, member)
            await expect(page.get_by_role("main")).to_contain_text(words)
            await looks_well(visitor)


@pytest.mark.parametrize("width", WIDTHS)
async def test_nothing_moves_while_the_page_arrives(site: Site, width: str) -> None:
    rita = await with_friends(site)
    async with site.person(WIDTHS[width]) as visitor:
        await visitor.context.add_init_script("Navigator.prototype.share = async () => {};")
        page = await enter(site, visitor, rita)

        await arrives_piece_by_piece(page)

        await expect(page.get_by_role("main")).to_contain_text("Signed up, waiting for the first payment")
        await expect(page.get_by_role("button", name="Share …")).to_be_visible()
        await assert_stands_still(page)


async def looks_well(visitor: Person) -> None:
    """Hold a page to be accessible by day and by night, to fit its window, and to stand still."""
    await visitor.assert_nothing_hangs_over()
    await visitor.assert_accessible()
    await visitor.assert_accessible_by_night()
    await assert_stands_still(visitor.page)


async def test_the_ways_out_and_the_page_of_bad_times_look_well_too(site: Site) -> None:
    rita = await nobody_invited(site)
    for width in WIDTHS.values():
        async with site.person(width, expected=(401, 503)) as visitor:
            await visitor.open("/portal")
            await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Your visit has ended")
            await looks_well(visitor)
            await enter(site, visitor, rita)
            async with site.another(database_url=f"postgresql+psycopg://x:x@127.0.0.1:{free_port()}/x") as away:
                answer = await visitor.page.goto(f"{away.address}/portal")
                assert answer is not None
                assert answer.status == 503
                await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Back in a moment")
                await looks_well(visitor)


async def test_rule_22_every_friend_is_told_of_in_human_words(site: Site) -> None:
    rita = await with_friends(site)
    async with site.person() as visitor:
        page = await enter(site, visitor, rita)
        friends = page.get_by_role("region", name="Friend by friend").get_by_role("listitem")
        await expect(friends).to_have_count(3)
        told = await friends.all_inner_texts()
        assert "No bonus for this one" in told[0]
        assert "Account erased" in told[0]
        assert "waiting for the first payment" in told[1]
        assert "You both got 90 bonus minutes" in told[2]
        assert "Use yours until" in told[2]
        # Of whom one knows nothing but when: no name, no address, no id.
        assert not re.search(r"acct|fred|@", " ".join(told))
        figures = page.locator("dl.figures dd b")
        assert await figures.all_inner_texts() == ["2", "1", "90"]
        ways = page.get_by_role("region", name="Ways you shared").get_by_role("row")
        assert [re.sub(r"\s+", " ", row) for row in (await ways.all_inner_texts())[1:]] == [
            "Text message 1 1",
            "WhatsApp 1 1",
            "E-mail 1 0",
        ]
        # The pictures of the months can be read out, and are a table as well.
        chart = page.get_by_role("img", name="Friends invited and subscribed")
        this_month = datetime.now(UTC).strftime("%B %Y")
        assert f"{this_month}: 2 invited, 1 subscribed." in (await chart.locator("desc").text_content() or "")
        await page.get_by_text("The same as a table").click()
        row = page.get_by_role("row", name=this_month)
        assert (await row.get_by_role("cell").all_inner_texts()) == ["2", "1", "90"]


async def popular(site: Site, owner: psycopg.Connection, friends: int) -> tuple[Member, Past]:
    """A member with that many friends."""
    rosa = await site.starter.subscriber("rosa")
    code = await site.starter.link(rosa)
    return rosa, plant(owner, rosa, code, friends, now=datetime.now(UTC), over=timedelta(days=500))


async def signups(page: Page) -> list[str]:
    """When the friends on a page signed up."""
    times: list[str] = await page.locator(".friend-name time").evaluate_all("each => each.map(time => time.dateTime)")
    return times


async def test_ten_thousand_friends_are_a_page_like_any_other(site: Site, owner: psycopg.Connection) -> None:
    rita, past = await popular(site, owner, 10_000)
    for width in (PHONE, DESKTOP):
        async with site.person(width) as visitor:
            wire = await Wire().watch(visitor)
            page = await enter(site, visitor, rita)
            await page.wait_for_load_state("load")
            assert wire.total < PAGE_BYTES, str(wire)
            assert await page.locator("dl.figures dd b").all_inner_texts() == [
                f"{number:,}" for number in (past.invited, past.subscribed, past.earned)
            ]
            minutes = page.get_by_role("region", name="Your bonus minutes now")
            await expect(minutes.locator(".big-number").first).to_have_text(f"{past.available:,} minutes")
            await looks_well(visitor)
            friends = page.get_by_role("region", name="Friend by friend").locator("ul.friends > li")
            await expect(friends).to_have_count(FRIENDS_A_PAGE)
            first = await signups(page)
            await page.get_by_role("link", name="Older").click()
            await page.wait_for_url("**/portal?cursor=*")
            await expect(friends).to_have_count(FRIENDS_A_PAGE)
            assert not set(await signups(page)) & set(first)
            await page.get_by_role("link", name="Newest first").click()
            await page.wait_for_url(re.compile(r"/portal(#\w+)?$"))
            assert await signups(page) == first


async def test_numbers_and_times_are_the_readers_own(site: Site, owner: psycopg.Connection) -> None:
    rita, past = await popular(site, owner, 30)
    assert past.earned > 1_000
    earned = f"{past.earned:,}"
    readers = [
        ("en-US", "America/Los_Angeles", earned, "%-I:%M"),
        ("de-DE", "Europe/Berlin", earned.replace(",", "."), "%H:%M"),
        ("fr-FR", "Asia/Kolkata", earned.replace(",", "\u202f"), "%H:%M"),
    ]
    for locale, zone, written, clock in readers:
        async with site.person(locale=locale, timezone_id=zone) as visitor:
            page = await enter(site, visitor, rita)
            assert (await page.locator("dl.figures dd b").all_inner_texts())[2] == written
            for moment in await page.locator("time[data-part=moment]:visible").all():
                at = datetime.fromisoformat(await moment.get_attribute("datetime") or "").astimezone(ZoneInfo(zone))
                text = await moment.inner_text()
                assert at.strftime(clock) in text, (zone, text, at)
                assert str(at.day) in text
            assert "UTC" not in await page.get_by_role("main").inner_text()


async def test_without_script_the_same_is_read_and_the_link_can_be_taken(site: Site) -> None:
    rita = await with_friends(site)
    texts = []
    for script in (True, False):
        async with site.person(java_script_enabled=script) as visitor:
            page = await enter(site, visitor, rita)
            assert await page.get_by_role("button", name="Copy", exact=True).is_visible() is script
            assert ("UTC" in await visitor.reads()) is not script
            # But for times, which say whose they are, and for what only a script can do.
            await page.locator("time, .needs-script").evaluate_all("each => each.forEach(one => one.remove())")
            texts.append(await visitor.reads())
    assert texts[0] == texts[1]

    nina = await without_link(site)
    async with site.person(PHONE, java_script_enabled=False) as visitor:
        page = await enter(site, visitor, nina)
        await page.get_by_role("button", name="Get my link").click()
        code = await site.starter.link(nina)
        await expect(page.get_by_label("Your referral link")).to_have_value(f"{site.address}/r/{code}")


# Copying and sharing


async def test_the_link_is_copied_with_one_tap(site: Site) -> None:
    rita = await without_link(site)
    async with site.person(PHONE, permissions=["clipboard-read", "clipboard-write"]) as visitor:
        await visitor.page.clock.install()
        page = await enter(site, visitor, rita)
        await page.get_by_role("button", name="Get my link").tap()
        link = f"{site.address}/r/{await site.starter.link(rita)}"
        await expect(page.get_by_label("Your referral link")).to_have_value(link)
        # The page's own clock stands: what is shown for a moment is there when it is looked at.
        await page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=1))
        await page.get_by_role("button", name="Copy", exact=True).tap()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        await page.clock.run_for(100)
        await expect(page.locator("[data-said]")).to_have_text("Link copied")
        assert await page.evaluate("navigator.clipboard.readText()") == f"{link}?c=copy"
        await page.get_by_text("The words that go along").tap()
        await page.get_by_role("button", name="Copy text and link").tap()
        await expect(page.get_by_role("button", name="Copied")).to_have_count(2)
        await page.clock.run_for(100)
        await expect(page.locator("[data-said]")).to_have_text("Text and link copied")
        words = await page.evaluate("navigator.clipboard.readText()")
        assert DISCLOSURE in words
        assert words.endswith(f"{link}?c=copy")
        await page.clock.run_for(3000)
        await expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()


async def test_where_copying_is_not_allowed_the_link_can_be_selected(site: Site) -> None:
    rita = await nobody_invited(site)
    async with site.person() as visitor:
        await visitor.context.add_init_script(
            "delete Navigator.prototype.clipboard; document.execCommand = () => false;"
        )
        page = await enter(site, visitor, rita)
        await page.get_by_role("button", name="Copy", exact=True).click()
        await expect(page.locator("[data-said]")).to_contain_text("Select the link")
        await page.get_by_label("Your referral link").click()
        assert await page.evaluate("getSelection().toString()") == f"{site.address}/r/{await site.starter.link(rita)}"


async def test_rule_13_every_way_to_share_has_its_channel_and_discloses(site: Site) -> None:
    rita = await nobody_invited(site)
    link = f"{site.address}/r/{await site.starter.link(rita)}"
    async with site.person() as visitor:
        page = await enter(site, visitor, rita)
        ways = page.get_by_role("list", name="Share it").get_by_role("link")
        shared = {}
        for way in await ways.all():
            parts = urlsplit(await way.get_attribute("href") or "")
            values = {name: value for name, (value,) in parse_qs(parts.query).items()}
            text = " ".join(values.values())
            (found,) = re.findall(re.escape(link) + r"\?c=(\w+)", text)
            assert DISCLOSURE in text, parts
            elsewhere = await way.get_attribute("target")
            if parts.scheme == "https":
                assert elsewhere == "_blank"
                assert set((await way.get_attribute("rel") or "").split()) == {"noopener", "noreferrer"}
            else:
                assert elsewhere is None
            shared[found] = f"{parts.scheme}:{parts.netloc}"
        assert shared == {
            "sms": "sms:",
            "email": "mailto:",
            "whatsapp": "https:wa.me",
            "x": "https:x.com",
            "facebook": "https:www.facebook.com",
            "linkedin": "https:www.linkedin.com",
        }


async def test_the_devices_own_share_menu_is_used_where_there_is_one(site: Site) -> None:
    rita = await nobody_invited(site)
    link = f"{site.address}/r/{await site.starter.link(rita)}"
    async with site.person(PHONE) as visitor:
        await visitor.context.add_init_script(
            "Navigator.prototype.share = async what => { shared = what; throw new DOMException('', 'AbortError'); };"
        )
        page = await enter(site, visitor, rita)
        await page.get_by_role("button", name="Share").tap()
        shared = await page.evaluate("window.shared")
        assert shared["url"] == f"{link}?c=share"
        assert DISCLOSURE in shared["text"]
        assert shared["title"]
    async with site.person(PHONE) as visitor:
        await visitor.context.add_init_script("delete Navigator.prototype.share;")
        page = await enter(site, visitor, rita)
        await expect(page.get_by_role("link", name="WhatsApp")).to_be_visible()
        await expect(page.get_by_role("button", name="Share")).to_be_hidden()


async def test_the_qr_code_is_shown_and_can_be_kept(site: Site) -> None:
    rita = await nobody_invited(site)
    async with site.person(PHONE) as visitor:
        page = await enter(site, visitor, rita)
        code = page.get_by_role("img", name="QR code")
        await code.scroll_into_view_if_needed()
        assert await code.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        async with page.expect_download() as kept:
            await page.get_by_role("link", name="Download QR code").tap()
        file = await kept.value
        assert file.suggested_filename.endswith(".svg")
        assert (await file.path()).read_bytes().lstrip().startswith((b"<?xml", b"<svg"))


async def test_a_keyboard_is_enough(site: Site) -> None:
    rita = await with_friends(site)
    async with site.person(expected=(401,), permissions=["clipboard-read", "clipboard-write"]) as visitor:
        page = await enter(site, visitor, rita)
        stops = await visitor.tabbed_through()
        reachable = "a[href]:visible, button:visible, input:not([type=hidden]):visible, summary:visible"
        assert len(stops) == await page.locator(reachable).count()
        assert stops[0]["name"] == "Skip to the content"
        names = [stop["name"] for stop in stops]
        for name in ("Sign out", "Copy", "WhatsApp (opens in a new tab)", "Download QR code", "The same as a table"):
            assert name in names
        await reach(visitor, "Copy")
        await visitor.press("Enter")
        await expect(page.locator("[data-said]")).to_have_text("Link copied")
        await reach(visitor, "The words that go along")
        await visitor.press("Space")
        await expect(page.get_by_role("button", name="Copy text and link")).to_be_visible()
        await reach(visitor, "Sign out")
        await visitor.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Your visit has ended")


async def reach(visitor: Person, name: str) -> None:
    """Press Tab until something of that name has the focus."""
    for _ in range(60):
        await visitor.press("Tab")
        if (await visitor.focused())["name"] == name:
            return
    raise AssertionError(f"the Tab key does not come by {name!r}")


# News


async def test_rule_6_both_see_their_minutes_arrive_without_a_reload(site: Site) -> None:
    rita = await site.starter.subscriber()
    code = await site.starter.link(rita)
    async with site.person(PHONE) as one, site.person(DESKTOP) as other:
        ritas = await enter(site, one, rita)
        await expect(ritas.get_by_role("main")).to_contain_text("that is how everybody starts")
        await ritas.evaluate("window.loadedOnce = true")
        fred, referral_id = await friend_of(site, code)
        await expect(ritas.get_by_role("main")).to_contain_text("Signed up, waiting for the first payment")
        await expect(ritas.get_by_role("status").first).to_contain_text("1 friend signed up with your link")

        freds = await enter(site, other, fred)
        await freds.evaluate("window.loadedOnce = true")
        await expect(freds.locator(".minutes .big-number")).to_have_text("0 minutes")
        summary = ritas.get_by_text("The words that go along")
        await summary.focus()
        await one.press("Enter")
        await site.starter.pay(fred)

        for page in (ritas, freds):
            await expect(page.locator(".minutes .big-number")).to_have_text("90 minutes")
            await expect(page.get_by_role("status").first).to_contain_text("You got 90 bonus minutes")
            assert await page.evaluate("window.loadedOnce")
        await expect(ritas.get_by_role("main")).to_contain_text("You both got 90 bonus minutes")
        await expect(freds.get_by_role("main")).to_contain_text("Welcome bonus")
        # What the reader was doing goes on.
        assert (await one.focused())["name"] == "The words that go along"
        await expect(ritas.get_by_role("button", name="Copy text and link")).to_be_visible()
        await one.assert_accessible()
        await site.starter.reaches(referral_id, "credited")


async def test_while_news_are_fetched_the_page_says_that_it_is_busy(site: Site) -> None:
    rita = await nobody_invited(site)
    fetched = asyncio.Event()

    async def hold(route: Route) -> None:
        await fetched.wait()
        await route.continue_()

    async with site.person() as visitor:
        page = await enter(site, visitor, rita)
        busy = page.locator("[aria-busy=true]")
        await page.route(f"{site.address}/portal", hold)
        await site.starter.click(await site.starter.link(rita), channel="qr")
        await expect(busy.first).to_be_visible()
        # What there is can be read meanwhile.
        await expect(page.get_by_label("Your referral link")).to_be_visible()
        fetched.set()
        await expect(page.get_by_role("region", name="Ways you shared")).to_contain_text("1 click in all")
        await expect(busy).to_have_count(0)


async def test_a_visit_that_ends_is_told_in_place(site: Site, owner: psycopg.Connection) -> None:
    rita = await nobody_invited(site)
    async with site.person(expected=(401,)) as visitor:
        page = await enter(site, visitor, rita)
        await expect(page.locator("[data-portal]")).to_be_visible()
        owner.execute(
            "UPDATE portal_session SET expires_at = now() - interval '1 second' WHERE account_id = %s",
            (rita.account_id,),
        )
        await expect(page.get_by_role("alert")).to_contain_text("Your visit here has ended")
        await expect(page.get_by_label("Your referral link")).to_be_visible()
        await visitor.assert_accessible()
        answer = await page.reload()
        assert answer is not None
        assert answer.status == 401
        await expect(page.get_by_role("heading", level=1)).to_have_text("Your visit has ended")


async def test_who_loses_the_connection_is_told_so(site: Site) -> None:
    rita = await nobody_invited(site)
    async with site.person() as visitor:
        async with site.another() as other:
            await enter(other, visitor, rita)
            await expect(visitor.page.locator("[data-hint]")).to_be_hidden()
            visitor.assert_content()
        await expect(visitor.page.locator("[data-hint]")).to_contain_text("Reconnecting")
        await expect(visitor.page.locator("[data-hint]")).to_be_visible()
        await visitor.assert_accessible()
        visitor.complaints.clear()


# The way in and out


async def test_the_address_works_once_and_nothing_of_it_stays(site: Site) -> None:
    rita = await nobody_invited(site)
    address = await address_for(site, rita)
    token = parse_qs(urlsplit(address).query)["session"][0]
    async with site.person() as visitor, site.person(PHONE, expected=(401,)) as stranger:
        sent: list[str] = []

        def note(request: Request) -> None:
            sent.extend([request.headers.get("referer", ""), request.url if "/portal?" not in request.url else ""])

        visitor.context.on("request", note)
        await visitor.page.goto(address)
        await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Your referrals")
        assert visitor.page.url == f"{site.address}/portal"
        assert await visitor.page.evaluate("document.referrer") == ""
        assert token not in await visitor.page.content()
        await visitor.page.get_by_role("link", name="Program Terms").first.click()
        await visitor.page.wait_for_url("**/terms")
        assert await visitor.page.evaluate("document.referrer") == ""
        assert not any(token in each for each in sent)
        assert not any("session" in each for each in sent)
        # The very same browser goes on; any other is not let in.
        await visitor.page.goto(address)
        await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Your referrals")
        await stranger.page.goto(address)
        await expect(stranger.page.get_by_role("heading", level=1)).to_have_text("Your visit has ended")
        cookies = await visitor.context.cookies()
        assert [(each["name"], each["httpOnly"], each["sameSite"]) for each in cookies] == [
            ("kally_portal", True, "Lax")
        ]
        assert token not in str(cookies)


async def test_rule_17_a_machine_uses_no_address_up_and_a_person_taken_for_one_goes_on(site: Site) -> None:
    rita = await nobody_invited(site)
    async with site.person(PHONE, user_agent=WHATSAPP) as visitor:
        await visitor.page.goto(await address_for(site, rita))
        assert not await visitor.context.cookies()
        await looks_well(visitor)
        await visitor.page.get_by_role("main").get_by_role("button").tap()
        await expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Your referrals")
        assert visitor.page.url == f"{site.address}/portal"


async def test_who_signs_out_is_out(site: Site) -> None:
    rita = await nobody_invited(site)
    async with site.person(PHONE, expected=(401,)) as visitor:
        page = await enter(site, visitor, rita)
        code = await site.starter.link(rita)
        await page.get_by_role("button", name="Sign out").tap()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Your visit has ended")
        assert not await visitor.context.cookies()
        await page.go_back()
        await expect(page.get_by_text("has ended").first).to_be_visible()
        assert code not in await visitor.reads()


async def test_two_members_at_one_computer_see_nothing_of_each_other(site: Site, owner: psycopg.Connection) -> None:
    rosa, _ = await popular(site, owner, 30)
    code = await site.starter.link(rosa)
    nina = await nobody_invited(site)
    async with site.person() as visitor:
        page = await enter(site, visitor, rosa)
        older = await page.get_by_role("link", name="Older").get_attribute("href") or ""
        await enter(site, visitor, nina)
        for path in ("/portal", older.partition("#")[0]):
            await visitor.open(path)
            content = await page.content()
            assert code not in content
            assert rosa.account_id not in content
            await expect(page.get_by_role("main")).to_contain_text("that is how everybody starts")
            await expect(page.get_by_label("Your referral link")).to_have_value(
                re.compile(await site.starter.link(nina))
            )
