"""The public pages as people meet them in a real browser: narrow and wide, in the dark, by keyboard, without script."""

import re

import pytest
from playwright.async_api import expect

from tests.browser_support import PHONE, WIDTHS, Site, Wire, arrives_piece_by_piece, assert_stands_still
from tests.http_support import WHATSAPP

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGES = {"/refer": 200, "/terms": 200, "/r/nosuchcode": 404}

FIRST_VIEW_BYTES = 60_000


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
async def test_every_page_is_accessible_by_day_and_by_night(site: Site, path: str, width: str) -> None:
    async with site.person(WIDTHS[width], expected=(404,)) as reader:
        answer = await reader.open(path)
        assert answer.status == PAGES[path]
        await reader.assert_accessible()
        await reader.assert_nothing_hangs_over()
        assert await reader.brightness() > 0.7
        await reader.assert_accessible_by_night()


@pytest.mark.parametrize("path", PAGES)
async def test_nothing_hangs_over_on_the_narrowest_phones(site: Site, path: str) -> None:
    for width in (360, 320):
        async with site.person(viewport={"width": width, "height": 740}, expected=(404,)) as reader:
            await reader.open(path)
            await reader.assert_nothing_hangs_over()


@pytest.mark.parametrize("path", PAGES)
async def test_no_script_is_needed_to_read_anything(site: Site, path: str) -> None:
    texts = []
    for script in (True, False):
        async with site.person(PHONE, java_script_enabled=script, expected=(404,)) as reader:
            await reader.open(path)
            await reader.page.wait_for_load_state("networkidle")
            # Answers that are folded away open without a script as well.
            for question in await reader.page.locator("summary").all():
                await question.click()
            texts.append(await reader.reads())
    with_script, without = texts
    assert with_script == without
    assert len(without) > 100


async def test_the_first_view_is_small_and_stands_still(site: Site) -> None:
    async with site.person(PHONE) as reader:
        wire = await Wire().watch(reader)
        await reader.open("/refer")
        await reader.page.wait_for_load_state("networkidle")
        await reader.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        await reader.page.wait_for_load_state("networkidle")
        assert 5_000 < wire.total < FIRST_VIEW_BYTES, str(wire)
        await assert_stands_still(reader.page)
    async with site.person() as reader:
        await reader.open("/refer")
        await assert_stands_still(reader.page)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
async def test_nothing_moves_while_a_page_arrives(site: Site, path: str, width: str) -> None:
    async with site.person(WIDTHS[width], expected=(404,)) as reader:
        await reader.open(path)

        await arrives_piece_by_piece(reader.page)

        await expect(reader.page.get_by_role("contentinfo")).to_contain_text("Program Terms")
        await assert_stands_still(reader.page)


async def test_a_keyboard_is_enough(site: Site) -> None:
    async with site.person() as reader:
        await reader.open("/refer")
        stops = await reader.tabbed_through()
        assert len(stops) == await reader.page.locator("a[href]:visible, button:visible, summary:visible").count()
        # After the end comes the beginning.
        await reader.press("Tab")
        assert await reader.focused() == stops[0]
        assert stops[0]["name"] == "Skip to the content"
        await reader.press("Enter")
        assert (await reader.focused())["tag"] == "main"
        questions = [stop for stop in stops if stop["tag"] == "summary"]
        assert len(questions) >= 5
        for number in range(len(questions)):
            question = reader.page.locator("summary").nth(number)
            answer = reader.page.locator("details").nth(number)
            was_open = await answer.get_attribute("open")
            await question.focus()
            await reader.press("Enter")
            assert await answer.get_attribute("open") != was_open
            await reader.press("Space")
            assert await answer.get_attribute("open") == was_open


async def test_numbers_are_written_as_the_reader_does(site: Site) -> None:
    for locale, minutes in (("en-US", "1,200"), ("de-DE", "1.200"), ("fr-FR", "1\u202f200")):
        async with site.person(locale=locale) as reader:
            await reader.open("/refer")
            assert minutes in await reader.page.locator("table").inner_text()


async def test_who_mistyped_a_code_finds_the_way_on(site: Site) -> None:
    async with site.person(PHONE, expected=(404,)) as friend:
        await friend.open("/r/nosuchcode")
        assert await friend.page.locator("a[href^='https://app.kally.example/signup']").first.is_visible()
        await friend.page.get_by_role("main").get_by_role("link", name="How invitations work").click()
        await friend.page.wait_for_url("**/refer")


async def test_rule_17_who_was_taken_for_a_machine_can_read_the_preview_and_go_on(site: Site) -> None:
    code = await site.starter.link(await site.starter.subscriber())
    async with site.person(PHONE, user_agent=WHATSAPP) as friend:
        await friend.open(f"/r/{code}")
        await friend.assert_accessible()
        await friend.assert_accessible_by_night()
        await friend.assert_nothing_hangs_over()
        picture = await friend.page.locator("meta[property='og:image']").get_attribute("content") or ""
        assert (await friend.page.request.get(picture)).headers["content-type"] == "image/png"
        # The signup is somebody else's page.
        signup = re.compile(r"^https://app\.kally\.example/signup\?ref=[\w.-]+$")
        await friend.page.route(signup, lambda route: route.fulfill(body="<title>Sign up</title>"))
        friend.hosts.add("app.kally.example")
        await friend.page.get_by_role("link", name="Sign up with this invitation").tap()
        await friend.page.wait_for_url(signup)
