"""Pictures of what members, friends and operators see, for the documents: `make screenshots`, on the real program.

All that is on pages happens on one day, so that pictures change with the pages and hardly otherwise.
"""

import argparse
import asyncio
import io
import json
import logging
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import psycopg
import structlog
from PIL import Image
from playwright.async_api import Browser
from temporalio.testing import WorkflowEnvironment

from devstack.postgres import EmbeddedPostgres
from ledger.database import Database
from ledger.migrate import migrate
from program.plans import load_plans
from runtime.settings import PROJECT
from tests.browser import find_or_get
from tests.browser_support import DESKTOP, PHONE, Person, Site, browser_at, site_on
from tests.conftest import free_port, start_dev_server
from tests.http_support import PUBLIC_URL, WHATSAPP, serve
from tests.population import plant
from tests.support import Clock, DatabaseUrls, Member, World, copied_database
from tests.web_ui import RUNS, Scene, scene_on

FOLDER = PROJECT / "docs" / "images"
TODAY = datetime(2026, 6, 18, 9, 24, tzinfo=UTC)
CODE = "rita7k2m9x"
COLOURS = 160
MOST_BYTES = 250_000
MOST_BYTES_TOGETHER = 1_500_000

WEB_UI: Mapping[str, Any] = {
    "viewport": {"width": 1440, "height": 700},
    "color_scheme": "light",
    "locale": "en-US",
    "timezone_id": "UTC",
}
IN_THE_LIST = ("in review", "marked after the credit", "an unknown price", "credited", "a review")
"""Whose runs are there when the list is looked at; the first one is opened."""
WAITS_FOR_SOMEBODY = "ReviewReasons IS NOT NULL AND ExecutionStatus = 'Running'"
COLUMNS = json.dumps(
    {
        "default": [
            {"label": label}
            for label in (
                "Status",
                "Workflow ID",
                "ReferralStage",
                "ReviewReasons",
                "ReferrerAccount",
                "RefereeAccount",
            )
        ]
    }
)

Enter = Callable[[Person], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: what somebody sees, at a width, by day or by night."""

    name: str
    enter: Enter
    width: Mapping[str, Any] = field(default_factory=lambda: DESKTOP)
    scheme: Literal["light", "dark"] = "light"
    whole: bool = False
    """Whether it goes down to the page's end."""


def at(path: str) -> Enter:
    """Open a page that anybody may open."""
    return lambda visitor: visitor.open(path)


async def main(folder: Path, only: str) -> None:
    """Make the pictures whose names have `only` in them."""
    sizes = await _web_ui(folder, only)
    if not only.startswith("temporal"):
        sizes += await _pages(folder, only)
    if sum(sizes) > MOST_BYTES_TOGETHER:
        raise SystemExit(f"the pictures have {sum(sizes)} bytes together: too many for a repository")


async def _pages(folder: Path, only: str) -> list[int]:
    """What members and their friends see."""
    async with _site() as site:
        rita, newcomer = await _rita(site), await _member_with_link(site, "newcomer", "nora4h8w3c")
        wanted = [picture for picture in _pictures(site, rita, newcomer) if only in picture.name]
        sizes = [save(folder / f"{picture.name}.png", await taken(site, picture)) for picture in wanted]
        if only in "invitation":
            sizes.append(save(folder / "invitation.png", await _invitation(site)))
    return sizes


def _pictures(site: Site, rita: Member, newcomer: Member) -> list[Picture]:
    def dashboard(member: Member) -> Enter:
        async def enter(visitor: Person) -> None:
            answer = await site.starter.call("POST", f"/v1/accounts/{member.account_id}/portal-sessions")
            await visitor.open(answer.json()["url"].removeprefix(PUBLIC_URL))

        return enter

    return [
        Picture("refer", at("/refer")),
        Picture("refer-dark", at("/refer"), scheme="dark"),
        Picture("refer-phone", at("/refer"), PHONE),
        Picture("refer-phone-dark", at("/refer"), PHONE, "dark"),
        Picture("terms", at("/terms")),
        Picture("unknown-link-phone", at("/r/kittens"), PHONE),
        Picture("portal", dashboard(rita), whole=True),
        Picture("portal-dark", dashboard(rita), scheme="dark"),
        Picture("portal-phone", dashboard(rita), PHONE),
        Picture("portal-phone-dark", dashboard(rita), PHONE, "dark", whole=True),
        Picture("portal-empty-phone", dashboard(newcomer), PHONE, whole=True),
        Picture("portal-ended-phone", at("/portal"), PHONE),
    ]


async def _rita(site: Site) -> Member:
    """A member whose friends came over half a year, and who has used some of the minutes."""
    rita = await _member_with_link(site, "rita", CODE)
    with _owner(site) as owner:
        plant(owner, rita, CODE, 23, now=TODAY, over=timedelta(days=165))
    usage = {"usage_id": "call-1", "minutes": 57}
    used = await site.starter.call("POST", f"/v1/accounts/{rita.account_id}/usage", usage)
    assert used.status_code == 200, used.text
    return rita


async def _member_with_link(site: Site, name: str, code: str) -> Member:
    member = await site.starter.subscriber(name, now=TODAY, cycle_ends_in=timedelta(days=12))
    given = await site.starter.link(member)
    with _owner(site) as owner:
        # One that is the same tomorrow.
        owner.execute("UPDATE referral_link SET code = %s WHERE code = %s", (code, given))
    return member


def _owner(site: Site) -> psycopg.Connection:
    return psycopg.connect(site.starter.urls.owner.replace("+psycopg", ""), autocommit=True)


async def taken(site: Site, picture: Picture) -> bytes:
    """A picture as the browser takes it, finer than the page but where it is long."""
    scale = 1 if picture.whole else 1.5
    async with site.person(
        picture.width, color_scheme=picture.scheme, device_scale_factor=scale, expected=(401, 404)
    ) as visitor:
        await picture.enter(visitor)
        await visitor.page.evaluate("document.fonts.ready")
        return await visitor.page.screenshot(full_page=picture.whole, animations="disabled")


async def _invitation(site: Site) -> bytes:
    """What a messenger shows of a link."""
    preview = await site.starter.follow(CODE, agent=WHATSAPP)
    (address,) = re.findall(r'property="og:image" content="([^"]+)"', preview.text)
    return (await site.starter.send("GET", urlsplit(address).path)).content


def save(file: Path, content: bytes) -> int:
    """Keep a picture, as small as it can be without looking so; gives its bytes."""
    picture = Image.open(io.BytesIO(content))
    small = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(buffer := io.BytesIO(), "png", optimize=True)
    file.write_bytes(content := buffer.getvalue())
    print(f"{file.name:32} {picture.width} by {picture.height}, {len(content) // 1000} KB")
    if len(content) > MOST_BYTES:
        raise SystemExit(f"{file} has {len(content)} bytes: too many for a document")
    return len(content)


async def _web_ui(folder: Path, only: str) -> list[int]:
    """What an operator sees in Temporal's Web UI: the list of what waits for somebody, and one of the runs."""
    wanted = [name for name in ("temporal-list", "temporal-run") if only in name]
    if not wanted:
        return []
    async with _temporal() as (address, scene, browser):
        held, *_ = await asyncio.gather(*(RUNS[name](scene) for name in IN_THE_LIST))
        operator = await browser.new_context(**WEB_UI)
        await operator.add_init_script(f"localStorage.setItem('namespace-workflow-table-columns', '{COLUMNS}')")
        page = await operator.new_page()
        page.set_default_timeout(60_000)
        await page.goto(f"{address}/namespaces/default/workflows?query={quote(WAITS_FOR_SOMEBODY)}")
        run = page.get_by_role("link", name=held)
        await run.first.wait_for()
        await page.get_by_text("unknown-price").first.wait_for()
        pictures = {"temporal-list": await page.screenshot(animations="disabled")}
        await page.set_viewport_size({"width": 1440, "height": 900})
        await run.first.click()
        await page.wait_for_url("**/timeline*")
        await page.goto(page.url.rpartition("/")[0] + "/user-metadata")
        await page.frame_locator("iframe").last.get_by_text("signed up").wait_for()
        pictures["temporal-run"] = await page.screenshot(animations="disabled")
        await operator.close()
    return [save(folder / f"{name}.png", pictures[name]) for name in wanted]


@asynccontextmanager
async def _temporal() -> AsyncIterator[tuple[str, Scene, Browser]]:
    """The program on a Temporal of its own, at the real time; with the address of the Web UI."""
    port, clock = free_port(), Clock()
    with _postgres() as urls:
        database = Database(urls.app, offset=clock.offset)
        async with await start_dev_server("--ui-disable-news-fetch", ui_port=port) as server:
            environment = WorkflowEnvironment.from_client(server.client)
            world = World(database, load_plans(PROJECT / "plans.toml"), environment, clock, "referrals")
            try:
                async with (
                    serve(world, urls) as starter,
                    scene_on(starter) as scene,
                    browser_at(find_or_get()) as browser,
                ):
                    yield f"http://127.0.0.1:{port}", scene, browser
            finally:
                await database.close()


@asynccontextmanager
async def _site() -> AsyncIterator[Site]:
    """The whole program on servers of its own, on the day of the pictures."""
    clock = Clock()
    clock.advance(TODAY - datetime.now(UTC))
    plans = load_plans(PROJECT / "plans.toml")
    with _postgres() as urls:
        database = Database(urls.app, offset=clock.offset)
        async with await start_dev_server() as environment:
            world = World(database, plans, WorkflowEnvironment.from_client(environment.client), clock, "pictures")
            try:
                # Links look as they do where the program is at home; the browser is led to this machine all the same.
                async with (
                    world.worker(),
                    browser_at(find_or_get()) as browser,
                    site_on(browser, world, urls, public_url=PUBLIC_URL) as site,
                ):
                    yield site
            finally:
                await database.close()


@contextmanager
def _postgres() -> Iterator[DatabaseUrls]:
    directory = Path(tempfile.mkdtemp(prefix="referrals-pictures-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory / "postgres", free_port()).start()
    try:
        urls = copied_database(server, "template0", "pictures")
        migrate(urls.owner)
        yield urls
    finally:
        server.destroy()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", default="", help="a part of the names of the pictures to make")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(main(arguments.folder, arguments.only))
