"""People who look at the pages in a real browser, and what they must never meet there."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    WebError,
    async_playwright,
)
from temporalio.client import Client

from starter.server import Server
from tests.http_support import Starter, serve
from tests.support import DatabaseUrls, World

FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
"""What keeps a browser from looking for its maker's servers."""

DESKTOP: Mapping[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: Mapping[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WIDTHS = {"phone": PHONE, "desktop": DESKTOP}

_AGENT = "Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version} Safari/537.36"
_ANDROID = "Linux; Android 15; Pixel 9"
_LINUX = "X11; Linux x86_64"

AXE_TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
AXE_RULES_OF_COLOUR = ("color-contrast", "link-in-text-block")

WAIT_MILLISECONDS = 60_000
"""How long a page may take to show what it must: far more than it needs, for machines that are busy."""


class Person:
    """Somebody with a browser of their own: its own cookies, width, language and time zone.

    Whatever nobody should meet is kept as a complaint: an error in the console, what the content policy refused, a
    failed request, a status that was not expected, a request to a host that is none of `hosts`.
    """

    def __init__(self, context: BrowserContext, page: Page, address: str, expected: tuple[int, ...]) -> None:
        self.context = context
        self.page = page
        self.complaints: list[str] = []
        self.expected = set(expected)
        self.address = address
        self.hosts = {urlsplit(address).hostname}
        context.on("console", self._console)
        context.on("weberror", self._error)
        context.on("request", self._request)
        context.on("requestfailed", self._failed)
        context.on("response", self._answered)

    async def open(self, path: str) -> Response:
        """Open a page of the site; gives its answer."""
        answer = await self.page.goto(self.address + path)
        assert answer is not None
        return answer

    def assert_content(self) -> None:
        """Hold that there was nothing to complain of."""
        assert not self.complaints, "\n".join(self.complaints)

    async def assert_accessible(self) -> None:
        """Hold that axe finds nothing wrong with the page as it is now."""
        await self._axe({"type": "tag", "values": AXE_TAGS}, 10)

    async def assert_accessible_by_night(self) -> None:
        """Turn the lights out, and hold that what can be wrong then alone is not."""
        await self.page.emulate_media(color_scheme="dark")
        assert await self.brightness() < 0.3
        await self._axe({"type": "rule", "values": AXE_RULES_OF_COLOUR}, 1)

    async def _axe(self, rules: dict[str, Any], passes: int) -> None:
        results = await Axe().run(self.page, options={"runOnly": rules, "resultTypes": ["violations"]})
        found = [
            f"{violation['id']}: {violation['help']}: {node['html'][:200]}: {node.get('failureSummary')}"
            for violation in results.response["violations"]
            for node in violation["nodes"]
        ]
        assert not found, f"{self.page.url}:\n" + "\n".join(found)
        assert len(results.response["passes"]) >= passes, "else it looked at next to nothing"

    async def assert_nothing_hangs_over(self) -> None:
        """Hold that nothing makes the page wider than its window."""
        wide = await self.page.evaluate(
            """() => {
                const room = document.documentElement.clientWidth;
                if (document.documentElement.scrollWidth <= room) return [];
                return [...document.querySelectorAll('body *')]
                    .filter(each => each.getBoundingClientRect().right > room + 0.5)
                    .map(each => each.outerHTML.slice(0, 120));
            }"""
        )
        assert not wide, f"{self.page.url}: " + "\n".join(wide)

    async def reads(self) -> str:
        """The text of the page as it is shown."""
        return await self.page.locator("body").inner_text()

    async def brightness(self) -> float:
        """How bright the page's paper is, from 0 to 1."""
        colour: list[int] = await self.page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
        )
        return sum(colour) / (3 * 255)

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            await self.page.keyboard.press(key)

    async def focused(self) -> dict[str, Any]:
        """What has the keyboard's focus: its tag, id, name for assistive technology, and whether one sees it."""
        focused: dict[str, Any] = await self.page.evaluate(
            """() => {
                const each = document.activeElement, box = each.getBoundingClientRect(), style = getComputedStyle(each);
                const name = each.getAttribute('aria-label') || each.innerText || each.value || '';
                return {
                    tag: each.tagName.toLowerCase(),
                    id: each.id,
                    name: name.replace(/\\s+/g, ' ').trim(),
                    href: each.getAttribute('href'),
                    seen: box.width > 0 && box.right > 0 && box.bottom > 0
                        && box.left < innerWidth && box.top < innerHeight,
                    outlined: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
                };
            }"""
        )
        return focused

    async def tabbed_through(self, most: int = 120) -> list[dict[str, Any]]:
        """All that the Tab key comes by from where the focus is to the page's end; each must be seen and outlined."""
        seen: list[dict[str, Any]] = []
        for _ in range(most):
            await self.press("Tab")
            now = await self.focused()
            if now["tag"] == "body":
                return seen
            assert now["seen"], f"the focus cannot be seen: {now}"
            assert now["outlined"], f"the focus is not marked: {now}"
            seen.append(now)
        raise AssertionError(f"the Tab key does not come to an end: {seen[-3:]}")

    def _complain(self, what: str) -> None:
        self.complaints.append(what)

    def _console(self, message: ConsoleMessage) -> None:
        # What fails to load is told by the request itself, with its status.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self._complain(f"console: {message.text}")

    def _error(self, error: WebError) -> None:
        self._complain(f"script: {error.error}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in self.hosts:
            self._complain(f"another host is asked: {request.url}")

    def _failed(self, request: Request) -> None:
        # What a page had not got yet when it was left is nobody's loss; nor is its stream of news.
        if request.failure != "net::ERR_ABORTED" and request.resource_type != "eventsource":
            self._complain(f"failed: {request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self._complain(f"status {response.status}: {response.request.method} {response.url}")


class Site:
    """The starter on an address of its own, and the people who look at it."""

    def __init__(self, address: str, starter: Starter, browser: Browser) -> None:
        self.address = address
        self.starter = starter
        self._browser = browser

    @asynccontextmanager
    async def person(
        self, width: Mapping[str, Any] = DESKTOP, *, expected: tuple[int, ...] = (), **how: Any
    ) -> AsyncIterator[Person]:
        """Somebody who looks at the site, and who must have nothing to complain of in the end.

        Args:
            width: of the window.
            expected: statuses of 400 and more that are no reason to complain.
            how: whatever else is special about the browser, in Playwright's words.
        """
        # A browser without a window says so, and would be taken for a machine.
        agent = _AGENT.format(system=_ANDROID if width.get("is_mobile") else _LINUX, version=self._browser.version)
        usual = {"locale": "en-US", "timezone_id": "UTC", "user_agent": agent}
        context = await self._browser.new_context(**(usual | dict(width) | how))
        try:
            context.set_default_timeout(WAIT_MILLISECONDS)
            person = Person(context, await context.new_page(), self.address, expected)
            yield person
            person.assert_content()
        finally:
            await context.close()

    @asynccontextmanager
    async def another(
        self, *, temporal: Client | None = None, database_url: str | None = None, **changes: Any
    ) -> AsyncIterator["Site"]:
        """The same site with other settings or other servers behind it, on a port of its own; cookies are shared."""
        starter = self.starter
        async with site_on(
            self._browser, starter.world, starter.urls, temporal=temporal, database_url=database_url, **changes
        ) as site:
            yield site


class _Server(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl-C to pytest."""
        yield


@asynccontextmanager
async def site_on(browser: Browser, world: World, urls: DatabaseUrls, **how: Any) -> AsyncIterator[Site]:
    """The starter on a world's servers, on a port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with serve(world, urls, **({"public_url": address} | how)) as starter:
            config = uvicorn.Config(
                starter.app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
            server = _Server(config, starter.app.state.services.live)
            serving = asyncio.create_task(server.serve([listener]))
            try:
                yield Site(address, starter, browser)
            finally:
                server.should_exit = True
                await serving


@asynccontextmanager
async def browser_at(path: Path) -> AsyncIterator[Browser]:
    """A browser that runs, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


async def assert_stands_still(page: Page) -> None:
    """Hold that nothing that was shown has moved without the reader's doing since the page was opened."""
    moved = await page.evaluate(
        """() => new Promise(done => {
            const moved = [];
            new PerformanceObserver(list => list.getEntries().filter(each => !each.hadRecentInput).forEach(each => {
                const nodes = each.sources.map(source => source.node?.outerHTML ?? source.node?.textContent);
                moved.push(`${each.value}: ${nodes.map(node => node?.slice(0, 120)).join(' and ')}`);
            })).observe({type: 'layout-shift', buffered: true});
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(moved), 0)));
        })"""
    )
    assert not moved, f"{page.url} moves:\n" + "\n".join(moved)


async def arrives_piece_by_piece(page: Page) -> None:
    """Load the page that is open anew as over a slow line: it is shown after its header, and after all that follows.

    A sentence, a button or a picture comes as a whole; a page's head and header fit into the first packet.
    """
    await page.evaluate(
        """async () => {
            const shown = () => new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
            const whole = /<\\/(a|button|dd|dt|figcaption|form|h\\d|label|li|p|summary|table|ul)>|<(img|input)[^>]*>/g;
            const [header, rest] = (await (await fetch(location)).text()).split(/(?<=<\\/header>)/);
            const pieces = [header, ...rest.replace(whole, '$&\\0').split('\\0')];
            document.open();
            for (const piece of pieces) {
                document.write(piece);
                await shown();
            }
            document.close();
        }"""
    )
    await page.wait_for_load_state()


class Wire:
    """Counts what comes over the wire for a page."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        """Bytes with headers, compressed as they came, by address."""

    async def watch(self, person: Person) -> "Wire":
        """Count from now on."""
        session = await person.context.new_cdp_session(person.page)
        session.on("Network.requestWillBeSent", self._sent)
        session.on("Network.loadingFinished", self._finished)
        await session.send("Network.enable")
        await session.send("Network.setCacheDisabled", {"cacheDisabled": True})
        return self

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        return json.dumps(self.sizes, indent=1)

    def _sent(self, event: dict[str, Any]) -> None:
        self._urls[event["requestId"]] = event["request"]["url"]

    def _finished(self, event: dict[str, Any]) -> None:
        url = self._urls[event["requestId"]]
        self.sizes[url] = self.sizes.get(url, 0) + int(event["encodedDataLength"])
