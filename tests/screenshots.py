"""Pictures of what members and their friends see, for the documents: `make screenshots`, on the real program.

All of it happens on one day, so that pictures change with the pages and hardly otherwise.
"""

import argparse
import asyncio
import io
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
from urllib.parse import urlsplit

import psycopg
import structlog
from PIL import Image
from temporalio.testing import WorkflowEnvironment

from devstack.postgres import EmbeddedPostgres
from ledger.database import Database
from ledger.migrate import migrate
from program.plans import load_plans
from runtime.settings import PROJECT
from tests.browser import find_or_get
from tests.browser_support import DESKTOP, PHONE, Person, Site, browser_at, site_on
from tests.conftest import free_port, start_dev_server
from tests.http_support import PUBLIC_URL, WHATSAPP
from tests.population import plant
from tests.support import Clock, DatabaseUrls, Member, World, copied_database

FOLDER = PROJECT / "docs" / "images"
TODAY = datetime(2026, 6, 18, 9, 24, tzinfo=UTC)
CODE = "rita7k2m9x"
COLOURS = 160
MOST_BYTES = 250_000
MOST_BYTES_TOGETHER = 1_500_000

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
    async with _site() as site:
        rita, newcomer = await _rita(site), await _member_with_link(site, "newcomer", "nora4h8w3c")
        wanted = [picture for picture in _pictures(site, rita, newcomer) if only in picture.name]
        sizes = [save(folder / f"{picture.name}.png", await taken(site, picture)) for picture in wanted]
        if only in "invitation":
            sizes.append(save(folder / "invitation.png", await _invitation(site)))
    if sum(sizes) > MOST_BYTES_TOGETHER:
        raise SystemExit(f"the pictures have {sum(sizes)} bytes together: too many for a repository")


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
