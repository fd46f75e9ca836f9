"""`GET /r/{code}`: persons, machines, prefetches; what a click starts and counts (rules 15 to 17)."""

import asyncio
import re
import socket
from datetime import UTC, datetime, timedelta
from html import unescape
from http.cookies import Morsel, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
from sqlalchemy import func, select
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from ledger.tables import click_count
from tests.conftest import free_port
from tests.http_support import (
    COOKIE,
    GRACE,
    IPHONE,
    PUBLIC_URL,
    SIGNUP_URL,
    TOKEN_SECRETS,
    WHATSAPP,
    WINDOW,
    Starter,
    assert_problem,
    person,
    reference,
    token_of,
    tokens,
)
from tests.support import DatabaseUrls, until
from workflows.messages import REFERRAL_STAGE, REFERRER_ACCOUNT, workflow_id

DAY = timedelta(hours=24)
SECOND = timedelta(seconds=1)


def set_cookie(answer: httpx.Response) -> "Morsel[str]":
    (header,) = (header for header in answer.headers.get_list("set-cookie") if header.startswith(f"{COOKIE}="))
    return SimpleCookie(header)[COOKIE]


def metas_of(answer: httpx.Response) -> dict[str, str]:
    """What a page says of itself to machines."""
    found = re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)"', answer.text)
    return {name: unescape(content) for name, content in found}


async def counted(starter: Starter) -> dict[str, int]:
    """The clicks of the ledger, by channel."""
    async with starter.world.database.transaction() as transaction:
        clicks = func.sum(click_count.c.clicks).label("clicks")
        rows = await transaction.execute(select(click_count.c.channel, clicks).group_by(click_count.c.channel))
        return {row.channel: row.clicks for row in rows}


async def started(starter: Starter, referral_id: str) -> bool:
    """Whether Temporal has a run of that referral."""
    try:
        await starter.world.handle(referral_id).describe()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def runs_on(starter: Starter) -> int:
    """How many runs this test's starters have started, as the server's list has it."""
    client = starter.world.environment.client
    return (await client.count_workflows(f"TaskQueue = '{starter.world.task_queue}'")).count


async def test_a_person_is_led_to_the_signup_with_a_token_and_a_cookie(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    visit = await starter.click(code, channel="whatsapp")
    assert visit.answer.status_code == 302
    assert visit.answer.headers["location"] == f"{SIGNUP_URL}?ref={visit.token}"
    assert visit.answer.headers["cache-control"] == "no-store"
    cookie = set_cookie(visit.answer)
    assert cookie.value == visit.token
    assert tokens(TOKEN_SECRETS[0]).read(cookie.value).code == code
    assert cookie["httponly"]
    assert cookie["samesite"].lower() == "lax"
    assert cookie["secure"]
    assert cookie["path"] == "/"
    assert cookie["domain"] == ""
    assert int(cookie["max-age"]) == WINDOW.total_seconds()


async def test_the_cookie_follows_the_settings(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(
        public_url="http://localhost:8000", cookie_domain="kally.example", attribution_window=timedelta(days=30)
    ) as other:
        cookie = set_cookie((await other.click(code)).answer)
    assert not cookie["secure"], "a browser drops a Secure cookie that comes without https"
    assert cookie["domain"].lstrip(".") == "kally.example"
    assert int(cookie["max-age"]) == timedelta(days=30).total_seconds()


@pytest.mark.parametrize(
    "signup_url", ["https://app.kally.example/signup?plan=pro&lang=en", "https://app.kally.example/#/signup"]
)
async def test_the_signup_pages_own_query_and_fragment_stay(starter: Starter, signup_url: str) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(signup_url=signup_url) as other:
        location = (await other.click(code)).answer.headers["location"]
    ours, given = urlsplit(location), urlsplit(signup_url)
    assert (ours.scheme, ours.netloc, ours.path, ours.fragment) == (
        given.scheme,
        given.netloc,
        given.path,
        given.fragment,
    )
    query = parse_qs(ours.query)
    assert query.pop("ref")
    assert query == parse_qs(given.query)


async def test_a_click_starts_one_waiting_run_that_names_nobody_but_the_referrer(starter: Starter) -> None:
    rita = await starter.subscriber()
    visit = await starter.click(await starter.link(rita), channel="email")
    description = await starter.world.handle(visit.referral_id).describe()
    assert description.id == workflow_id(visit.referral_id)
    assert description.status is WorkflowExecutionStatus.RUNNING
    assert description.history_length == 1, "no task, no timer: one event until somebody signs up"
    assert description.typed_search_attributes.get(REFERRAL_STAGE) == "clicked"
    assert description.typed_search_attributes.get(REFERRER_ACCOUNT) == rita.account_id
    assert description.execution_time is not None
    assert abs(description.execution_time - datetime.now(UTC) - WINDOW - GRACE) < timedelta(minutes=1)
    shown = await starter.referral(visit.referral_id)
    assert shown["stage"] == "clicked"
    assert shown["referrer_account_id"] == rita.account_id


async def test_rule_17_persons_are_counted_by_channel_and_machines_not_at_all(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    for channel in ("whatsapp", "whatsapp", "Email", None, "<b>!", "x" * 33):
        await starter.click(code, channel=channel)
    assert (await starter.follow(code, agent=WHATSAPP, channel="whatsapp")).status_code == 200
    assert (await starter.follow(code, method="HEAD", channel="sms")).status_code == 200
    assert (await starter.follow(code, headers={"Sec-Purpose": "prefetch"})).status_code == 503
    assert await counted(starter) == {"whatsapp": 2, "email": 1, "link": 1, "other": 2}
    assert (await starter.summary(rita))["clicks"] == 6
    assert await starter.metric("referrals_clicks_total", visitor="person") == 6
    assert await starter.metric("referrals_clicks_total", visitor="machine") == 2
    assert await starter.metric("referrals_clicks_total", visitor="prefetch") == 1


async def test_rule_17_a_machine_gets_the_preview_and_starts_nothing(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    answers = [await starter.follow(code, agent=agent) for agent in (WHATSAPP, "Twitterbot/1.0", "curl/8.5.0", "")]
    answers.append(await starter.follow(code, method="HEAD"))
    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["cache-control"] == "no-store"
        assert "set-cookie" not in answer.headers
    page = answers[0].text
    assert f'<meta property="og:url" content="{PUBLIC_URL}/r/{code}">' in page
    assert re.search(r'<meta property="og:title" content=".+">', page)
    assert re.search(r'<meta property="og:description" content=".+">', page)
    assert "both get 25%" in page, "rule 13: whoever shares a link gets a bonus too, and says so"
    # The token of the page is of a click that nobody has started.
    (way_on,) = re.findall(r'<a rel="nofollow" href="([^"]+)"', page)
    token = reference(unescape(way_on))
    assert not await started(starter, tokens().read(token).referral_id)
    visit = await starter.click(code)
    assert await started(starter, visit.referral_id)


async def test_rule_17_a_person_who_was_taken_for_a_machine_can_go_on_by_the_previews_link(
    whole_program: Starter,
) -> None:
    rita = await whole_program.subscriber()
    page = (await whole_program.follow(await whole_program.link(rita), agent="curl/8.5.0")).text
    (way_on,) = re.findall(r'<a rel="nofollow" href="([^"]+)"', page)
    token = reference(unescape(way_on))
    referral_id = await whole_program.signed_up(person("fred"), referral_token=token)
    shown = await whole_program.reaches(referral_id, "signed_up")
    assert shown["referrer_account_id"] == rita.account_id


async def test_rule_17_the_preview_unfurls_with_a_picture_and_is_in_no_index(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    answer = await starter.follow(code, agent=WHATSAPP)
    metas = metas_of(answer)
    assert metas["twitter:card"] == "summary_large_image"
    assert metas["robots"] == "noindex"
    assert metas["og:title"] == metas["twitter:title"]
    assert metas["og:description"] == metas["twitter:description"] == metas["description"]
    assert metas["og:image"] == metas["twitter:image"]
    assert metas["og:image:alt"]
    assert metas["og:image"].startswith(f"{PUBLIC_URL}/assets/")
    picture = await starter.send("GET", metas["og:image"].removeprefix(PUBLIC_URL), headers={"User-Agent": WHATSAPP})
    assert picture.status_code == 200
    assert picture.headers["content-type"] == metas["og:image:type"] == "image/png"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer", "the way on has a token in it"


async def test_rule_13_the_preview_says_that_who_shares_gets_a_bonus_too(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    assert "Your friend gets it too" in metas_of(await starter.follow(code, agent=WHATSAPP))["og:description"]
    await starter.put(rita, first_name="Rita", show_first_name=True)
    answer = await starter.follow(code, agent=WHATSAPP)
    assert "Rita gets it too" in metas_of(answer)["og:description"]
    assert "<bdi>Rita</bdi> gets the same bonus as you" in answer.text


async def test_a_first_name_is_shown_only_while_its_owner_agrees(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    steps: list[tuple[dict[str, Any], str]] = [
        ({}, "A friend"),
        ({"first_name": "Rita"}, "A friend"),
        ({"show_first_name": True}, "Rita"),
        ({"first_name": "Margherita"}, "Margherita"),
        ({"show_first_name": False}, "A friend"),
    ]
    for told, shown in steps:
        assert (await starter.put(rita, **told)).status_code == 200
        answer = await starter.follow(code, agent=WHATSAPP)
        assert metas_of(answer)["og:title"] == f"{shown} gives you bonus minutes on KallyAI"
        # A token has any letters.
        without_token = re.sub(r"\bref=[\w.-]+", "", answer.text)
        assert without_token != answer.text
        assert ("rita" in without_token.lower()) == (shown != "A friend")


@pytest.mark.parametrize(
    "name", ['"><script>alert(1)</script>', "Rita & Co <rita>", "win.example/prize", "{{ 7 * 7 }}", "R" * 80]
)
async def test_a_name_that_is_none_is_not_shown(starter: Starter, name: str) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    assert (await starter.put(rita, first_name=name, show_first_name=True)).status_code == 200
    answer = await starter.follow(code, agent=WHATSAPP)
    assert metas_of(answer)["og:title"].startswith("A friend gives you")
    assert name not in answer.text
    assert name not in unescape(answer.text)


async def test_what_a_name_has_of_html_is_escaped(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    await starter.put(rita, first_name="O'Neill", show_first_name=True)
    answer = await starter.follow(code, agent=WHATSAPP)
    assert metas_of(answer)["og:title"].startswith("O'Neill gives you")
    assert "O'Neill" not in answer.text
    assert "<bdi>O&#39;Neill</bdi>" in answer.text


async def test_rule_23_an_erased_members_link_is_as_unknown_as_any(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    await starter.put(rita, first_name="Rita", show_first_name=True)
    assert (await starter.call("DELETE", f"/v1/accounts/{rita.account_id}")).status_code == 204
    for agent in (IPHONE, WHATSAPP):
        erased, unknown = await starter.follow(code, agent=agent), await starter.follow("nosuchcode", agent=agent)
        assert erased.status_code == unknown.status_code == 404
        assert erased.text == unknown.text
        assert metas_of(erased)["robots"] == "noindex"
        assert "default-src 'none'" in erased.headers["content-security-policy"]
    assert await counted(starter) == {}


@pytest.mark.parametrize("path", ["/r", "/r/", "/r/{code}/", "/r/{code}/more"])
async def test_what_is_left_of_a_link_is_a_page_too(starter: Starter, path: str) -> None:
    code = await starter.link(await starter.subscriber())
    answer = await starter.send("GET", path.format(code=code), headers={"User-Agent": IPHONE})
    assert answer.status_code == 404
    assert SIGNUP_URL in answer.text
    assert await starter.metric("referrals_clicks_total", visitor="unknown") == 1


async def test_rule_17_a_prefetch_is_refused_so_that_the_visit_is_the_click(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    for header, value in (("Sec-Purpose", "prefetch;prerender"), ("Purpose", "prefetch"), ("X-Moz", "prefetch")):
        answer = await starter.follow(code, headers={header: value})
        assert answer.status_code == 503
        assert answer.headers["cache-control"] == "no-store"
        assert "set-cookie" not in answer.headers
        assert "location" not in answer.headers
    await starter.click(code)
    assert await counted(starter) == {"link": 1}


async def test_a_code_is_read_however_it_is_written(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    for written in (code.upper(), f"{code[:5]}-{code[5:]}", code.title()):
        visit = await starter.click(written)
        assert tokens().read(visit.token).code == code


@pytest.mark.parametrize("code", ["nosuchcode", "%00", "a%00b", "%20", "%F0%9F%98%80", "%FF", "a" * 9000, "'--"])
async def test_an_unknown_code_is_a_page_and_starts_nothing(starter: Starter, code: str) -> None:
    answer = await starter.send("GET", f"/r/{code}", headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-store"
    assert SIGNUP_URL in answer.text
    assert "set-cookie" not in answer.headers
    assert await starter.metric("referrals_clicks_total", visitor="unknown") == 1


async def test_rule_1_a_link_goes_on_working_when_the_referrer_has_lapsed(starter: Starter) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(hours=1))
    code = await starter.link(rita)
    starter.world.clock.advance(timedelta(days=40))
    assert not (await starter.put(rita)).json()["paid"]
    assert (await starter.click(code)).token
    assert await starter.link(rita) == code


async def test_rule_16_a_second_click_within_a_day_is_the_same_referral(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    first = await starter.click(code)
    clicked_at = tokens().read(first.token).window.clicked_at
    starter.world.clock.advance(clicked_at + DAY - 10 * SECOND - datetime.now(UTC))
    again = await starter.click(code.upper(), cookie=first.cookie, channel="sms")
    assert again.referral_id == first.referral_id
    assert again.token == first.token
    assert set_cookie(again.answer).value == first.cookie
    assert await counted(starter) == {"link": 1}, "the same click is not counted twice"
    assert await starter.metric("referrals_clicks_total", visitor="repeat") == 1


async def test_rule_16_a_second_click_after_a_day_is_a_new_referral(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    first = await starter.click(code)
    clicked_at = tokens().read(first.token).window.clicked_at
    starter.world.clock.advance(clicked_at + DAY - datetime.now(UTC))
    later = await starter.click(code, cookie=first.cookie)
    assert later.referral_id != first.referral_id
    assert tokens().read(later.cookie).referral_id == later.referral_id, "the last link followed wins"
    assert await counted(starter) == {"link": 2}


async def test_rule_16_another_members_link_is_a_new_referral(starter: Starter) -> None:
    rita, rob = await starter.subscriber("rita"), await starter.subscriber("rob")
    first = await starter.click(await starter.link(rita))
    second = await starter.click(await starter.link(rob), cookie=first.cookie)
    assert second.referral_id != first.referral_id
    assert (await starter.referral(second.referral_id))["referrer_account_id"] == rob.account_id
    assert tokens().read(second.cookie).referral_id == second.referral_id, "the last link followed wins"


async def test_rule_16_a_visitor_without_the_cookie_is_somebody_else(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    assert (await starter.click(code)).referral_id != (await starter.click(code)).referral_id


async def test_a_cookie_that_was_not_signed_here_is_ignored(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    first = await starter.click(code)
    forged = token_of(code, datetime.now(UTC), first.referral_id, "a secret of somebody else's")
    for cookie in (forged, first.cookie[:-9] + first.cookie[-8:], "", "nonsense", "\xe9"):
        visit = await starter.click(code, cookie=cookie)
        assert visit.referral_id != first.referral_id, cookie
        assert visit.cookie != cookie


async def test_a_cookie_of_before_the_secrets_were_rotated_is_known(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(token_secrets=[TOKEN_SECRETS[1]]) as before:
        first = await before.click(code)
    again = await starter.click(code, cookie=first.cookie)
    assert again.referral_id == first.referral_id
    assert again.cookie != first.cookie, "signed anew, with the secret in use"


async def test_rule_16_a_click_on_a_run_that_is_over_is_a_new_referral(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    first = await starter.click(code)
    await starter.world.handle(first.referral_id).terminate()
    second = await starter.click(code, cookie=first.cookie)
    assert second.referral_id != first.referral_id
    assert await started(starter, second.referral_id)
    assert await counted(starter) == {"link": 2}


async def test_a_click_that_cannot_be_counted_still_leads_on(starter: Starter, owner: psycopg.Connection) -> None:
    code = await starter.link(await starter.subscriber())
    owner.execute("REVOKE INSERT ON click_count FROM referrals_app")
    visit = await starter.click(code)
    assert await started(starter, visit.referral_id)
    assert await counted(starter) == {}
    owner.execute("GRANT INSERT ON click_count TO referrals_app")
    await starter.click(code, channel="qr")
    assert await counted(starter) == {"qr": 1}


@pytest.mark.parametrize(
    "lock", ["LOCK TABLE click_count IN SHARE MODE", "UPDATE click_count SET clicks = clicks"], ids=["table", "row"]
)
async def test_clicks_that_cannot_be_counted_for_a_lock_lead_on_all_the_same(
    starter: Starter, owner: psycopg.Connection, lock: str
) -> None:
    code = await starter.link(await starter.subscriber())
    await starter.click(code)
    with owner.transaction():
        owner.execute(lock.encode())
        async with asyncio.timeout(10):
            # More than there are connections.
            visits = await asyncio.gather(*(starter.click(code) for _ in range(40)))
            unknown = await starter.follow("nosuchcode", agent=IPHONE)
    assert unknown.status_code == 404
    assert all([await started(starter, visit.referral_id) for visit in visits])
    assert await counted(starter) == {"link": 1}
    await starter.click(code)
    assert await counted(starter) == {"link": 2}


async def test_a_click_whose_connection_is_lost_at_the_count_leads_on(
    starter: Starter, owner: psycopg.Connection, database_urls: DatabaseUrls
) -> None:
    code = await starter.link(await starter.subscriber())
    await starter.click(code)
    with owner.transaction(), psycopg.connect(database_urls.app.replace("+psycopg", ""), autocommit=True) as other:

        async def killed() -> int:
            if clicks[-1].done():  # its patience was over before anybody looked
                clicks.append(asyncio.create_task(starter.click(code)))
            return other.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
            ).rowcount

        owner.execute("UPDATE click_count SET clicks = clicks")
        clicks = [asyncio.create_task(starter.click(code))]
        await until(killed, lambda seen: seen > 0)
        visit = await clicks[-1]
    assert await started(starter, visit.referral_id)
    assert await counted(starter) == {"link": 1}


async def test_the_runs_that_clicks_start_are_as_many_as_the_clicks(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    first = await starter.click(code)
    for _ in range(3):
        await starter.click(code, cookie=first.cookie)
        await starter.follow(code, agent=WHATSAPP)
        await starter.follow(code, method="HEAD")
        await starter.follow(code, headers={"Purpose": "prefetch"})
    second = await starter.click(code)
    await until(lambda: runs_on(starter), lambda seen: seen >= 2)
    assert {first.referral_id, second.referral_id} == await _ids(starter)


async def _ids(starter: Starter) -> set[str]:
    client = starter.world.environment.client
    listed = client.list_workflows(f"TaskQueue = '{starter.world.task_queue}'")
    return {run.id.removeprefix("referral-") async for run in listed}


async def test_with_temporal_away_a_click_still_leads_on_and_its_signup_starts_the_run(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    code = await whole_program.link(rita)
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        visit = await cut_off.click(code, channel="qr")
        assert await cut_off.metric("referrals_clicks_not_started_total") == 1
    assert visit.answer.elapsed < timedelta(seconds=5)
    assert await counted(whole_program) == {"qr": 1}
    assert not await started(whole_program, visit.referral_id)
    assert await whole_program.signed_up(person("fred"), referral_token=visit.token) == visit.referral_id
    shown = await whole_program.reaches(visit.referral_id, "signed_up")
    assert datetime.fromisoformat(shown["clicked_at"]) == tokens().read(visit.token).window.clicked_at


async def test_a_second_click_starts_the_run_that_the_first_could_not(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with starter.another(temporal=dead) as cut_off:
        first = await cut_off.click(code)
    again = await starter.click(code, cookie=first.cookie)
    assert again.referral_id == first.referral_id
    assert await started(starter, first.referral_id)


async def test_a_temporal_that_is_silent_holds_a_click_for_seconds_only(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = await Client.connect(f"127.0.0.1:{silent.getsockname()[1]}", lazy=True)
        async with starter.another(temporal=client) as cut_off:
            visit = await cut_off.click(code)
    assert visit.answer.elapsed < timedelta(seconds=7)


async def test_with_postgres_away_a_click_is_told_to_come_again(starter: Starter) -> None:
    url = re.sub(r":\d+/", f":{free_port()}/", starter.urls.app)
    async with starter.another(database_url=url) as cut_off:
        assert_problem(await cut_off.follow("abcdefghjk"), 503, "temporarily-unavailable")


async def test_rule_16_a_second_click_is_known_also_where_another_link_was_followed_meanwhile(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    other = await starter.link(await starter.subscriber())
    first = await starter.click(code)
    (visit,) = (header for header in first.answer.headers.get_list("set-cookie") if header.startswith("kally_visit="))
    assert f"path=/r/{code};" in visit.lower(), "it is sent back to its own link alone"
    assert "httponly" in visit.lower()
    between = await starter.click(other, cookie=first.cookie)
    again = await starter.click(code, headers={"Cookie": f"{visit.partition(';')[0]}; {COOKIE}={between.cookie}"})
    assert again.referral_id == first.referral_id
    assert again.cookie == first.cookie, "the last link followed wins"
