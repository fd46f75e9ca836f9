"""Stripe's API as it is read: paging, pace, errors, the pinned version. The `stripe` package and a socket are real."""

import logging
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from billing.api import StripeApi, StripeRefusedError, StripeUnreachableError
from billing.events import NEWEST_VERSION
from runtime.logs import silence_libraries
from tests.stripe_events import price, unique
from tests.stripe_server import API_KEY, StripeServer, stripe_server
from tests.support import Clock

FAST = 1000.0


@pytest.fixture
async def api(server: StripeServer) -> AsyncIterator[StripeApi]:
    api = StripeApi(API_KEY, server.base, requests_a_second=FAST)
    yield api
    await api.close()


async def _prices(server: StripeServer, clock: Clock, count: int) -> list[str]:
    """Prices, one made every second; the newest first."""
    ids = []
    for number in range(count):
        known = price(unique("price"), None, created=await clock.now())["data"]["object"]
        server.add(known, created=await clock.now() + timedelta(seconds=number))
        ids.append(known["id"])
    return ids[::-1]


async def test_a_list_is_read_to_its_end_page_by_page(server: StripeServer, api: StripeApi, clock: Clock) -> None:
    ids = await _prices(server, clock, 250)

    read = [one["id"] async for one in api.list_all("/v1/prices")]

    assert read == ids
    assert server.reads("/v1/prices") == 3


async def test_what_is_read_is_asked_for_in_the_pinned_version(
    server: StripeServer, api: StripeApi, clock: Clock
) -> None:
    (price_id,) = await _prices(server, clock, 1)

    assert (await api.get(f"/v1/prices/{price_id}"))["id"] == price_id

    assert server.asked[0].headers["stripe-version"] == NEWEST_VERSION


async def test_what_does_not_exist_is_told_from_what_may_not_be_read(server: StripeServer, api: StripeApi) -> None:
    with pytest.raises(StripeRefusedError) as missing:
        await api.get("/v1/prices/price_nobody")
    stranger = StripeApi("sk_test_somebody_else", server.base, requests_a_second=FAST)
    with pytest.raises(StripeRefusedError) as refused:
        await stranger.get("/v1/prices/price_nobody")
    await stranger.close()

    assert missing.value.missing
    assert not refused.value.missing


async def test_a_failure_that_passes_is_tried_again(server: StripeServer, api: StripeApi, clock: Clock) -> None:
    (price_id,) = await _prices(server, clock, 1)
    server.failures.append(500)

    assert (await api.get(f"/v1/prices/{price_id}"))["id"] == price_id


@pytest.mark.parametrize("status", [429, 500, 503, 409])
async def test_an_overloaded_stripe_is_one_to_ask_again(server: StripeServer, status: int) -> None:
    impatient = StripeApi(API_KEY, server.base, requests_a_second=FAST, retries=0)
    server.failures.append(status)

    with pytest.raises(StripeUnreachableError, match=str(status)):
        await impatient.get("/v1/prices")
    await impatient.close()


async def test_a_stripe_that_is_away_is_one_to_ask_again(free_address: str) -> None:
    impatient = StripeApi(API_KEY, free_address, requests_a_second=FAST, retries=0)

    with pytest.raises(StripeUnreachableError):
        await impatient.get("/v1/prices")
    await impatient.close()


@pytest.fixture
async def free_address() -> str:
    async with stripe_server() as gone:
        return gone.base


async def test_rule_24_no_error_and_no_log_line_repeats_stripes_words(
    server: StripeServer, api: StripeApi, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures.append(400)
    silence_libraries()

    with caplog.at_level(logging.INFO), pytest.raises(StripeRefusedError) as refused:
        await api.get("/v1/customers/cus_private", {"email": "somebody@example.com"})

    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn")]
    said = f"{refused.value!r} {refused.value} {refused.value.__cause__} {logged}"
    assert "somebody" not in said
    assert "cus_private" not in said


async def test_nothing_is_asked_faster_than_the_pace(server: StripeServer, clock: Clock) -> None:
    await _prices(server, clock, 5)
    paced = StripeApi(API_KEY, server.base, requests_a_second=20)
    begun = time.monotonic()

    read = [one["id"] async for one in paced.list_all("/v1/prices", {"limit": 1})]
    await paced.close()

    assert len(read) == 5
    assert time.monotonic() - begun >= 4 / 20, "five requests, a twentieth of a second apart"
