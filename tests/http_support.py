"""The starter over HTTP: the app itself or its process, and everybody who calls it: browsers, the backend, Stripe."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from temporalio.client import Client

from ledger.database import Database
from ledger.referrals import ClickedLink
from program.referral import AttributionWindow
from runtime.settings import PROJECT, StarterSettings
from starter.app import create_app
from starter.live import LiveUpdates
from starter.tokens import Tokens
from tests.stripe_events import Event, invoice_paid, signed, subscription, unique
from tests.support import MONTH, DatabaseUrls, Member, World, until

API_KEYS = ("the first API key of the tests", "the second API key of the tests")
STRIPE_SECRETS = ("whsec_the_first_of_the_tests", "whsec_the_second_of_the_tests")
TOKEN_SECRETS = ("the token secret in use", "the token secret before")
IDENTITY_HASH_KEY = "a key that only tests use"
PUBLIC_URL = "https://kally.example"
SIGNUP_URL = "https://app.kally.example/signup"
WINDOW = timedelta(days=90)
GRACE = timedelta(days=7)
COOKIE = "kally_ref"
TERMS = "2026-01"

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)
WHATSAPP = "WhatsApp/2.24.20.89 A"


def environment(urls: DatabaseUrls, task_queue: str, temporal: str, port: int) -> dict[str, str]:
    """What the environment holds for `python -m starter` and `python worker.py` in the tests."""
    return {
        "REFERRALS_DATABASE_URL": urls.app,
        "REFERRALS_API_KEYS": ",".join(API_KEYS),
        "REFERRALS_STRIPE_WEBHOOK_SECRETS": ",".join(STRIPE_SECRETS),
        "REFERRALS_PUBLIC_URL": PUBLIC_URL,
        "REFERRALS_SIGNUP_URL": SIGNUP_URL,
        "REFERRALS_TOKEN_SECRETS": ",".join(TOKEN_SECRETS),
        "REFERRALS_IDENTITY_HASH_KEY": IDENTITY_HASH_KEY,
        "REFERRALS_TASK_QUEUE": task_queue,
        "REFERRALS_PORT": str(port),
        "TEMPORAL_ADDRESS": temporal,
    }


def settings_for(url: str, task_queue: str, **changes: Any) -> StarterSettings:
    """The starter's settings in the tests, but for `changes`."""
    values: dict[str, Any] = {
        "database_url": SecretStr(url),
        "api_keys": list(map(SecretStr, API_KEYS)),
        "stripe_webhook_secrets": list(map(SecretStr, STRIPE_SECRETS)),
        "public_url": PUBLIC_URL,
        "signup_url": SIGNUP_URL,
        "cookie_domain": None,
        "token_secrets": list(map(SecretStr, TOKEN_SECRETS)),
        "identity_hash_key": SecretStr(IDENTITY_HASH_KEY),
        "attribution_window": WINDOW,
        "plans_file": PROJECT / "plans.toml",
        "task_queue": task_queue,
    }
    return StarterSettings(**values | changes)


@dataclass(frozen=True)
class Visit:
    """A person's click: the answer, and what the browser took away from it."""

    answer: httpx.Response
    token: str
    cookie: str
    referral_id: str


class Endless:
    """A body without end, and how many bytes of it were taken."""

    def __init__(self) -> None:
        self.taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.taken < 50_000_000:
            self.taken += 10_000
            yield b" " * 10_000


class Http:
    """The starter, and everybody who calls it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, from nobody in particular: no cookie is kept, no redirect followed."""
        answer = await self.client.request(method, path, follow_redirects=False, **options)
        self.client.cookies.clear()
        return answer

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = API_KEYS[0], **options: Any
    ) -> httpx.Response:
        """One call of the backend's."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if body is not None:
            options["content"] = json.dumps(body)
            headers["Content-Type"] = "application/json"
        return await self.send(method, path, headers=headers, **options)

    async def get(self, path: str, **parameters: str | int) -> Any:
        """What a call of the backend's that must be fine reads."""
        answer = await self.call("GET", path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    # The backend's side

    async def put(self, member: Member, **changes: Any) -> httpx.Response:
        """Report an account."""
        body = {"email": member.email, "created_at": member.created_at.isoformat()}
        if member.customer_id:
            body["stripe_customer_id"] = member.customer_id
        return await self.call("PUT", f"/v1/accounts/{member.account_id}", body | changes)

    async def account(self, member: Member, **changes: Any) -> Member:
        """Report an account, which must be fine."""
        answer = await self.put(member, **changes)
        assert answer.status_code == 200, answer.text
        return member

    async def subscriber(
        self, name: str = "rita", *, now: datetime | None = None, cycle_ends_in: timedelta = MONTH / 2
    ) -> Member:
        """An account that has paid for a while."""
        now = now or datetime.now(UTC)
        member = await self.account(person(name, created_at=now - timedelta(days=400)))
        end = now + cycle_ends_in
        for event in paid(member, end - MONTH, end):
            assert (await self.stripe(event)).status_code == 200
        return member

    async def link(self, member: Member) -> str:
        """The code of a member's link."""
        answer = await self.call("POST", f"/v1/accounts/{member.account_id}/referral-link", {"terms_version": TERMS})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["code"])

    async def sign_up(self, friend: Member, **how: Any) -> httpx.Response:
        """Report a signup; `how` has the token or the code, and may change the rest."""
        body = {"account_id": friend.account_id, "email": friend.email, "created_at": friend.created_at.isoformat()}
        return await self.call("POST", "/v1/signups", body | how)

    async def signed_up(self, friend: Member, **how: Any) -> str:
        """Report a signup, which must be accepted; the referral's id."""
        answer = await self.sign_up(friend, **how)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["referral_id"])

    async def referral(self, referral_id: str) -> Any:
        """A referral."""
        return await self.get(f"/v1/referrals/{referral_id}")

    async def reaches(self, referral_id: str, *stages: str, seconds: float = 60.0) -> Any:
        """Wait until a referral has come to one of these stages."""
        return await until(lambda: self.referral(referral_id), lambda seen: seen["stage"] in stages, seconds)

    async def bonus(self, member: Member) -> Any:
        """The bonus minutes of an account."""
        return await self.get(f"/v1/accounts/{member.account_id}/bonus-minutes")

    async def summary(self, member: Member) -> Any:
        """The dashboard's numbers of an account."""
        return await self.get(f"/v1/accounts/{member.account_id}/referral-summary")

    # The browser's side

    async def follow(
        self,
        code: str,
        *,
        agent: str | None = IPHONE,
        cookie: str | None = None,
        channel: str | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Follow a link, by default as a person on a phone."""
        sent = {"User-Agent": agent or "", **(headers or {})}
        if cookie is not None:
            sent["Cookie"] = f"{COOKIE}={cookie}"
        return await self.send(
            method,
            f"/r/{code}",
            params={"c": channel} if channel else None,
            headers={name: value.encode("latin-1") for name, value in sent.items()},
        )

    async def click(self, code: str, **how: Any) -> Visit:
        """A person's click, which must lead to the signup."""
        answer = await self.follow(code, **how)
        assert answer.status_code == 302, answer.text
        token = reference(answer.headers["location"])
        return Visit(answer, token, answer.cookies[COOKIE], tokens().read(token).referral_id)

    # Stripe's side

    async def stripe(
        self, event: Event, secret: str = STRIPE_SECRETS[0], timestamp: int | None = None
    ) -> httpx.Response:
        """Deliver an event, signed."""
        body, headers = signed(event, secret, timestamp)
        return await self.send("POST", "/stripe/webhooks", content=body, headers=headers)

    async def pay(self, member: Member, *, plan: str = "pro", length: timedelta = MONTH) -> None:
        """Let a member pay for a plan now, and Stripe tell of it."""
        now = datetime.now(UTC)
        for event in paid(member, now, now + length, plan=plan):
            answer = await self.stripe(event)
            assert answer.status_code == 200, answer.text

    # The operator's side

    async def metric(self, name: str, **labels: str) -> float:
        """A metric's value, summed over what is not named."""
        text = (await self.send("GET", "/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class Starter(Http):
    """The starter in this process, on a world of a test."""

    def __init__(self, client: httpx.AsyncClient, app: FastAPI, world: World, urls: DatabaseUrls) -> None:
        super().__init__(client)
        self.app = app
        self.world = world
        self.urls = urls

    @asynccontextmanager
    async def another(
        self, *, temporal: Client | None = None, database_url: str | None = None, **changes: Any
    ) -> AsyncIterator["Starter"]:
        """The same starter with other settings, or with other servers behind it."""
        async with serve(self.world, self.urls, temporal=temporal, database_url=database_url, **changes) as other:
            yield other


@asynccontextmanager
async def serve(
    world: World,
    urls: DatabaseUrls,
    *,
    temporal: Client | None = None,
    database_url: str | None = None,
    **changes: Any,
) -> AsyncIterator[Starter]:
    """The app on a world's servers, on its clock, without a network in between."""
    settings = settings_for(database_url or urls.app, world.task_queue, **changes)
    app = create_app(settings, temporal or world.environment.client)
    services = app.state.services
    database = Database(
        settings.database_url.get_secret_value(), offset=world.clock.offset, count=services.metrics.count
    )
    app.state.services = replace(
        services,
        database=database,
        live=LiveUpdates(database),
        now=lambda: datetime.now(UTC) + world.clock.offset(),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL) as client,
    ):
        try:
            yield Starter(client, app, world, urls)
        finally:
            await app.state.services.live.close()
            await database.close()


def person(name: str, *, created_at: datetime | None = None, customer: bool = True) -> Member:
    """Somebody new, with an account of just now."""
    number = unique(name).rpartition("_")[2].lstrip("0")
    return Member(
        f"acct-{name}-{number}",
        f"{name}.{number}@people.example",
        f"cus_{name}{number}" if customer else "",
        f"sub_{name}{number}",
        created_at or datetime.now(UTC),
    )


def paid(member: Member, start: datetime, end: datetime, *, plan: str = "pro", **invoice: Any) -> list[Event]:
    """What Stripe tells when a member pays for a period."""
    return [
        subscription(member.customer_id, member.subscription_id, start, end, plan=plan),
        invoice_paid(member.customer_id, member.subscription_id, start, end, plan=plan, **invoice),
    ]


def tokens(*secrets: str, window: timedelta = WINDOW) -> Tokens:
    """Tokens as the starter of the tests signs and reads them."""
    return Tokens(secrets or TOKEN_SECRETS, window)


def token_of(code: str, clicked_at: datetime, referral_id: str, *secrets: str, channel: str = "link") -> str:
    """The token of a click at some time, signed with the starter's secrets or others."""
    return tokens(*secrets).sign(ClickedLink(referral_id, code, channel, AttributionWindow(clicked_at, WINDOW)))


def reference(location: str) -> str:
    """The token that a signup page is called with."""
    (token,) = parse_qs(urlsplit(location).query)["ref"]
    return token


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    """Hold an answer to be a problem document (RFC 9457) of that status and code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["status"] == status
    assert document["code"] == code, document
    assert document["type"].endswith(code)
    assert document["title"]
    assert document["detail"]
