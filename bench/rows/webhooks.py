"""Stripe's events that concern no referral: verified, parsed, stored; next to the same endpoint doing nothing."""

import time

from bench.figures import Bound, Measured, Row, measured
from bench.noop import PATH
from bench.program import AT_ONCE, Program, at_once, person
from bench.servers import ready
from bench.sides import Sides
from devstack.ports import free_port

VS_NOOP = Row(
    "webhook_vs_noop", "events that are stored", "the endpoint doing nothing", "a second", Bound.AT_LEAST, 0.35
)


async def measure(sides: Sides) -> list[Measured]:
    """Deliver as many events to both in turn: payments of customers that nobody has reported."""
    servers, number = sides.servers, sides.sizes.events
    port = free_port()
    environment = servers.starter_environment | {"REFERRALS_PORT": str(port)}
    process = servers.start("starter with noop", ["-m", "bench.noop"], environment)
    process.wait_until(lambda: ready(port))
    credentials = servers.configuration.credentials
    idle = Program([port], credentials.api_key, credentials.stripe_webhook_secret, sides.program.books)
    rates: list[tuple[float, float]] = []
    for _ in range(sides.sizes.rounds):
        events = [sides.program.payment(person("carl")) for _ in range(number)]
        began = time.perf_counter()
        await at_once(AT_ONCE, events, sides.program.deliver)
        stored = time.perf_counter()
        await at_once(AT_ONCE, events, lambda event: idle.deliver(event, PATH))
        ended = time.perf_counter()
        rates.append((number / (stored - began), number / (ended - stored)))
    await idle.close()
    process.stop()
    return [measured(VS_NOOP, rates)]
