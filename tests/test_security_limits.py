"""How much one address may ask for, and that nobody else has to wait for it (docs/security.md)."""

import gc
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from starter.limits import CELLS, ROWS, Limit, Limited, Limits, Table
from tests.http_support import (
    API_KEYS,
    IPHONE,
    PUBLIC_URL,
    Http,
    Starter,
    assert_problem,
    person,
    settings_for,
)
from tests.support import until

FLOODING = ("203.0.113.1", "203.0.113.2", "2001:db8:bad:1::1", "2001:db8:bad:1::2")
"""Three addresses: the last two are of one network."""

VISITORS = ("198.51.100.7", "198.51.100.8", "2001:db8:900d::1")


@asynccontextmanager
async def at(starter: Starter, address: str) -> AsyncIterator[Http]:
    """Whoever comes to the starter from an address."""
    transport = httpx.ASGITransport(starter.app, raise_app_exceptions=False, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL) as client:
        yield Http(client)


async def statuses(starter: Starter, address: str, path: str, times: int = 1, **headers: str) -> Counter[int]:
    """What so many requests for a path get; without a client in between, for there may be very many of them."""
    seen: Counter[int] = Counter()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in ({"user_agent": IPHONE} | headers).items()
        ],
        "client": (address, 4711),
        "server": ("kally.example", 443),
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen[int(message["status"])] += 1

    for _ in range(times):
        await starter.app(dict(scope), receive, send)
    return seen


def tables_of(starter: Starter) -> list[Table]:
    limits: Limits = starter.app.state.services.limits
    return [table for limit in limits.limits.values() for table in limit.tables]


async def test_a_flood_of_clicks_is_refused_and_ordinary_visitors_are_not(
    starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="20/hour") as limited:
        kept = [len(table) for table in tables_of(limited)]
        seen: Counter[int] = Counter()
        for turn in range(10):
            for address in FLOODING:
                seen += await statuses(limited, address, f"/r/{code}", 2500)
            for address in VISITORS if turn % 5 == 0 else ():
                async with at(limited, address) as visitor:
                    assert (await visitor.follow(code)).status_code == 302
        assert seen == {302: 3 * 20, 429: 100_000 - 3 * 20}
        assert await limited.metric("referrals_limited_total", limited="clicks") == seen[429]
        assert await limited.metric("referrals_clicks_total", visitor="person") == 3 * 20 + 2 * len(VISITORS)
        assert [len(table) for table in tables_of(limited)] == kept
        assert max(table.in_use for table in tables_of(limited)) <= ROWS * (3 + len(VISITORS))
    logged = "".join(capsys.readouterr())
    assert logged.count("too many requests") == 1, "a flood does not fill the disk"
    assert not [address for address in (*FLOODING, *VISITORS) if address in logged]


async def test_what_is_kept_does_not_grow_with_the_addresses_that_come(starter: Starter) -> None:
    kept = sum(len(table) for table in tables_of(starter))
    assert kept == CELLS * ROWS * len(Limited)
    # A prefetch is counted like any click, and has its answer at once.
    await statuses(starter, "192.0.2.1", "/r/abcdefghjk", 100, purpose="prefetch")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            assert await statuses(starter, address, "/r/abcdefghjk", purpose="prefetch") == {503: 1}
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(table.in_use for table in tables_of(starter)) > 2000
    assert sum(len(table) for table in tables_of(starter)) == kept
    assert after - before < 200_000, "not a hundred bytes an address"


async def test_a_click_that_is_refused_leaves_nothing_behind(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="20/hour") as limited:
        await statuses(limited, FLOODING[0], f"/r/{code}", 200)
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            seen = await statuses(limited, FLOODING[0], f"/r/{code}", 3000)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert seen == {429: 3000}
    assert after - before < 100_000, "not thirty bytes a click"


async def test_however_many_addresses_come_there_are_as_many_counts_as_before() -> None:
    limit = Limit("600/minute")
    (table,) = limit.tables
    kept = len(table)
    for number in range(300_000):
        await table.incr(f"LIMITER/{number}/600/1/minute", 60)
    assert len(table) == kept
    assert table.in_use > 0.95 * kept, "nearly every cell is used by several"
    assert not await limit.take("198.51.100.7"), "and nobody who comes anew is refused for them"


async def test_whoever_shares_no_cell_with_a_flood_is_not_refused_for_it() -> None:
    limit = Limit("10/minute")
    for number in range(1000):
        for _ in range(20):
            await limit.take(f"10.0.{number >> 8}.{number & 255}")
    refused = [number for number in range(2000) if await limit.look(f"198.51.{number >> 8}.{number & 255}")]
    # Each of the two rows has a cell in common with some flooding address at one in 66: both do at one in 4300.
    assert len(refused) < 20


async def test_a_click_too_many_is_answered_with_a_page(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="1/minute") as limited:
        assert (await limited.follow(code)).status_code == 302
        refused = await limited.follow(code)
    assert refused.status_code == 429
    assert refused.headers["content-type"].startswith("text/html")
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in refused.headers["content-security-policy"]
    assert "set-cookie" not in refused.headers
    assert "One moment, please" in refused.text


async def test_when_the_window_is_over_whoever_was_refused_is_let_through(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="2/second;1000/hour") as limited:
        seen = [(await limited.follow(code)).status_code for _ in range(6)]
        assert 429 in seen
        await until(lambda: limited.follow(code), lambda answer: answer.status_code == 302)


async def test_whoever_guesses_codes_is_refused_also_when_one_is_right(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_unknown_codes="5/hour") as limited:
        async with at(limited, FLOODING[0]) as guessing:
            assert (await guessing.follow(code)).status_code == 302
            for number in range(5):
                assert (await guessing.follow(f"guess{number}")).status_code == 404
            for guess in ("another", code, code.upper()):
                assert (await guessing.follow(guess)).status_code == 429, "a guess that is right looks like any"
        assert await limited.metric("referrals_clicks_total", visitor="unknown") == 5, "no further one was looked for"
        assert await limited.metric("referrals_limited_total", limited="unknown_codes") == 3
        for address in VISITORS:
            async with at(limited, address) as visitor:
                assert (await visitor.follow(code)).status_code == 302
                assert (await visitor.follow("mistyped")).status_code == 404


async def test_whoever_guesses_at_dashboards_is_refused_and_no_open_one_is_closed(starter: Starter) -> None:
    rita = await starter.subscriber()
    paths = [f"/v1/accounts/{rita.account_id}/portal-sessions"] * 3

    async def address_of(path: str) -> str:
        return str((await starter.call("POST", path)).json()["url"]).removeprefix(PUBLIC_URL)

    first, second, third = [await address_of(path) for path in paths]
    async with starter.another(limit_portal_tokens="5/hour") as limited, at(limited, FLOODING[0]) as guessing:
        browser = {"User-Agent": IPHONE}
        cookie = (await guessing.send("GET", first, headers=browser)).headers["set-cookie"].partition(";")[0]
        for number in range(5):
            answer = await guessing.send("GET", f"/portal?session=guess{number}", headers=browser)
            assert answer.status_code == 401
        refused = await guessing.send("GET", second, headers=browser)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        assert "One moment, please" in refused.text
        form = {"User-Agent": IPHONE, "Origin": PUBLIC_URL, "Content-Type": "application/x-www-form-urlencoded"}
        content = third.partition("?")[2]
        assert (await guessing.send("POST", "/portal/open", content=content, headers=form)).status_code == 429
        assert (await guessing.send("GET", "/portal", headers=browser | {"Cookie": cookie})).status_code == 200
        async with at(limited, VISITORS[0]) as member:
            assert (await member.send("GET", second, headers=browser)).status_code == 303


async def test_wrong_api_keys_are_limited_and_a_right_one_never_is(starter: Starter) -> None:
    async with starter.another(limit_api_keys="5/hour") as limited:
        path = "/v1/accounts/acct-1/bonus-minutes"
        for number in range(5):
            assert_problem(await limited.call("GET", path, key=f"a key that is wrong {number}"), 401, "unauthorized")
        refused = await limited.call("GET", path, key=API_KEYS[0] + "x")
        assert_problem(refused, 429, "too-many-requests")
        assert 0 < int(refused.headers["retry-after"]) <= 3600
        assert_problem(await limited.call("GET", path, key=None), 429, "too-many-requests")
        for key in API_KEYS:
            assert_problem(await limited.call("GET", path, key=key), 404, "unknown-account")
        async with at(limited, VISITORS[0]) as other:
            assert_problem(await other.call("GET", path, key="wrong"), 401, "unauthorized")


async def test_nobody_says_for_himself_where_he_comes_from(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="2/hour") as limited, at(limited, FLOODING[0]) as flooding:
        seen = [
            (await flooding.follow(code, headers={name: f"198.51.100.{number}"})).status_code
            for number in range(3)
            for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded")
        ]
    assert Counter(seen) == {302: 2, 429: 7}


async def test_a_proxy_that_the_settings_name_says_who_comes_and_only_of_the_last_step_before_it(
    starter: Starter,
) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="2/hour", trusted_proxies="10.0.0.0/8") as limited:
        async with at(limited, "10.1.2.3") as proxy:
            for address in VISITORS:
                for number, status in enumerate((302, 302, 429)):
                    # What stands before the last address is the visitor's own word.
                    told = {"X-Forwarded-For": f"192.0.2.{number}, {address}, 10.9.9.9"}
                    assert (await proxy.follow(code, headers=told)).status_code == status, address
        async with at(limited, FLOODING[0]) as stranger:
            seen = [
                (await stranger.follow(code, headers={"X-Forwarded-For": f"192.0.2.{n}"})).status_code for n in range(4)
            ]
    assert seen == [302, 302, 429, 429]


async def test_an_untrusted_proxy_is_pointed_out_to_the_operator(
    starter: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with starter.another(limit_clicks="1/hour") as limited:
        await limited.follow("abcdefghjk", headers={"X-Forwarded-For": "198.51.100.7"})
        await limited.follow("abcdefghjk", headers={"X-Forwarded-For": "198.51.100.7"})
    logged = "".join(capsys.readouterr())
    assert "REFERRALS_TRUSTED_PROXIES" in logged
    assert "198.51.100.7" not in logged


async def test_a_limit_can_be_turned_off(starter: Starter) -> None:
    async with starter.another(limit_clicks="off", limit_unknown_codes="off") as unlimited:
        assert await statuses(unlimited, FLOODING[0], "/r/abcdefghjk", 100) == {404: 100}


@pytest.mark.parametrize(
    "changes",
    [
        {"limit_clicks": "many"},
        {"limit_clicks": "10"},
        {"limit_clicks": ""},
        {"limit_api_keys": "5/fortnight"},
        {"trusted_proxies": "*"},
        {"trusted_proxies": "10.0.0.0/8,proxy.example"},
    ],
    ids=json.dumps,
)
def test_a_limit_or_a_proxy_that_cannot_be_read_is_refused_at_start(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="must"):
        settings_for("postgresql://a:b@c/d", "queue", **changes)


async def test_a_table_counts_in_windows_and_forgets_when_it_is_told_to() -> None:
    table = Table(cells=1 << 8)
    assert [await table.incr("a", 3600) for _ in range(3)] == [1, 2, 3]
    assert await table.get("a") == 3
    assert await table.incr("a", 3600, amount=5) == 8
    await table.clear("a")
    assert await table.get("a") == 0
    await table.incr("a", 3600)
    assert await table.reset() == len(table)
    assert await table.get("a") == 0
    assert await table.incr("b", 0) == 1
    assert await table.get("b") == 0, "its window was over at once"
    assert await table.check()


async def test_a_signup_is_reported_however_many_clicks_came_from_the_backend_s_address(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(limit_clicks="1/hour", limit_unknown_codes="1/hour") as limited:
        for _ in range(3):
            await limited.follow("nosuchcode")
        assert (await limited.sign_up(person("fred"), referral_code=code)).status_code == 202
