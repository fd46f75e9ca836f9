"""The way into a member's dashboard and out of it: one-time tokens, the cookie, and what the pages may be asked for."""

import asyncio
import html
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from program.sessions import EXCHANGE_WITHIN, SESSION_LASTS
from program.terms import TERMS_VERSION
from tests.http_support import IPHONE, PUBLIC_URL, TERMS, WHATSAPP, Http, Starter, assert_problem, person
from tests.stripe_events import unique
from tests.support import Member, until
from workflows.jobs import SWEEP, upkeep_queue

COOKIE = "kally_portal"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Origin": "null"}
MOMENT = timedelta(seconds=1)


async def portal_url(starter: Http, member: Member) -> str:
    """An address of the member's dashboard, as the backend is given it."""
    answer = await starter.call("POST", f"/v1/accounts/{member.account_id}/portal-sessions")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"])


def token_in(url: str) -> str:
    (token,) = parse_qs(urlsplit(url).query)["session"]
    return token


async def browse(
    starter: Http, path: str, cookie: str | None = None, method: str = "GET", **options: Any
) -> httpx.Response:
    """What a person's browser asks for; an address of the site's own, whatever the site is called here."""
    path = path.removeprefix(PUBLIC_URL)
    headers = {"User-Agent": IPHONE, **options.pop("headers", {})}
    if cookie is not None:
        headers["Cookie"] = f"{COOKIE}={cookie}"
    return await starter.send(method, path, headers=headers, **options)


async def press(starter: Http, path: str, cookie: str | None = None, **fields: str) -> httpx.Response:
    """A form of the dashboard's own."""
    return await browse(starter, path, cookie, "POST", data=fields, headers=OWN_PAGE)


async def opened(starter: Http, member: Member) -> str:
    """The cookie of a session that has just been opened."""
    answer = await browse(starter, await portal_url(starter, member))
    assert answer.status_code == 303, answer.text
    return answer.cookies[COOKIE]


async def shows(starter: Http, cookie: str) -> str:
    """The words of the dashboard, which must be open."""
    answer = await browse(starter, "/portal", cookie)
    assert answer.status_code == 200, answer.text
    return words(answer)


def words(page: httpx.Response) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def assert_ended(answer: httpx.Response) -> None:
    """Hold an answer to be the page that says that the visit is over, and nothing more."""
    assert answer.status_code == 401
    assert "Your visit has ended" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers


# The one-time address


async def test_the_backend_gets_an_address_that_opens_the_dashboard(starter: Starter) -> None:
    rita = await starter.subscriber()
    answer = await starter.call("POST", f"/v1/accounts/{rita.account_id}/portal-sessions")
    assert answer.status_code == 201
    document = answer.json()
    assert document["url"].startswith(f"{PUBLIC_URL}/portal?session=")
    # 256 bits of chance, six of them a character.
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token_in(document["url"]))
    left = datetime.fromisoformat(document["expires_at"]) - datetime.now(UTC)
    assert EXCHANGE_WITHIN - timedelta(minutes=1) < left <= EXCHANGE_WITHIN

    answer = await browse(starter, document["url"])
    assert answer.status_code == 303
    assert answer.headers["location"] == "/portal"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    page = await browse(starter, "/portal", answer.cookies[COOKIE])
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"


async def test_the_cookie_is_for_the_dashboard_alone_and_no_script_can_read_it(starter: Starter) -> None:
    rita = await starter.subscriber()
    answer = await browse(starter, await portal_url(starter, rita))
    (cookie,) = answer.headers.get_list("set-cookie")
    name, *attributes = cookie.split("; ")
    assert re.fullmatch(rf"{COOKIE}=[A-Za-z0-9_-]{{43}}", name)
    lasts = int(SESSION_LASTS.total_seconds())
    assert {each.lower() for each in attributes} == {
        "httponly",
        "secure",
        "samesite=lax",
        "path=/portal",
        f"max-age={lasts}",
    }
    async with starter.another(public_url="http://127.0.0.1:8000") as plain:
        answer = await browse(plain, await portal_url(plain, rita))
        assert "secure" not in answer.headers["set-cookie"].lower()


async def test_who_has_no_account_has_no_dashboard(starter: Starter) -> None:
    answer = await starter.call("POST", "/v1/accounts/nobody/portal-sessions")
    assert_problem(answer, 404, "unknown-account")
    answer = await starter.call("POST", "/v1/accounts/nobody/portal-sessions", key=None)
    assert_problem(answer, 401, "unauthorized")
    answer = await starter.call("DELETE", "/v1/accounts/nobody/portal-sessions", key="wrong")
    assert_problem(answer, 401, "unauthorized")


async def test_of_twenty_who_follow_one_address_one_gets_in(starter: Starter) -> None:
    url = await portal_url(starter, await starter.subscriber())
    answers = await asyncio.gather(*(browse(starter, url) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [303] + [401] * 19
    assert sum("set-cookie" in answer.headers for answer in answers) == 1


async def test_an_address_used_by_another_browser_opens_nothing_again(starter: Starter) -> None:
    url = await portal_url(starter, await starter.subscriber())
    assert (await browse(starter, url)).status_code == 303
    assert_ended(await browse(starter, url))


async def test_a_second_click_and_the_way_back_lead_on_to_the_open_dashboard(starter: Starter) -> None:
    rita, sam = await starter.subscriber("rita"), await starter.subscriber("sam")
    url = await portal_url(starter, rita)
    cookie = (await browse(starter, url)).cookies[COOKIE]
    again = await browse(starter, url, cookie)
    assert (again.status_code, again.headers["location"]) == (303, "/portal")
    assert "set-cookie" not in again.headers
    # Whoever is in as somebody else is not shown their own numbers in place of the ones that were asked for.
    assert_ended(await browse(starter, url, await opened(starter, sam)))
    assert_ended(await browse(starter, "/portal?session=made-up", cookie))


async def test_an_address_can_be_followed_for_five_minutes_only(starter: Starter) -> None:
    rita = await starter.subscriber()
    in_time, late = await portal_url(starter, rita), await portal_url(starter, rita)
    starter.world.clock.advance(EXCHANGE_WITHIN - 10 * MOMENT)
    assert (await browse(starter, in_time)).status_code == 303
    starter.world.clock.advance(10 * MOMENT)
    assert_ended(await browse(starter, late))


async def test_a_visit_lasts_half_an_hour_from_its_beginning(starter: Starter) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    starter.world.clock.advance(SESSION_LASTS - 10 * MOMENT)
    await shows(starter, cookie)
    starter.world.clock.advance(10 * MOMENT)
    assert_ended(await browse(starter, "/portal", cookie))
    assert_ended(await press(starter, "/portal/link", cookie, terms_version=TERMS))
    assert_ended(await browse(starter, "/portal/qr.svg", cookie))
    assert_ended(await browse(starter, "/portal/events", cookie))


async def test_an_address_that_was_never_given_opens_nothing(starter: Starter) -> None:
    for given in ("", "made-up", "A" * 43, "A" * 5000, "%00", "%F0%9F%A6%84", "%ff"):
        assert_ended(await browse(starter, f"/portal?session={given}"))


async def test_without_the_cookie_of_an_open_visit_nothing_is_shown(starter: Starter) -> None:
    for cookie in (None, "", "made-up", "A" * 43, "A" * 3000):
        for path in ("/portal", "/portal/qr.svg", "/portal/events"):
            assert_ended(await browse(starter, path, cookie))
        assert_ended(await press(starter, "/portal/link", cookie, terms_version=TERMS))


async def test_a_token_is_no_cookie_and_a_cookie_no_token(starter: Starter) -> None:
    rita = await starter.subscriber()
    url = await portal_url(starter, rita)
    assert_ended(await browse(starter, "/portal", token_in(url)))
    cookie = (await browse(starter, url)).cookies[COOKIE]
    assert_ended(await browse(starter, f"/portal?session={cookie}"))


# Machines (rule 17)


async def test_rule_17_a_browser_that_looks_ahead_uses_no_address_up(starter: Starter) -> None:
    url = await portal_url(starter, await starter.subscriber())
    answer = await browse(starter, url, headers={"Sec-Purpose": "prefetch;prerender"})
    assert (answer.status_code, answer.content) == (503, b"")
    assert answer.headers["cache-control"] == "no-store"
    assert (await browse(starter, url)).status_code == 303


async def test_rule_17_a_machine_uses_no_address_up_and_a_person_taken_for_one_can_go_on(starter: Starter) -> None:
    rita = await starter.subscriber()
    url = await portal_url(starter, rita)
    assert (await browse(starter, url, method="HEAD")).status_code == 200
    answer = await browse(starter, url, headers={"User-Agent": WHATSAPP})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    assert await starter.link(rita) not in answer.text
    # The form of that page, as whoever sees it would send it.
    (action,) = re.findall(r'<form method="post" action="([^"]+)">', answer.text)
    (token,) = re.findall(r'name="session" value="([^"]+)"', answer.text)
    assert_problem(await browse(starter, action, method="POST", data={"session": token}), 403, "cross-site-request")
    entered = await press(starter, action, session=token)
    assert (entered.status_code, entered.headers["location"]) == (303, "/portal")
    await shows(starter, entered.cookies[COOKIE])


async def test_what_a_machine_is_shown_of_an_address_is_only_text(starter: Starter) -> None:
    answer = await browse(starter, '/portal?session="><script>alert(1)</script>', headers={"User-Agent": WHATSAPP})
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text


# Ending visits


async def test_signing_out_ends_this_visit_and_no_other(starter: Starter) -> None:
    rita = await starter.subscriber()
    phone, desktop = await opened(starter, rita), await opened(starter, rita)
    answer = await press(starter, "/portal/sign-out", phone)
    assert answer.status_code == 303
    (cleared,) = answer.headers.get_list("set-cookie")
    assert cleared.startswith(f'{COOKIE}="";')
    assert "Max-Age=0" in cleared
    assert "Path=/portal" in cleared
    assert_ended(await browse(starter, "/portal", phone))
    await shows(starter, desktop)
    # Once more changes nothing.
    assert (await press(starter, "/portal/sign-out", phone)).status_code == 303
    assert (await press(starter, "/portal/sign-out")).status_code == 303


async def test_the_backend_ends_all_visits_of_an_account(starter: Starter) -> None:
    rita, sam = await starter.subscriber("rita"), await starter.subscriber("sam")
    cookies = [await opened(starter, rita), await opened(starter, rita)]
    others = await opened(starter, sam)
    unused = await portal_url(starter, rita)
    answer = await starter.call("DELETE", f"/v1/accounts/{rita.account_id}/portal-sessions")
    assert (answer.status_code, answer.content) == (204, b"")
    for cookie in cookies:
        assert_ended(await browse(starter, "/portal", cookie))
    assert_ended(await browse(starter, unused))
    await shows(starter, others)
    assert (await starter.call("DELETE", f"/v1/accounts/{rita.account_id}/portal-sessions")).status_code == 204
    # Whoever is signed in at the backend still can come in anew.
    await shows(starter, await opened(starter, rita))


async def test_rule_23_erasing_ends_all_visits_and_leaves_nothing_of_them(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    cookie, unused = await opened(starter, rita), await portal_url(starter, rita)
    assert (await starter.call("DELETE", f"/v1/accounts/{rita.account_id}")).status_code == 204
    assert_ended(await browse(starter, "/portal", cookie))
    assert_ended(await browse(starter, unused))
    assert_problem(await starter.call("POST", f"/v1/accounts/{rita.account_id}/portal-sessions"), 410, "account-erased")
    assert owner.execute("SELECT count(*) FROM portal_session").fetchone() == (0,)


async def test_rule_23_an_address_asked_for_while_the_account_is_erased_opens_nothing(starter: Starter) -> None:
    rita = await starter.subscriber()
    path = f"/v1/accounts/{rita.account_id}"
    answers = await asyncio.gather(
        *(starter.call("POST", f"{path}/portal-sessions") for _ in range(8)), starter.call("DELETE", path)
    )
    given = [answer.json()["url"] for answer in answers[:-1] if answer.status_code == 201]
    assert {answer.status_code for answer in answers[:-1]} <= {201, 410}
    for url in given:
        assert_ended(await browse(starter, url))


async def test_rule_23_a_link_asked_for_while_the_account_is_erased_is_answered_by_a_page(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)

    async def waiting(number: int) -> None:
        def lookers() -> int:
            [(count,)] = owner.execute(
                "SELECT count(DISTINCT waiting.pid) FROM pg_locks waiting WHERE NOT granted AND EXISTS (SELECT FROM "
                "pg_locks held WHERE held.pid = waiting.pid AND held.relation = 'account'::regclass)"
            ).fetchall()
            return int(count)

        async def look() -> int:
            return await asyncio.to_thread(lookers)

        await until(look, lambda found: found == number)

    with owner.transaction():
        owner.execute("SELECT 1 FROM account WHERE account_id = %s FOR UPDATE", [rita.account_id])
        erasing = asyncio.create_task(starter.call("DELETE", f"/v1/accounts/{rita.account_id}"))
        await waiting(1)
        asking = asyncio.create_task(press(starter, "/portal/link", cookie, terms_version=TERMS))
        await waiting(2)
    assert (await erasing).status_code == 204
    assert_ended(await asking)


async def test_what_is_left_of_old_visits_is_thrown_away_by_the_sweep(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    await opened(starter, rita)
    await portal_url(starter, rita)
    starter.world.clock.advance(EXCHANGE_WITHIN + SESSION_LASTS)
    still = await opened(starter, rita)
    async with starter.world.upkeep_worker():
        await starter.world.environment.client.execute_workflow(
            SWEEP, id=unique("sweep"), task_queue=upkeep_queue(starter.world.task_queue)
        )
    assert owner.execute("SELECT count(*) FROM portal_session").fetchone() == (1,)
    await shows(starter, still)


# What is kept and told


async def test_rule_24_neither_token_nor_cookie_is_stored_logged_or_counted(
    starter: Starter, owner: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    rita = await starter.subscriber()
    url = await portal_url(starter, rita)
    token = token_in(url)
    await browse(starter, url, headers={"User-Agent": WHATSAPP})
    entered = await browse(starter, url)
    cookie = entered.cookies[COOKIE]
    page = await browse(starter, "/portal", cookie)
    assert_ended(await browse(starter, url))
    await press(starter, "/portal/link", cookie, terms_version=TERMS)
    lines = "".join(capsys.readouterr())
    metrics = (await starter.send("GET", "/metrics")).text
    kept = str(owner.execute("SELECT * FROM portal_session").fetchall())
    assert '"/portal"' in metrics
    assert rita.account_id in lines
    for place in (lines, metrics, kept, page.text, entered.headers["location"]):
        assert token not in place
        assert cookie not in place


async def test_a_database_that_is_away_is_told_in_a_page(starter: Starter) -> None:
    async with starter.another(database_url="postgresql+psycopg://nobody:nothing@127.0.0.1:9/none") as alone:
        for path in ("/portal", "/portal?session=any", "/portal/qr.svg", "/portal/events"):
            answer = await browse(alone, path, "any")
            assert answer.status_code == 503, path
            assert "Back in a moment" in answer.text
            assert answer.headers["retry-after"]


# What a page may ask for


FORMS = ("/portal/link", "/portal/sign-out", "/portal/open")
ELSEWHERE = [
    {},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": PUBLIC_URL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": PUBLIC_URL, "Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": f"{PUBLIC_URL}.evil.example"},
    {"Origin": PUBLIC_URL.replace("https", "http")},
]


async def test_no_other_site_can_send_a_form(starter: Starter) -> None:
    rita = await starter.subscriber()
    url = await portal_url(starter, rita)
    cookie = await opened(starter, rita)
    fields = {"terms_version": TERMS, "session": token_in(url)}
    for path in FORMS:
        for headers in ELSEWHERE:
            answer = await browse(starter, path, cookie, "POST", data=fields, headers=headers)
            assert_problem(answer, 403, "cross-site-request")
    assert "/r/" not in await shows(starter, cookie)
    assert (await browse(starter, url)).status_code == 303


async def test_every_browser_can_send_the_forms_of_the_dashboard(starter: Starter) -> None:
    rita = await starter.subscriber()
    for headers in (OWN_PAGE, {"Sec-Fetch-Site": "same-origin"}, {"Origin": PUBLIC_URL}):
        cookie = await opened(starter, rita)
        answer = await browse(starter, "/portal/sign-out", cookie, "POST", headers=headers)
        assert answer.status_code == 303
        assert_ended(await browse(starter, "/portal", cookie))


async def test_a_form_without_end_is_not_read_to_its_end(starter: Starter) -> None:
    cookie = await opened(starter, await starter.subscriber())
    answer = await browse(starter, "/portal/link", cookie, "POST", content=b"a" * 70_000, headers=OWN_PAGE)
    assert_problem(answer, 413, "content-too-large")


@pytest.mark.parametrize("form", ["open", "link", "sign-out"])
async def test_the_address_of_a_form_visited_by_itself_leads_to_the_dashboard(starter: Starter, form: str) -> None:
    # What answers a form stands under its address: the page of a visit that has ended, or of a database that is away.
    for method in ("GET", "HEAD"):
        answer = await browse(starter, f"/portal/{form}", method=method)
        assert (answer.status_code, answer.headers.get("location")) == (303, "/portal")
        assert answer.headers["cache-control"] == "no-store"


async def test_a_form_that_is_none_takes_no_link(starter: Starter) -> None:
    cookie = await opened(starter, await starter.subscriber())
    for body in (b"\xff\xfe", b"&".join(b"a=1" for _ in range(50)), b"terms_version", b"{}", b""):
        answer = await browse(starter, "/portal/link", cookie, "POST", content=body, headers=OWN_PAGE)
        assert answer.status_code == 422
    assert "/r/" not in await shows(starter, cookie)


# The link (rules 1 and 13)


async def test_rules_1_and_13_a_paid_subscriber_takes_the_link_by_accepting_the_terms(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    assert "/r/" not in await shows(starter, cookie)
    for version in ("1999-01", "", "x" * 2000):
        refused = await press(starter, "/portal/link", cookie, terms_version=version)
        assert refused.status_code == 422
        assert TERMS_VERSION in refused.text
    assert owner.execute("SELECT count(*) FROM referral_link").fetchone() == (0,)
    taken = await press(starter, "/portal/link", cookie, terms_version=TERMS_VERSION)
    assert (taken.status_code, taken.headers["location"]) == (303, "/portal")
    code = await starter.link(rita)
    assert f"{PUBLIC_URL}/r/{code}".partition("://")[2] in (await browse(starter, "/portal", cookie)).text
    accepted = owner.execute("SELECT account_id, terms_version FROM terms_acceptance").fetchall()
    assert accepted == [(rita.account_id, TERMS_VERSION)]
    picture = await browse(starter, "/portal/qr.svg", cookie)
    assert picture.status_code == 200
    assert picture.headers["content-type"].startswith("image/svg+xml")


async def test_rule_1_who_is_no_paid_subscriber_reads_why_there_is_no_link(starter: Starter) -> None:
    fred = await starter.account(person("fred"))
    cookie = await opened(starter, fred)
    before = await shows(starter, cookie)
    answer = await press(starter, "/portal/link", cookie, terms_version=TERMS_VERSION)
    assert (answer.status_code, answer.headers["location"]) == (303, "/portal")
    assert await shows(starter, cookie) == before
    assert_problem(await browse(starter, "/portal/qr.svg", cookie), 404, "no-link")
    await starter.pay(fred)
    assert await shows(starter, cookie) != before


# What is shown


async def test_rule_12_a_dashboard_is_of_one_account_and_has_the_numbers_of_its_summary(
    whole_program: Starter,
) -> None:
    starter = whole_program
    rita = await starter.subscriber()
    code = await starter.link(rita)
    friends, referral_ids = [], []
    for channel in ("whatsapp", "qr", "whatsapp"):
        visit = await starter.click(code, channel=channel)
        friends.append(await starter.account(person("fred")))
        referral_ids.append(await starter.signed_up(friends[-1], referral_token=visit.token))
        await starter.reaches(visit.referral_id, "signed_up")
    await starter.pay(friends[0], plan="power")
    await starter.reaches(referral_ids[0], "credited")
    summary = await starter.summary(rita)
    assert (summary["clicks"], summary["invited"], summary["subscribed"]) == (3, 3, 1)
    assert summary["bonus_minutes_earned"] == summary["bonus_minutes_available"] == 300
    page = await browse(starter, "/portal", await opened(starter, rita))
    assert code in page.text
    for number in (summary["invited"], summary["subscribed"], summary["bonus_minutes_earned"]):
        assert re.search(rf"\b{number}\b", words(page))
    for friend in friends:
        assert friend.account_id not in page.text
    other = await browse(starter, "/portal", await opened(starter, friends[0]))
    assert code not in other.text
    assert re.search(r"\b300\b", words(other))


def plant_referrals(owner: psycopg.Connection, account_id: str, code: str, number: int) -> None:
    """Let an account have signups that wait for a payment, a minute apart."""
    names = {"account": account_id, "code": code, "number": number}
    owner.execute(
        """INSERT INTO account (account_id, created_at)
           SELECT %(account)s || '-friend-' || n, now() FROM generate_series(1, %(number)s) n""",
        names,
    )
    owner.execute("UPDATE account SET invited = %(number)s WHERE account_id = %(account)s", names)
    owner.execute(
        """INSERT INTO referral (referral_id, code, channel, referrer_id, referee_id, clicked_at, signup_until,
               lapses_at, stage, signed_up_at)
           SELECT %(account)s || '-' || n, %(code)s, 'link', %(account)s, %(account)s || '-friend-' || n, at,
               at + '90 days', at + '97 days', 'signed_up', at
           FROM generate_series(1, %(number)s) n, LATERAL (SELECT now() - n * '1 minute'::interval) t (at)""",
        names,
    )


def older(page: httpx.Response) -> str:
    """The cursor of the next page."""
    (cursor,) = {html.unescape(each) for each in re.findall(r'href="/portal\?cursor=([^"#]+)', page.text)}
    return cursor


def friends_on(page: httpx.Response) -> list[str]:
    """The times by which a page names friends."""
    listed = page.text.partition('<ul class="friends">')[2].partition("</ul>")[0]
    return [re.findall(r'datetime="([^"]+)"', each)[0] for each in listed.split("<li>")[1:]]


async def test_rule_22_a_friend_who_was_refused_at_the_signup_is_shown_with_the_reason(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    code = await whole_program.link(rita)
    old = person("old", created_at=datetime.now(UTC) - timedelta(days=30))
    await whole_program.reaches(await whole_program.signed_up(old, referral_code=code), "refused")
    page = await shows(whole_program, await opened(whole_program, rita))
    assert "No bonus for this one" in page
    assert "The account existed before" in page
    assert old.account_id not in page


async def test_a_cursor_of_another_account_shows_nothing(starter: Starter, owner: psycopg.Connection) -> None:
    rita, sam = await starter.subscriber("rita"), await starter.subscriber("sam")
    plant_referrals(owner, rita.account_id, await starter.link(rita), 30)
    ritas, sams = await opened(starter, rita), await opened(starter, sam)
    cursor = older(await browse(starter, "/portal", ritas))
    for wrong, cookie in ((cursor, sams), (cursor[:-3] + "abc", ritas), ("made-up", ritas), ("", ritas)):
        answer = await browse(starter, f"/portal?cursor={wrong}", cookie)
        assert (answer.status_code, answer.headers["location"]) == (303, "/portal")
    rest = await browse(starter, f"/portal?cursor={cursor}", ritas)
    assert rest.status_code == 200
    assert len(friends_on(rest)) == 10


async def test_a_member_with_ten_thousand_referrals_reads_them_page_by_page(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    plant_referrals(owner, rita.account_id, await starter.link(rita), 10_000)
    cookie = await opened(starter, rita)
    first = page = await browse(starter, "/portal", cookie)
    seen = friends_on(page)
    for _ in range(2):
        page = await browse(starter, f"/portal?cursor={older(page)}", cookie)
        assert page.status_code == 200
        seen += friends_on(page)
        assert len(page.content) < 2 * len(first.content)
    assert len(seen) == 60
    assert seen == sorted(seen, reverse=True)
    assert "10,000" in words(first)
    assert (await starter.summary(rita))["invited"] == 10_000


async def test_the_openapi_document_has_portal_sessions(starter: Starter) -> None:
    document = json.loads((await starter.send("GET", "/openapi.json")).text)
    path = document["paths"]["/v1/accounts/{account_id}/portal-sessions"]
    assert path["post"]["responses"].keys() >= {"201", "401", "404", "410", "422", "503"}
    assert path["delete"]["responses"].keys() >= {"204", "401", "422", "503"}
    assert not any(each.startswith("/portal") for each in document["paths"])
