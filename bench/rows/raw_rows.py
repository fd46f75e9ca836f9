"""What the ledger's own transactions cost next to the rows that they write: no bound, but it says where time goes."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg

from activities.referral import LedgerActivities
from bench import raw
from bench.figures import Measured, Row, measured
from bench.program import Program, Referral
from bench.sides import Sides
from ledger.database import Database
from program.plans import load_plans
from program.signals import SignalPolicy
from runtime.settings import PROJECT

CREDIT = Row("credit_vs_raw", "the step that credits", "its rows by psycopg alone", "ms")


async def measure(sides: Sides) -> list[Measured]:
    """Credit by the program's own step, and by the rows alone, one after the other in turn.

    Nobody's run is told: what is credited here is never heard of by Temporal.
    """
    program, number = sides.program, sides.sizes.one_by_one
    plans = load_plans(PROJECT / "plans.toml")
    database = Database(sides.servers.database_url())
    steps = LedgerActivities(database, plans, SignalPolicy())
    rounds: list[tuple[float, float]] = []
    async with await psycopg.AsyncConnection.connect(sides.servers.postgres.app_url, autocommit=True) as connection:
        for _ in range(sides.sizes.rounds):
            waiting = await program.waiting_for_payment(2 * number)
            parties = {
                row[0]: row for row in await _parties(connection, [referral.referral_id for referral in waiting])
            }
            for referral in waiting[:number]:
                await _paid_without_a_word(program, referral)
            ours = await _timed(waiting[:number], lambda each: steps.credit_both(each.referral_id))
            other = await _timed(waiting[number:], lambda each: raw.credit(connection, *parties[each.referral_id]))  # noqa: B023
            rounds.append((ours, other))
    await database.close()
    return [measured(CREDIT, rounds)]


async def _parties(connection: psycopg.AsyncConnection, ids: list[str]) -> list[tuple[str, str, str]]:
    query = "SELECT referral_id, referrer_id, referee_id FROM referral WHERE referral_id = ANY(%s)"
    return await (await connection.execute(query, [ids])).fetchall()


async def _paid_without_a_word(program: Program, referral: Referral) -> None:
    """Let the ledger know of the payment, and no run."""
    await asyncio.to_thread(
        program.books.execute,
        """INSERT INTO paid_period (invoice_id, customer_id, subscription_id, paid_at, amount_paid, total, lines)
        VALUES (%s, %s, %s, now(), 2900, 2900, jsonb_build_array(jsonb_build_object('price', 'price_pro', 'product',
            'prod_pro', 'start', now(), 'end', now() + interval '30 days', 'proration', false, 'amount', 2900)))""",
        [f"in_{referral.referral_id}", referral.friend.customer_id, referral.friend.subscription.id],
    )


async def _timed(referrals: list[Referral], work: Callable[[Referral], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for referral in referrals:
        await work(referral)
    return (time.perf_counter() - began) / len(referrals) * 1000
