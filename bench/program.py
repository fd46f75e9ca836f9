"""The side that is measured: the program, called as browsers, the backend and Stripe call it."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg

from bench.wire import Answer, UnexpectedAnswerError, Wire
from devstack.stripe_events import Subscription, signed

AT_ONCE = 16
"""How many calls are under way at once, unless said otherwise."""

REFERRERS = 32
"""Two friends of one referrer wait for each other; of so many, hardly ever."""

MONTH = timedelta(days=30)
TERMS = "2026-01"
PHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.6 Mobile/15E148 Safari/604.1"
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_numbers = itertools.count(1)
_RUN = secrets.token_hex(3)


async def at_once(number: int, items: Iterable[Item], work: Callable[[Item], Awaitable[Result]]) -> list[Result]:
    """Do something with every item, so many at once; gives what came of each, in no order."""
    waiting, results = iter(items), list[Result]()

    async def go_on() -> None:
        for item in waiting:
            results.append(await work(item))

    await asyncio.gather(*(go_on() for _ in range(number)))
    return results


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with an account and a customer at Stripe, and what Stripe says once a month was paid."""

    account_id: str
    customer_id: str
    created_at: datetime
    subscription: Subscription

    @property
    def email(self) -> str:
        """An address that nobody else has."""
        return f"{self.account_id}@people.example"

    def report(self, *, customer: bool = True) -> dict[str, Any]:
        """What the backend says of the account."""
        known = {"email": self.email, "created_at": self.created_at.isoformat()}
        return known | ({"stripe_customer_id": self.customer_id} if customer else {})


def person(kind: str, *, age: timedelta = timedelta(0)) -> Person:
    """Somebody new; the account is of just now, or older."""
    number = f"{_RUN}{next(_numbers):06}"
    customer = f"cus_{kind}{number}"
    made_at = datetime.now(UTC).replace(microsecond=0) - age
    return Person(f"acct-{kind}-{number}", customer, made_at, Subscription(customer, "pro"))


@dataclass(slots=True)
class Referral:
    """A friend on the way: what is known of the click, once there was one."""

    code: str
    friend: Person
    token: str = ""
    referral_id: str = ""
    payment: tuple[bytes, dict[str, str]] = field(default=(b"", {}))


class Program:
    """The starter of one side, and the ledger behind it."""

    def __init__(self, ports: Sequence[int], api_key: str, stripe_secret: str, books: psycopg.Connection) -> None:
        """Call the starters on these ports in turn; look into the ledger through `books`."""
        self._wires = [Wire(port) for port in ports]
        self._turns = itertools.cycle(self._wires)
        self._key = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._secret = stripe_secret
        self.books = books
        self.codes: list[str] = []
        self.last: list[str] = []

    async def close(self) -> None:
        """Close all connections."""
        for wire in self._wires:
            await wire.close()

    async def call(self, method: str, path: str, body: Any = None, *, expected: int = 200) -> Answer:
        """One call of the backend's.

        Raises:
            UnexpectedAnswerError: it was answered otherwise.
        """
        content = json.dumps(body).encode() if body is not None else b""
        return _expect(expected, await next(self._turns).request(method, path, self._key, content))

    async def deliver(self, event: tuple[bytes, dict[str, str]], path: str = "/stripe/webhooks") -> None:
        """Deliver an event of Stripe's.

        Raises:
            UnexpectedAnswerError: it was not taken.
        """
        body, headers = event
        _expect(200, await next(self._turns).request("POST", path, headers, body))

    def signed(self, event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        """An event as Stripe would deliver it now."""
        return signed(event, self._secret)

    def payment(self, who: Person) -> tuple[bytes, dict[str, str]]:
        """What Stripe says when somebody has just paid for the first month."""
        now = int(time.time())
        return self.signed(who.subscription.paid(now, now + int(MONTH.total_seconds()), now, renewal=False))

    async def prepare(self, referrers: int = REFERRERS) -> None:
        """Let there be subscribers who share their links."""
        self.codes = await at_once(AT_ONCE, range(referrers), self._referrer)

    async def _referrer(self, _: int) -> str:
        who = person("rita", age=timedelta(days=400))
        await self.call("PUT", f"/v1/accounts/{who.account_id}", who.report())
        now = int(time.time())
        # The event that names the plan of the price as well.
        await self.deliver(self.signed(who.subscription.created(now, now + int(MONTH.total_seconds()))))
        await self.deliver(self.payment(who))
        link = await self.call("POST", f"/v1/accounts/{who.account_id}/referral-link", {"terms_version": TERMS})
        return str(link.json()["code"])

    def referrals(self, number: int) -> list[Referral]:
        """Friends to come, of all referrers in turn."""
        codes = itertools.islice(itertools.cycle(self.codes), number)
        return [Referral(code, person("fred")) for code in codes]

    async def click(self, referral: Referral) -> None:
        """The friend follows the link."""
        path = f"/r/{referral.code}?c=email"
        answer = _expect(302, await next(self._turns).request("GET", path, {"User-Agent": PHONE}))
        (referral.token,) = parse_qs(urlsplit(answer.headers["location"]).query)["ref"]

    async def sign_up(self, referral: Referral) -> None:
        """The backend reports the signup."""
        body = referral.friend.report(customer=False) | {
            "account_id": referral.friend.account_id,
            "referral_token": referral.token,
        }
        answer = await self.call("POST", "/v1/signups", body, expected=202)
        referral.referral_id = str(answer.json()["referral_id"])

    async def become_customer(self, referral: Referral) -> None:
        """The backend reports which customer of Stripe's the friend is."""
        await self.call("PUT", f"/v1/accounts/{referral.friend.account_id}", referral.friend.report())
        referral.payment = self.payment(referral.friend)

    async def pay(self, referral: Referral) -> None:
        """The friend pays, and Stripe tells of it."""
        await self.deliver(referral.payment)

    async def reach(self, referrals: Sequence[Referral], stage: str) -> None:
        """Wait until all of them have come to a stage, or one beyond it."""
        ids = [referral.referral_id for referral in referrals]
        beyond = {"signed_up": ["signed_up", "credited"], "credited": ["credited"]}[stage]
        query = "SELECT count(*) FROM referral WHERE referral_id = ANY(%s) AND stage = ANY(%s)"
        await until(lambda: self._count(query, ids, beyond) >= len(ids), f"{len(ids)} are {stage}")

    def _count(self, query: str, *values: object) -> int:
        row = self.books.execute(query.encode(), values).fetchone()
        return int(row[0]) if row else 0

    async def both_can_read(self, referral: Referral) -> None:
        """Wait until both sides' minutes are in the ledger for everybody to see."""
        query = "SELECT count(*) FROM grant_lot WHERE referral_id = %s AND remaining > 0"
        await until(lambda: self._count(query, referral.referral_id) == 2, "both have their minutes", often=0.001)

    async def lifecycles(self, number: int) -> float:
        """Take so many referrals from the click to the credit, step by step; gives how many seconds that took."""
        referrals = self.referrals(number)
        began = time.perf_counter()
        await at_once(AT_ONCE, referrals, self.click)
        await at_once(AT_ONCE, referrals, self.sign_up)
        await self.reach(referrals, "signed_up")
        await at_once(AT_ONCE, referrals, self.become_customer)
        await at_once(AT_ONCE, referrals, self.pay)
        await self.reach(referrals, "credited")
        self.last = [referral.referral_id for referral in referrals]
        return time.perf_counter() - began

    async def waiting_for_payment(self, number: int) -> list[Referral]:
        """Referrals whose friends are about to pay."""
        referrals = self.referrals(number)
        await at_once(AT_ONCE, referrals, self.click)
        await at_once(AT_ONCE, referrals, self.sign_up)
        await self.reach(referrals, "signed_up")
        await at_once(AT_ONCE, referrals, self.become_customer)
        return referrals


async def until(condition: Callable[[], bool], what: str, *, often: float = 0.01, seconds: float = 180) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it took too long.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} seconds until {what}")
        await asyncio.sleep(often)


def _expect(status: int, answer: Answer) -> Answer:
    if answer.status != status:
        words = answer.body[:300].decode(errors="replace")
        raise UnexpectedAnswerError(f"{answer.status} instead of {status}: {words}")
    return answer
