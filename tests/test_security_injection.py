"""What a stranger writes stays what it is: no address to go to, no header, no log line, no HTML, no SQL."""

import asyncio
import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import psycopg
from psycopg import sql

from starter.site import TEMPLATES
from tests.http_support import API_KEYS, IPHONE, PUBLIC_URL, SIGNUP_URL, TERMS, WHATSAPP, Starter, person
from tests.support import DatabaseUrls, World
from tests.test_end_to_end import stack_on
from tests.test_http_portal import browse, opened, portal_url, press

EVIL = "evil.example"

ELSEWHERE = (
    f"//{EVIL}",
    f"///{EVIL}/..",
    f"/\\{EVIL}",
    f"/%5c{EVIL}",
    f"/%2f{EVIL}",
    "/{path}/",
    f"/{{path}}//{EVIL}",
    f"/{{path}}/..//{EVIL}",
    f"/{{path}}%2f..%2f..%2f{EVIL}",
    f"/{{path}}?next=https://{EVIL}&url=//{EVIL}&ref=https://{EVIL}&redirect_uri=https://{EVIL}",
    f"/{{path}}?c=https://{EVIL}",
    f"/{{path}}@{EVIL}",
    f"/{{path}}%00.{EVIL}",
    f"/{{path}}%0d%0aLocation:%20https://{EVIL}",
)
LYING_HEADERS = {
    "Host": EVIL,
    "X-Forwarded-Host": EVIL,
    "X-Forwarded-Proto": "javascript",
    "X-Original-URL": f"https://{EVIL}/",
    "Forwarded": f"host={EVIL};proto=http",
    "Referer": f"https://{EVIL}/",
    "Origin": f"https://{EVIL}",
}


async def test_whatever_is_asked_for_nobody_is_led_to_another_site(starter: Starter) -> None:
    rita = await starter.subscriber()
    code, cookie = await starter.link(rita), await opened(starter, rita)
    led = 0
    for path in ("", "r", f"r/{code}", "portal", "portal/open", "portal/link", "refer", "docs"):
        for form in ("/{path}", *ELSEWHERE):
            for headers in ({}, LYING_HEADERS):
                asked = f"{PUBLIC_URL}{form.format(path=path)}"
                sent = {"User-Agent": IPHONE, "Cookie": f"kally_portal={cookie}", **headers}
                answer = await starter.send("GET", asked, headers=sent)
                assert not re.search(rf'(href|action|src)="[^"]*{EVIL}', unescape(answer.text)), asked
                location = answer.headers.get("location")
                if location is None:
                    continue
                led += 1
                ours, own = urlsplit(SIGNUP_URL), urlsplit(location)
                to_the_signup = own[:3] == ours[:3] and set(own.query.partition("=")[0::2]) >= {"ref"}
                assert to_the_signup or location in ("/portal", "/refer"), (asked, location)
                assert EVIL not in location
    assert led > 20
    for headers in ({}, LYING_HEADERS):
        answer = await starter.send(
            "POST",
            f"/v1/accounts/{rita.account_id}/portal-sessions?return_url=https://{EVIL}",
            headers={"Authorization": f"Bearer {API_KEYS[0]}", **headers},
        )
        assert answer.json()["url"].startswith(f"{PUBLIC_URL}/portal?session=")


INJECTED = "kally-injected"
LINES = (f"a\r\nX-{INJECTED}: yes", f"a\r\n\r\n<b>{INJECTED}</b>", f"a\u2028{INJECTED}\x1b[2J")


async def test_whatever_is_sent_no_header_and_no_log_line_is_somebody_else_s(
    live_idle_world: World, database_urls: DatabaseUrls, dev_server: str, tmp_path: Path
) -> None:
    async with stack_on(live_idle_world, database_urls, dev_server, tmp_path) as stack:
        rita = await stack.subscriber()
        code = await stack.link(rita)
        answers: list[httpx.Response] = []
        for line in LINES:
            text, quoted = line.encode("unicode_escape").decode(), quote(line)
            paths = (f"/r/{code}?c={quoted}", f"/r/{quoted}", f"/portal?session={quoted}", f"/v1/referrals/{quoted}")
            machine = {"User-Agent": WHATSAPP}
            answers += [await stack.send("GET", path, headers=machine) for path in paths]
            answers.append(await stack.call("GET", f"/v1/accounts/{quoted}/referrals?cursor={quoted}"))
            answers.append(await stack.put(rita, first_name=line, user_agent=line, client_ip=line))
            answers.append(await stack.put(rita, email=f"{line}@people.example"))
            answers.append(
                await stack.call("POST", f"/v1/accounts/{rita.account_id}/usage", {"usage_id": line, "minutes": 1})
            )
            answers.append(await stack.sign_up(person("fred"), referral_token=line))
            answers.append(await stack.sign_up(person("fred"), referral_code=line, user_agent=line))
            told = {
                "User-Agent": text,
                "Accept-Language": text,
                "Cookie": f"kally_ref={text}; kally_portal={text}",
                "X-Forwarded-For": text,
                "X-Request-Id": text,
                "Stripe-Signature": f"t={text},v1={text}",
            }
            answers.append(await stack.send("GET", f"/r/{code}", headers=told))
            answers.append(await stack.send("POST", "/stripe/webhooks", content=line.encode(), headers=told))
        raw = await _raw(stack.client.base_url.port or 0, code)
    for answer in answers:
        assert answer.status_code < 500
        assert not [name for name in answer.headers if INJECTED in name.lower()]
        assert INJECTED not in answer.headers.get("set-cookie", "")
        assert INJECTED not in answer.headers.get("location", "")
    assert INJECTED.encode() not in raw
    lines = stack.starter.lines
    assert len(lines) >= len(answers)
    for line in lines:
        document = json.loads(line)
        assert document["program"] == "starter"
        assert INJECTED not in line, "what a stranger sent is in no line at all"


async def _raw(port: int, code: str) -> bytes:
    """The answers to requests that no client would send: line ends within a header and within the first line."""
    said = b""
    for request in (
        f"GET /r/{code} HTTP/1.1\r\nHost: a\r\nUser-Agent: a\r\n X-{INJECTED}: yes\r\n\r\n",
        f"GET /r/{code} HTTP/1.1\nHost: a\nUser-Agent: a\rX-{INJECTED}: yes\n\n",
        f"GET /r/{code}\rX-{INJECTED} HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /r/{code} HTTP/1.1\r\nHost: a\r\nX-{INJECTED}\x00: yes\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode("latin-1"))
        writer.write_eof()
        said += await asyncio.wait_for(reader.read(), 20)
        writer.close()
    return said


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title><svg onload=alert(1)>",
    "{{ 71093 * 71093 }}{% for a in b %}",
    "javascript:alert(1)",
)


class _Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            leads = name in ("href", "src", "action", "formaction") and (value or "").lower().startswith("javascript:")
            if name.startswith("on") or leads:
                self.found.append(f"{tag} {name}={value}")
        if tag == "script" and "src" not in dict(attrs):
            self.found.append("an inline script")
        if tag == "img" and dict(attrs).get("src") == "x":
            self.found.append("a picture of nobody's")


def assert_harmless(page: httpx.Response, where: object) -> None:
    assert page.headers["content-type"].startswith("text/html"), (where, page.text[:200])
    assert not _Page(page.text).found, where
    assert "5054214649" not in page.text, where


async def test_whatever_is_written_into_a_field_is_text_on_every_page_that_shows_it(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    code, cookie = await starter.link(rita), await opened(starter, rita)
    await starter.signed_up(person("fred"), referral_code=code)
    for hostile in HOSTILE:
        await starter.put(rita, first_name=hostile, show_first_name=True)
        quoted = quote(hostile, safe="")
        token = (await portal_url(starter, rita)).removeprefix(PUBLIC_URL)
        asked: list[tuple[str, dict[str, str]]] = [
            (f"/r/{code}?c={quoted}", {"User-Agent": WHATSAPP}),
            (f"/r/{quoted}", {}),
            (f"/r/{code}/{quoted}", {}),
            (f"/refer?{quoted}={quoted}", {"Accept-Language": hostile}),
            (f"/docs?{quoted}", {}),
            (f"{token}&{quoted}", {"User-Agent": WHATSAPP}),
            (f"/portal?session={quoted}", {"User-Agent": WHATSAPP}),
            (f"/portal?session={quoted}", {}),
        ]
        for path, headers in asked:
            assert_harmless(await browse(starter, path, headers=headers), (path, headers))
        assert_harmless(await press(starter, "/portal/link", cookie, terms_version=hostile), hostile)
        assert_harmless(await press(starter, "/portal/open", session=hostile), hostile)
        # Not only what the API lets in: whatever ever comes to stand in the tables.
        owner.execute("UPDATE account SET first_name = %s WHERE account_id = %s", [hostile, rita.account_id])
        assert_harmless(await browse(starter, f"/r/{code}", headers={"User-Agent": WHATSAPP}), hostile)
        owner.execute(
            "INSERT INTO channel_total (account_id, channel, clicks) VALUES (%s, %s, 3)", [rita.account_id, hostile]
        )
    owner.execute("UPDATE referral SET channel = %s", [HOSTILE[0]])
    shown = await browse(starter, "/portal", cookie)
    assert shown.status_code == 200
    assert_harmless(shown, "/portal")
    for hostile in HOSTILE:
        assert hostile in unescape(shown.text), "the channel is shown, as the text that it is"


def test_no_template_takes_a_text_for_html_and_none_has_a_script_or_a_style_within_it() -> None:
    templates = sorted(TEMPLATES.glob("*.html"))
    assert templates
    for template in templates:
        text = template.read_text()
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|\bxmlattr\b", text), template.name
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text), template.name


SQL = (
    "' OR '1'='1",
    "'; DROP TABLE account CASCADE; SELECT pg_sleep(60); --",
    "x') UNION SELECT account_id, email_hash::text FROM account --",
    "%s %(a)s :a $1 {0}",
    "a\0b",
)


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    yield from schema.get("properties", {}).items()


GOOD: dict[str, Any] = {
    "created_at": "2026-01-01T00:00:00Z",
    "terms_version": TERMS,
    "minutes": 1,
    "usage_id": "use-1",
    "client_ip": "192.0.2.1",
    "user_agent": "Mozilla/5.0",
    "show_first_name": True,
    "first_name": "Rita",
}


async def test_whatever_is_sent_as_any_parameter_of_any_call_is_no_sql(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita, rob = await starter.subscriber("rita"), await starter.subscriber("rob")
    code = await starter.link(rita)
    good = GOOD | {"account_id": rita.account_id, "email": rita.email, "referral_code": code, "code": code}
    before = _everything(owner, rob.account_id)
    document = (await starter.send("GET", "/openapi.json")).json()
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            places = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", ())]
            body: dict[str, Any] = {}
            for content in operation.get("requestBody", {}).get("content", {}).values():
                fields = dict(_fields(document, content["schema"]))
                places += [("body", name) for name in fields]
                body = {name: good[name] for name in fields if name in good and name != "referral_token"}
            for place, name in places:
                for text in SQL:
                    tried += 1
                    given = good | ({name: text} if place == "path" else {})
                    address = re.sub(r"{(\w+)}", lambda part: quote(str(given.get(part[1], "none")), safe=""), path)  # noqa: B023
                    answer = await starter.call(
                        method.upper(),
                        address,
                        {**body, name: text} if place == "body" else body or None,
                        params={name: text} if place == "query" else None,
                    )
                    assert answer.status_code < 500, (method, address, place, name, text, answer.text)
                    assert rob.account_id not in answer.text
                    assert "syntax" not in answer.text
    assert tried > 100
    assert _everything(owner, rob.account_id) == before
    for text in SQL:
        answer = await browse(starter, f"/portal?session={quote(text)}", text.replace("\0", ""))
        assert answer.status_code == 401
        assert (await starter.follow(quote(text, safe=""))).status_code == 404, "as a person: machines go another way"
        answer = await starter.follow(code, cookie=quote(text))
        assert answer.status_code == 302


def _everything(owner: psycopg.Connection, account_id: str) -> dict[str, Any]:
    """All that is stored of an account."""
    kept: dict[str, Any] = {}
    tables = owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
    for (table,) in tables:
        query = sql.SQL("SELECT t::text FROM {} t WHERE t::text LIKE %s ORDER BY 1").format(sql.Identifier(table))
        kept[table] = owner.execute(query, [f"%{account_id}%"]).fetchall()
    return kept
