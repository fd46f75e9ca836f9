"""Against a stateful stand-in for Stripe that others wrote (localstripe), as far as its old shapes reach."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from billing.api import StripeApi, StripeRefusedError
from billing.events import reduce_event
from billing.facts import RefundSeen
from billing.thin import event_about
from ledger import facts
from ledger.database import Database
from program.plans import Plans
from tests.conftest import free_port
from tests.support import HASHES, Books, Clock, until

KEY = "sk_test_any_key_will_do"


@dataclass
class LocalStripe:
    """The stand-in: written to as a merchant would, and read as the program does."""

    merchant: httpx.AsyncClient
    api: StripeApi

    async def make(self, path: str, **values: Any) -> dict[str, Any]:
        answer = await self.merchant.post(path, json=values)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made


@pytest.fixture
async def localstripe(tmp_path: Path) -> AsyncIterator[LocalStripe]:
    base = f"http://127.0.0.1:{(port := free_port())}"
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "localstripe",
        *("--port", str(port), "--from-scratch"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    api = StripeApi(KEY, base, requests_a_second=1000, retries=0)
    async with httpx.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as merchant:

        async def up() -> bool:
            try:
                return (await merchant.get("/v1/customers")).status_code == 200
            except httpx.TransportError:
                return False

        try:
            await until(up, bool)
            yield LocalStripe(merchant, api)
        finally:
            process.terminate()
            await process.wait()
            await api.close()


async def subscribed(stripe: LocalStripe) -> str:
    """A customer who bought a plan for 29 dollars a month with a card."""
    customer: str = (await stripe.make("/v1/customers", email="fred@example.com"))["id"]
    card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2030, "cvc": "123"}
    method = (await stripe.make("/v1/payment_methods", type="card", card=card))["id"]
    await stripe.make(f"/v1/payment_methods/{method}/attach", customer=customer)
    await stripe.make(f"/v1/customers/{customer}", invoice_settings={"default_payment_method": method})
    month = {"amount": 2900, "currency": "usd", "interval": "month", "product": {"name": "Pro"}}
    await stripe.make("/v1/plans", id="pro", **month)
    await stripe.make("/v1/subscriptions", customer=customer, items=[{"plan": "pro"}])
    return customer


async def test_lists_are_read_to_their_end_and_what_is_missing_is_said_to_be(localstripe: LocalStripe) -> None:
    made = [(await localstripe.make("/v1/customers", email=f"{number}@example.com"))["id"] for number in range(103)]

    assert {one["id"] async for one in localstripe.api.list_all("/v1/customers")} == set(made)
    with pytest.raises(StripeRefusedError) as missing:
        await localstripe.api.get("/v1/invoices/in_missing")
    assert missing.value.missing


async def test_rule_14_a_paid_invoice_and_its_refund_are_read_as_they_are(
    localstripe: LocalStripe, database: Database, plans: Plans, clock: Clock
) -> None:
    books = Books(database, plans, clock)
    customer = await subscribed(localstripe)

    [bill] = [one async for one in localstripe.api.list_all("/v1/invoices", {"customer": customer})]
    paid = reduce_event(event_about(bill["id"], "invoice.paid", bill["created"], bill))
    for _ in range(2):
        async with database.transaction() as transaction:
            await facts.apply_event(transaction, paid, plans, HASHES)
    found = await books.rows("SELECT customer_id, subscription_id, amount_paid FROM paid_period")
    assert found == [(customer, bill["subscription"], 2900)]

    [charge] = [one async for one in localstripe.api.list_all("/v1/charges", {"customer": customer})]
    await localstripe.make("/v1/refunds", charge=charge["id"], amount=100)
    charge = await localstripe.api.get(f"/v1/charges/{charge['id']}")
    refunded = reduce_event(event_about("evt_1", "charge.refunded", charge["created"], charge))
    assert refunded.facts == (RefundSeen(charge["id"], customer, charge["payment_intent"], 100),)
