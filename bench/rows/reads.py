"""How quick the ledger is with a million referrals in it, one referrer's a tenth of them, next to a thousand."""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from activities.referral import LedgerActivities
from bench.figures import Bound, Measured, Row, measured, percentile
from bench.population import STAR, Ledger, ledger
from bench.program import Program
from bench.servers import ready
from bench.sides import SMALL, Sides
from devstack.ports import free_port
from ledger.database import Database
from program.plans import load_plans
from program.signals import SignalPolicy
from runtime.settings import PROJECT

_SIDES = ("p99 in the large ledger", "p99 in the small one", "ms", Bound.AT_MOST, 1.5)
SUMMARY = Row("summary_1m_vs_1k", *_SIDES)
USAGE = Row("usage_1m_vs_1k", *_SIDES)
DUE = Row("due_expiries_1m_vs_1k", *_SIDES)

Call = Callable[[], Awaitable[object]]

_usages = itertools.count(1)


async def measure(sides: Sides) -> list[Measured]:
    """Fill two ledgers, and ask both the same, call by call in turn."""
    sizes = sides.sizes
    # Some are expired before anything is measured.
    due = sizes.expiries * (sizes.rounds + 1)
    sides.say(f"writing a ledger of {SMALL:,} referrals, and one of {sizes.population:,}")
    with (
        ledger(sides.servers, "small", SMALL, SMALL // 10, due) as small,
        ledger(sides.servers, "large", sizes.population, sizes.star, due) as large,
    ):
        async with _starter(sides, small) as of_small, _starter(sides, large) as of_large:
            async with _steps(small) as small_steps, _steps(large) as large_steps:
                expiries = await _compare(sizes.rounds, sizes.expiries, _expiring(large_steps), _expiring(small_steps))
            summaries = await _compare(sizes.rounds, sizes.reads, _summary(of_large), _summary(of_small))
            usages = await _compare(sizes.rounds, sizes.reads, _usage(of_large), _usage(of_small))
    return [measured(SUMMARY, summaries), measured(USAGE, usages), measured(DUE, expiries)]


async def at_size(sides: Sides, referrals: int) -> dict[str, float]:
    """The median of each call in a ledger of so many referrals, a tenth of them one referrer's; in milliseconds."""
    sizes = sides.sizes
    found: dict[str, float] = {}
    with ledger(sides.servers, f"of_{referrals}", referrals, referrals // 10, 2 * sizes.expiries) as of:
        async with _starter(sides, of) as program, _steps(of) as steps:
            calls = {"summary": _summary(program), "usage": _usage(program), "due expiry": _expiring(steps)}
            for name, call in calls.items():
                seconds: list[float] = []
                for _ in range(sizes.expiries):
                    began = time.perf_counter()
                    await call()
                    seconds.append(time.perf_counter() - began)
                found[name] = percentile(seconds, 0.5) * 1000
    return found


async def _compare(rounds: int, number: int, large: Call, small: Call) -> list[tuple[float, float]]:
    for _ in range(number // 4):
        await small()
        await large()
    seen = []
    for _ in range(rounds):
        ours: list[float] = []
        other: list[float] = []
        for _ in range(number):
            for call, seconds in ((small, other), (large, ours)):
                began = time.perf_counter()
                await call()
                seconds.append(time.perf_counter() - began)
        seen.append((percentile(ours, 0.99) * 1000, percentile(other, 0.99) * 1000))
    return seen


def _summary(program: Program) -> Call:
    return lambda: program.call("GET", f"/v1/accounts/{STAR}/referral-summary")


def _usage(program: Program) -> Call:
    def use() -> Awaitable[object]:
        body = {"usage_id": f"usage-{next(_usages)}", "minutes": 1}
        return program.call("POST", f"/v1/accounts/{STAR}/usage", body)

    return use


def _expiring(steps: LedgerActivities) -> Call:
    numbers = itertools.count(1)
    return lambda: steps.expire_bonuses(f"due-{next(numbers)}")


@asynccontextmanager
async def _steps(of: Ledger) -> AsyncIterator[LedgerActivities]:
    database = Database(of.app_url)
    yield LedgerActivities(database, load_plans(PROJECT / "plans.toml"), SignalPolicy())
    await database.close()


@asynccontextmanager
async def _starter(sides: Sides, of: Ledger) -> AsyncIterator[Program]:
    servers, port = sides.servers, free_port()
    url = of.app_url.replace("+psycopg", "")
    environment = servers.starter_environment | {"REFERRALS_PORT": str(port), "REFERRALS_DATABASE_URL": url}
    process = servers.start(f"starter of {of.name}", ["-m", "starter"], environment)
    process.wait_until(lambda: ready(port))
    credentials = servers.configuration.credentials
    program = Program([port], credentials.api_key, credentials.stripe_webhook_secret, sides.program.books)
    yield program
    await program.close()
    process.stop()
