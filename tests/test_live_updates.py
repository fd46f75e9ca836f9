"""An open dashboard hears of what changes, by streams over HTTP, from the first signup to the end of the visit."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import event
from structlog.testing import capture_logs

from devstack.postgres import EmbeddedPostgres
from program.sessions import SESSION_LASTS
from starter.live import LOOKS_EVERY_SECONDS, STREAMS_OF_ONE_ACCOUNT, LiveUpdates
from tests.conftest import free_port
from tests.http_support import Http, Starter, assert_problem, environment, person
from tests.listening import Stream, following, listening
from tests.support import DatabaseUrls, Member, World, until
from tests.test_end_to_end import STARTER, Program
from tests.test_http_portal import assert_ended, browse, opened, portal_url, press

VERSION = "data-version"


@pytest.fixture
async def url(starter: Starter) -> AsyncIterator[str]:
    """Where the starter of the test listens."""
    async with listening(starter) as url:
        yield url


async def version_of(starter: Http, cookie: str) -> str:
    """What the page of a dashboard says of how new it is."""
    page = await browse(starter, "/portal", cookie)
    return page.text.partition(f'{VERSION}="')[2].partition('"')[0]


async def watched(starter: Starter, url: str, stack: AsyncExitStack, member: Member) -> Stream:
    """An open dashboard that is as new as can be."""
    cookie = await opened(starter, member)
    return await stack.enter_async_context(following(url, cookie, await version_of(starter, cookie)))


async def test_rule_6_both_sides_hear_of_the_bonus_that_a_payment_brings(whole_program: Starter, url: str) -> None:
    starter = whole_program
    rita = await starter.subscriber()
    fred = await starter.account(person("fred"))
    stranger = await starter.subscriber("sam")
    visit = await starter.click(await starter.link(rita))
    async with AsyncExitStack() as stack:
        ritas, freds, strangers = [await watched(starter, url, stack, each) for each in (rita, fred, stranger)]
        assert ritas.answer.status_code == 200
        assert ritas.answer.headers["content-type"].startswith("text/event-stream")
        assert ritas.answer.headers["cache-control"] == "no-store"
        assert ritas.answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in ritas.answer.headers

        await starter.signed_up(fred, referral_token=visit.token)
        assert await ritas.next() == "changed"
        assert (await starter.summary(rita))["invited"] == 1
        await starter.pay(fred)
        await starter.reaches(visit.referral_id, "credited")
        for member, stream in ((rita, ritas), (fred, freds)):
            while (await starter.bonus(member))["available"] != 90 or stream.last_id != await version_of(
                starter, await opened(starter, member)
            ):
                assert await stream.next() == "changed"
        # Whoever it does not concern hears nothing before the end.
        await starter.call("DELETE", f"/v1/accounts/{stranger.account_id}/portal-sessions")
        assert await strangers.next() == "expired"


async def test_whatever_is_shown_is_news_when_it_changes(starter: Starter, url: str) -> None:
    rita = await starter.subscriber()
    async with starter.world.worker(), AsyncExitStack() as stack:
        stream = await watched(starter, url, stack, rita)
        code = await starter.link(rita)
        assert await stream.next() == "changed", "the link was taken"
        visit = await starter.click(code)
        assert await stream.next() == "changed", "a click was counted"
        fred = await starter.account(person("fred"))
        await starter.signed_up(fred, referral_token=visit.token)
        assert await stream.next() == "changed", "a friend signed up"
        assert (await starter.call("DELETE", f"/v1/accounts/{fred.account_id}")).status_code == 204
        assert await stream.next() == "changed", "the referral was refused"
        old = person("old", created_at=datetime.now(UTC) - timedelta(days=30))
        await starter.signed_up(old, referral_code=code)
        assert await stream.next() == "changed", "a signup was refused at once"
        greta = await starter.account(person("greta"))
        second = await starter.click(code)
        await starter.signed_up(greta, referral_token=second.token)
        await starter.pay(greta)
        await starter.reaches(second.referral_id, "credited")

        async def told() -> bool:
            return stream.last_id == await version_of(starter, await opened(starter, rita))

        while not await told():
            assert await stream.next() == "changed"
        use = {"usage_id": "call-1", "minutes": 7}
        assert (await starter.call("POST", f"/v1/accounts/{rita.account_id}/usage", use)).status_code == 200
        assert await stream.next() == "changed", "minutes were used"


async def test_rule_7_a_bonus_that_ends_is_news_before_it_is_swept(starter: Starter, url: str) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(days=1))
    visit = await starter.click(await starter.link(rita))
    fred = await starter.account(person("fred"))
    async with starter.world.worker():
        await starter.signed_up(fred, referral_token=visit.token)
        await starter.pay(fred)
        await starter.reaches(visit.referral_id, "credited")
    starter.world.clock.advance(timedelta(days=1) - timedelta(minutes=10))
    async with AsyncExitStack() as stack:
        stream = await watched(starter, url, stack, rita)
        starter.world.clock.advance(timedelta(minutes=11))
        # Nobody has swept: no worker runs any more.
        assert await stream.next() == "changed"
        assert (await starter.summary(rita))["bonus_minutes_available"] == 0


async def test_rule_1_a_payment_that_makes_a_subscriber_is_news(starter: Starter, url: str) -> None:
    fred = await starter.account(person("fred"))
    async with AsyncExitStack() as stack:
        stream = await watched(starter, url, stack, fred)
        await starter.pay(fred)
        assert await stream.next() == "changed"


async def test_what_changed_between_the_page_and_its_stream_is_not_missed(starter: Starter, url: str) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    before = await version_of(starter, cookie)
    await starter.link(rita)
    async with following(url, cookie, before) as stream:
        assert await stream.next() == "changed"
        now = stream.last_id
        assert now == await version_of(starter, cookie)
    assert now is not None
    # A browser that connects again says what it heard last, whatever the page's address says.
    await starter.click(await starter.link(rita))
    async with following(url, cookie, before, last=now) as stream:
        assert await stream.next() == "changed"
        assert stream.last_id not in (before, now)


async def ended_by_the_backend(starter: Starter, rita: Member, _: str) -> None:
    await starter.call("DELETE", f"/v1/accounts/{rita.account_id}/portal-sessions")


async def signed_out(starter: Starter, _: Member, cookie: str) -> None:
    await press(starter, "/portal/sign-out", cookie)


async def erased(starter: Starter, rita: Member, _: str) -> None:
    await starter.call("DELETE", f"/v1/accounts/{rita.account_id}")


async def over(starter: Starter, _: Member, __: str) -> None:
    starter.world.clock.advance(SESSION_LASTS)


ENDS: list[Callable[[Starter, Member, str], Awaitable[None]]] = [ended_by_the_backend, signed_out, erased, over]


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_ends_with_its_visit_and_says_so(
    starter: Starter, url: str, end: Callable[[Starter, Member, str], Awaitable[None]]
) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    async with following(url, cookie, await version_of(starter, cookie)) as stream:
        await end(starter, rita, cookie)
        assert await stream.next() == "expired"
        assert await stream.next() is None
    assert_ended(await browse(starter, "/portal/events", cookie))


async def test_many_who_watch_are_looked_for_in_one_query_and_only_while_they_do(starter: Starter, url: str) -> None:
    looks: list[str] = []

    def count(_: object, __: object, statement: str, *___: object) -> None:
        if "dashboard_version" in statement:
            looks.append(statement)

    live = starter.app.state.services.live
    members = [await starter.subscriber() for _ in range(3)]
    engine = starter.app.state.services.database._engine.sync_engine
    async with AsyncExitStack() as stack:
        streams = [await watched(starter, url, stack, member) for member in members for _ in range(2)]
        event.listen(engine, "before_cursor_execute", count)
        began = time.monotonic()
        for member in members:
            await starter.link(member)
        asked = await asyncio.gather(*(stream.next() for stream in streams))
        assert asked == ["changed"] * 6
        # One look a second for three accounts with two listeners each, and not one for each of them.
        assert 1 <= len(looks) <= 2 + (time.monotonic() - began) / LOOKS_EVERY_SECONDS
        assert await starter.metric("referrals_portal_streams") == 6
    await until(lambda: starter.metric("referrals_portal_streams"), lambda open_now: open_now == 0)

    async def at_rest() -> bool:
        return bool(live._looking.done())

    await until(at_rest, bool)


async def test_an_account_has_a_handful_of_streams_and_others_have_theirs(starter: Starter, url: str) -> None:
    rita, sam = await starter.subscriber("rita"), await starter.subscriber("sam")
    cookies = [await opened(starter, rita) for _ in range(2)]
    async with AsyncExitStack() as stack:
        ritas = [
            await stack.enter_async_context(following(url, cookies[number % 2]))
            for number in range(STREAMS_OF_ONE_ACCOUNT)
        ]
        async with httpx.AsyncClient(base_url=url) as browser:
            headers = {"Cookie": f"kally_portal={cookies[0]}"}
            assert_problem(await browser.get("/portal/events", headers=headers), 429, "too-many-streams")
        await stack.enter_async_context(following(url, await opened(starter, sam)))
        assert await starter.metric("referrals_portal_streams") == STREAMS_OF_ONE_ACCOUNT + 1
        assert {await stream.next() for stream in ritas} == {"changed"}
    # Whoever leaves makes room.
    await until(lambda: starter.metric("referrals_portal_streams"), lambda open_now: open_now == 0)
    async with following(url, cookies[0]) as stream:
        assert await stream.next() == "changed"


async def test_streams_outlive_a_database_that_is_away(
    starter: Starter, url: str, postgres: EmbeddedPostgres, database_urls: DatabaseUrls
) -> None:
    rita = await starter.subscriber()
    name = sql.Identifier(database_urls.app.rpartition("/")[2])

    def allow(allowed: bool) -> None:
        with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(name, sql.SQL(str(allowed).lower()))
            )
            if not allowed:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name._obj[0]]
                )

    async with AsyncExitStack() as stack:
        stream = await watched(starter, url, stack, rita)
        with capture_logs() as lines:
            allow(False)

            async def noticed() -> list[str]:
                return [line["event"] for line in lines if line["log_level"] == "warning"]

            await until(noticed, lambda seen: "dashboards are not told of news" in seen)
            allow(True)
        await starter.link(rita)
        assert await stream.next() == "changed"
        assert len(await noticed()) == 1, "one line for one outage"


async def test_a_stream_is_never_silent_for_long(starter: Starter) -> None:
    services = starter.app.state.services
    starter.app.state.services = replace(services, live=LiveUpdates(services.database, heartbeat_seconds=0.05))
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    async with listening(starter) as url, following(url, cookie, await version_of(starter, cookie)) as stream:
        comments = 0
        async with asyncio.timeout(20):
            async for line in stream.answer.aiter_lines():
                comments += line.startswith(":")
                if comments == 4:
                    break


async def test_a_server_that_stops_ends_its_streams_as_it_should(starter: Starter) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    live = starter.app.state.services.live
    async with AsyncExitStack() as stack, listening(starter) as url:
        stream = await stack.enter_async_context(following(url, cookie, await version_of(starter, cookie)))
        await live.close()
        assert await stream.next() is None
        async with httpx.AsyncClient(base_url=url) as browser:
            late = await browser.get("/portal/events", headers={"Cookie": f"kally_portal={cookie}"})
        assert_problem(late, 503, "temporarily-unavailable")


async def test_the_program_stops_while_dashboards_are_open(
    live_idle_world: World, database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> None:
    port = free_port()
    program = Program(
        STARTER,
        environment(database_urls, live_idle_world.task_queue, dev_server, port),
        tmp_path / "starter.log",
    )
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=15) as client:
        starter = Http(client)
        program.start()
        try:

            async def answers() -> bool:
                program.assert_running()
                try:
                    return (await starter.send("GET", "/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers, bool, 30.0)
            rita = await starter.subscriber()
            cookie = await opened(starter, rita)
            token = (await portal_url(starter, rita)).partition("session=")[2]
            async with following(url, cookie, await version_of(starter, cookie)) as stream:
                await asyncio.to_thread(program.stop)
                # To its end, and not cut off: then the browser knows that it may come again.
                assert await stream.next() is None
        finally:
            program.kill()
    written = "\n".join(program.lines)
    assert "/portal/events" in written
    assert "graceful shutdown exceeded" not in written
    assert token not in written
    assert cookie not in written
