"""Brings in what Stripe knows already: prices, subscriptions, paid invoices and how those were paid.

It stores the same facts as the webhook does, by the same reduction, each object in a transaction of its own, so it may
be interrupted anywhere and repeated at any time. The ledger knows how far it is; where one stopped, the next goes on.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from billing.api import Object, StripeApi
from billing.events import MalformedEventError, reduce_event
from billing.facts import EventFacts
from billing.thin import completed, event_about
from ledger import facts, late_prices, reconciliation
from ledger.database import Database
from ledger.facts import News
from program.identity import IdentityHash
from program.plans import Plans

_POSITION = "import"


@dataclass(frozen=True, slots=True)
class _Collection:
    """What is read, and as which event each object is taken.

    Args:
        name: for people, and for the position.
        path: where Stripe lists it.
        query: which of it.
        type: the event that would have told of such an object.
        changes: whether an object may say something else later on, and is to be read again then.
    """

    name: str
    path: str
    query: Mapping[str, Any]
    type: str
    changes: bool


# The prices first: with them everything else is placed at once.
_COLLECTIONS = (
    _Collection("prices", "/v1/prices", {}, "price.updated", changes=True),
    _Collection("subscriptions", "/v1/subscriptions", {"status": "all"}, "customer.subscription.updated", changes=True),
    _Collection("invoices", "/v1/invoices", {"status": "paid"}, "invoice.paid", changes=False),
    _Collection("invoice_payments", "/v1/invoice_payments", {"status": "paid"}, "invoice_payment.paid", changes=False),
)


@dataclass
class Imported:
    """What became of an import.

    Args:
        read: how many objects were read.
        new: how many of them said something that the ledger had not been told of.
        unreadable: how many are not as Stripe documents them.
        to_tell: how many concern referrals whose runs have yet to hear of it: reconciliation tells them.
    """

    read: int = 0
    new: int = 0
    unreadable: int = 0
    to_tell: int = 0


class StripeImport:
    """One import, from where the last one stopped to the end."""

    def __init__(
        self,
        database: Database,
        api: StripeApi,
        plans: Plans,
        hashes: IdentityHash,
        say: Callable[[str], None],
        *,
        dry_run: bool = False,
    ) -> None:
        """Import from `api` into `database`; `say` hears how far it is. A dry run only reads, on both sides.

        `hashes` know again whose account was erased: nothing of it comes back in the clear (rule 23).
        """
        self._hashes = hashes
        self._database = database
        self._api = api
        self._plans = plans
        self._say = say
        self._dry_run = dry_run
        self._done = Imported()

    async def run(self, *, anew: bool = False) -> Imported:
        """Read everything that is left; with `anew`, everything.

        Raises:
            StripeUnreachableError: Stripe could not be asked; the next import goes on from there.
            StripeRefusedError: Stripe does not say.
            TransactionFailedError: the database refused, or could not be reached.
        """
        name, after = await self._begins_at(anew=anew or self._dry_run)
        names = [collection.name for collection in _COLLECTIONS]
        left = _COLLECTIONS[names.index(name) :]
        for collection, following in zip(left, [*left[1:], None], strict=True):
            await self._read(collection, after)
            after = None
            await self._goes_on_at(f"{following.name}/" if following else None)
        return self._done

    async def _begins_at(self, *, anew: bool) -> tuple[str, str | None]:
        """The collection, and the object after which it goes on."""
        stopped_at = None
        if not anew:
            async with self._database.discreet_transaction() as transaction:
                stopped_at = await reconciliation.position(transaction, _POSITION)
        if stopped_at is None:
            return _COLLECTIONS[0].name, None
        name, _, after = stopped_at.partition("/")
        self._say(f"going on where the last import stopped, in the {_words(name)}")
        return name, after or None

    async def _goes_on_at(self, position: str | None) -> None:
        if not self._dry_run:
            async with self._database.discreet_transaction() as transaction:
                await reconciliation.go_on_at(transaction, _POSITION, position)

    async def _read(self, collection: _Collection, after: str | None) -> None:
        read, new, more = 0, 0, True
        while more:
            asked_at = int(datetime.now(UTC).timestamp())
            page = await self._api.page(
                collection.path, {**collection.query, **({"starting_after": after} if after else {})}
            )
            new += await self._store(collection, page.objects, asked_at)
            read, more = read + len(page.objects), page.has_more
            if more:
                after = page.objects[-1]["id"]
                await self._goes_on_at(f"{collection.name}/{after}")
            self._say(f"{_words(collection.name)}: {read} read, {new} new")
        self._done.read += read
        self._done.new += new

    async def _store(self, collection: _Collection, objects: tuple[Object, ...], asked_at: int) -> int:
        """Store what a page says that is new; gives how much that was."""
        told = [event for one in objects if (event := await self._event(collection, one, asked_at)) and event.facts]
        async with self._database.discreet_transaction() as transaction:
            known = await reconciliation.handled(transaction, [event.event_id for event in told])
        new = [event for event in told if event.event_id not in known]
        for event in new if not self._dry_run else ():
            await self._apply(event)
        return len(new)

    async def _event(self, collection: _Collection, obj: Object, asked_at: int) -> EventFacts | None:
        """An object as the event that would have told of it; none where it cannot be read."""
        try:
            whole = await completed(obj, self._api)
            told = reduce_event(event_about(str(obj["id"]), collection.type, int(obj.get("created") or 0), whole))
            if not collection.changes:
                return told
            # Under an id that changes with what it says, and as of now: a price is sold by the key that it has today.
            digest = hashlib.sha256(repr(told.facts).encode()).hexdigest()[:16]
            return reduce_event(event_about(f"{told.event_id}#{digest}", collection.type, asked_at, whole))
        except MalformedEventError as error:
            self._say(f"{obj['id']} cannot be read: {error}")
            self._done.unreadable += 1
            return None

    async def _apply(self, event: EventFacts) -> None:
        async with self._database.discreet_transaction() as transaction:
            news = await facts.apply_event(transaction, event, self._plans, self._hashes)
            # Reconciliation looks for what was applied and never told.
            concerned = replace(news, named=()) != News()
            if news == News():
                await facts.mark_signalled(transaction, event.event_id)
        if news.named:
            async for _ in late_prices.news(self._database.discreet_transaction, news, self._plans):
                concerned = True
            if not concerned:
                async with self._database.discreet_transaction() as transaction:
                    await facts.mark_signalled(transaction, event.event_id)
        self._done.to_tell += concerned


def _words(name: str) -> str:
    return name.replace("_", " ")
