"""Whether somebody paid with another one's card: compared by the fingerprint that Stripe gives a card's number.

A fingerprint is the same for one number wherever it is used within one Stripe account, also after its expiry date was
renewed. A wallet may pay with a number of its own, whose fingerprint is another one; Link and bank debits show none.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from billing.api import Object, StripeApi, StripeRefusedError

CHECKS_AT_ONCE = 2
"""All of them share one pace: of many at once none would be through before its time is over."""

_WITH_THEIR_CHARGES = {"expand": ["data.payment.payment_intent.latest_charge", "data.payment.charge"]}


class Cards:
    """Compares cards through Stripe's API. What is read of them is kept nowhere."""

    def __init__(self, api: StripeApi) -> None:
        """Read through `api`."""
        self._api = api
        self._turns = asyncio.Semaphore(CHECKS_AT_ONCE)

    async def same_card(self, invoice: str, customers: Iterable[str]) -> bool:
        """Whether an invoice was paid with a card of one of these customers: one that is saved, or was ever charged.

        An invoice that was paid with no card (a bank debit, Link, outside of Stripe) was paid with nobody's.

        Raises:
            StripeUnreachableError: no answer, or one that says to come again.
            StripeRefusedError: Stripe says no: the key may not read this, or belongs to another account.
        """
        async with self._turns:
            paid_with = {card async for card in self._cards_that_paid(invoice)}
            if not paid_with:
                return False
            for customer in customers:
                async for card in self._cards_of(customer):
                    if card in paid_with:
                        return True
            return False

    async def _cards_that_paid(self, invoice: str) -> AsyncIterator[str]:
        paid = {"invoice": invoice, "status": "paid", **_WITH_THEIR_CHARGES}
        async for one in self._api.list_all("/v1/invoice_payments", paid):
            charge = await self._charge_of(one["payment"])
            if charge is not None and (card := _card_charged(charge)):
                yield card

    async def _charge_of(self, payment: Object) -> Object | None:
        """The charge of an invoice's payment; none of one that was made outside of Stripe."""
        charge = payment.get("charge")
        if (intent := payment.get("payment_intent")) is not None:
            charge = (await self._whole("payment_intents", intent)).get("latest_charge")
        return None if charge is None else await self._whole("charges", charge)

    async def _whole(self, collection: str, one: Any) -> Object:
        """An object that may have come by its id alone."""
        return one if isinstance(one, dict) else await self._api.get(f"/v1/{collection}/{one}")

    async def _cards_of(self, customer: str) -> AsyncIterator[str]:
        # Once detached, a card is found by what was charged to it alone.
        try:
            async for method in self._api.list_all(f"/v1/customers/{customer}/payment_methods", {"type": "card"}):
                if card := (method.get("card") or {}).get("fingerprint"):
                    yield card
        except StripeRefusedError:
            known = await self._customer(customer)
            if known is None:
                return
            # One that was deleted has no saved cards any more, and Stripe does not list what is not there.
            if not known.get("deleted"):
                raise
        async for charge in self._api.list_all("/v1/charges", {"customer": customer}):
            if card := _card_charged(charge):
                yield card

    async def _customer(self, customer: str) -> Object | None:
        """A customer; none where there never was one, so that it has no cards either.

        Not for want of a key of the right account: it has just read the card that paid the invoice.
        """
        try:
            return await self._api.get(f"/v1/customers/{customer}")
        except StripeRefusedError as error:
            if error.missing:
                return None
            raise


def _card_charged(charge: Object) -> str | None:
    """The fingerprint of the card that was charged; none where it was no card, or a wallet that shows none."""
    details = charge.get("payment_method_details") or {}
    if details.get("type") not in _CARDS:
        return None
    card: str | None = (details.get(details["type"]) or {}).get("fingerprint")
    return card


_CARDS = frozenset({"card", "card_present", "interac_present"})
"""The kinds of payment methods that are cards, in a browser or at a terminal."""
