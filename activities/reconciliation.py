"""Reconciliation, carried out: Stripe's events and invoices on one side, the ledger and the runs on the other.

Each step may be carried out any number of times: what was handled is skipped, what was applied is only read.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from temporalio import activity
from temporalio.common import MetricMeter

from activities.telling import Messenger
from billing.api import StripeApi, StripeRefusedError
from billing.events import HANDLED_TYPES, MalformedEventError, reduce_event
from billing.facts import EventFacts
from billing.thin import completed, event_about, fetched, read_event
from ledger import database, facts, late_prices, reconciliation
from ledger.database import Database
from ledger.reconciliation import Untold, Waiting
from program.identity import IdentityHash
from program.plans import Plans
from workflows.activities import ReconciliationActivities
from workflows.reconciliation_messages import Compared, PageRead, Progress, ReconciliationStart, Span

KEPT = timedelta(days=30)
"""How long Stripe keeps events."""

OVERLAP = timedelta(hours=1)
"""How much of what was read before is read again: an event may be listed later than its time says."""

SETTLED = timedelta(minutes=1)
"""An event applied that long ago and not told is one that nobody is telling any more."""

AT_ONCE = 50
"""How many referrals, or untold events, a step deals with."""

_MOST_TYPES = 20
"""Stripe lists no more types at once."""

EVENTS_FOUND = ("referrals_reconciled_events_total", "Events that no webhook had handled wholly.")
INVOICES_FOUND = ("referrals_reconciled_invoices_total", "Paid invoices that no event had told of.")
RUNS_OVER = ("referrals_runs_over_total", "Payments that found a run ended from outside; look at the log.")
"""What is counted, each with its description."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class StripeReconciliation(ReconciliationActivities):
    """The steps, with what they need."""

    def __init__(
        self,
        database: Database,
        plans: Plans,
        messenger: Messenger,
        api: StripeApi | None,
        hashes: IdentityHash | None,
    ) -> None:
        """Reconcile `database` with what `api` says; without it, or without `hashes`, nothing can be."""
        self._database = database
        self._plans = plans
        self._messenger = messenger
        self._asks = (api, hashes) if api and hashes else None
        self._said = False

    @activity.defn
    async def begin_reconciliation(self, start: ReconciliationStart) -> Progress | None:
        """Decide from when on events are read: from the cursor, with overlap, no further back than Stripe keeps."""
        if self._asks is None:
            if not self._said:
                log.warning("no reconciliation: set REFERRALS_STRIPE_API_KEY and REFERRALS_IDENTITY_HASH_KEY")
            self._said = True
            return None
        async with self._database.discreet_transaction() as transaction:
            now = await database.now(transaction)
            read_until = await reconciliation.events_read_until(transaction)
        oldest = now - KEPT
        gap = read_until is not None and read_until < oldest
        if gap:
            async with self._database.discreet_transaction() as transaction:
                await reconciliation.walked_to(transaction, None)
            log.error("events were missed that Stripe keeps no more: run `referrals import`", read_until=read_until)
        since = oldest if read_until is None else max(read_until - OVERLAP, oldest)
        advances = True
        if start.since is not None:
            # What lies between the cursor and a later time is left out, so the cursor stays where it is.
            advances = start.since <= (read_until or oldest)
            since = max(start.since, oldest)
        return Progress(since, now, advances=advances, gap=gap)

    @activity.defn
    async def apply_events(self, span: Span) -> PageRead:
        """Apply what was never handled of one page of a span's events; with the last page the cursor moves on."""
        api, _ = self._needed()
        query: dict[str, Any] = {"created": {"gte": _seconds(span.since), "lt": _seconds(span.until) + 1}}
        if len(HANDLED_TYPES) <= _MOST_TYPES:
            query["types"] = sorted(HANDLED_TYPES)
        page = await api.page("/v1/events", query | ({"starting_after": span.after} if span.after else {}))
        async with self._database.discreet_transaction() as transaction:
            known = await reconciliation.handled(transaction, [one["id"] for one in page.objects])
        applied = unreadable = 0
        # The oldest first, as they came; the order decides nothing.
        for document in reversed(page.objects):
            activity.heartbeat()
            if document["id"] not in known:
                event = await self._readable(document)
                unreadable += event is None
                found = await self._apply(event) if event else 0
                # At once: a step that is cut short finds what it has mended no more.
                _count(EVENTS_FOUND, activity.metric_meter(), found)
                applied += found
        after = page.objects[-1]["id"] if page.has_more else None
        if after is None and span.advances:
            async with self._database.discreet_transaction() as transaction:
                await reconciliation.events_were_read(transaction, span.until)
        return PageRead(after, applied, unreadable)

    @activity.defn
    async def tell_the_untold(self) -> int:
        """Tell the runs of events that were applied a while ago and never told; gives how many, none when all are."""
        async with self._database.discreet_transaction() as transaction:
            untold = await reconciliation.untold(transaction, SETTLED, AT_ONCE)
        for one in untold:
            activity.heartbeat()
            event = await self._again(one)
            if event is None or not await self._apply(event):
                log.warning("Stripe has no more what was never told", event_id=one.event_id, event_type=one.type)
            await self._told(one.event_id)
        return len(untold)

    @activity.defn
    async def compare_invoices(self) -> Compared:
        """Compare the next waiting referrals in turn with their friends' paid invoices, and apply what is missing."""
        async with self._database.discreet_transaction() as transaction:
            page = await reconciliation.waiting(transaction, AT_ONCE)
        over, found, unreadable = len(page) < AT_ONCE, 0, 0
        for one in page:
            for customer_id in one.customers:
                activity.heartbeat()
                applied, not_read = await self._compare(one, customer_id)
                found, unreadable = found + applied, unreadable + not_read
            await self._place_prices(one)
        async with self._database.discreet_transaction() as transaction:
            await reconciliation.walked_to(transaction, None if over else page[-1].referral_id)
        return Compared(len(page), found, over, unreadable)

    @activity.defn
    async def report_reconciliation(self, progress: Progress) -> None:
        """Write down what was mended, and how far behind the events are."""
        async with self._database.discreet_transaction() as transaction:
            now = await database.now(transaction)
            read_until = await reconciliation.events_read_until(transaction)
        lag = now - (read_until or now - KEPT)
        level = (
            log.warning if progress.events or progress.invoices or progress.told or progress.unreadable else log.info
        )
        level(
            "reconciled",
            events=progress.events,
            unreadable=progress.unreadable,
            told=progress.told,
            invoices=progress.invoices,
            gap=progress.gap,
            lag_seconds=int(lag.total_seconds()),
        )

    async def _compare(self, one: Waiting, customer_id: str) -> tuple[int, int]:
        """Apply the paid invoices of a customer that are missing; gives how many, and how many cannot be read."""
        api, _ = self._needed()
        query = {"customer": customer_id, "status": "paid", "created": {"gte": _seconds(one.clicked_at)}}
        try:
            invoices = [invoice async for invoice in api.list_all("/v1/invoices", query)]
        except StripeRefusedError as error:
            if not error.missing:
                raise
            # The backend named one that Stripe has not: nothing was paid by it, and nobody else waits for that.
            log.warning("Stripe knows no such customer", referral_id=one.referral_id, account_id=one.referee_id)
            return 0, 0
        async with self._database.discreet_transaction() as transaction:
            known = await reconciliation.invoices_known(transaction, [invoice["id"] for invoice in invoices])
        missing = [invoice for invoice in invoices if invoice["id"] not in known]
        applied: list[int | None] = []
        for invoice in missing:
            applied.append(await self._apply_invoice(invoice))
            _count(INVOICES_FOUND, activity.metric_meter(), applied[-1] or 0)
        return sum(one or 0 for one in applied), applied.count(None)

    async def _place_prices(self, one: Waiting) -> None:
        """Ask for the prices that a friend paid for and nobody knows, and let the run look again (rule 14)."""
        api, hashes = self._needed()
        async with self._database.discreet_transaction() as transaction:
            unplaced = await reconciliation.unplaced_prices(transaction, one.referee_id, self._plans)
        for price_id in sorted(unplaced):
            activity.heartbeat()
            price = await fetched("price.updated", price_id, api)
            if price is None:
                continue
            seen = int(datetime.now(UTC).timestamp())
            event = reduce_event(event_about(f"{price_id}#{seen}", "price.updated", seen, price))
            async with self._database.discreet_transaction() as transaction:
                await facts.apply_event(transaction, event, self._plans, hashes)
                left = await reconciliation.unplaced_prices(transaction, one.referee_id, self._plans)
            if price_id not in left:
                async with self._database.discreet_transaction() as transaction:
                    news = await facts.news_of_account(transaction, one.referee_id, self._plans)
                await self._messenger.tell(news, event.event_id)
                log.info("price found", price_id=price_id, referral_id=one.referral_id)
            await self._told(event.event_id)

    async def _apply_invoice(self, invoice: dict[str, Any]) -> int | None:
        """Apply a paid invoice that no event told of, and by which payments it was paid; none where it cannot be read.

        The payments come first: a refund that is known already has to find its invoice before the credit (rule 14), and
        whoever is interrupted between the two finds the invoice missing still.
        """
        api, _ = self._needed()
        at = invoice["created"]
        try:
            paid = reduce_event(event_about(invoice["id"], "invoice.paid", at, await completed(invoice, api)))
            query = {"invoice": invoice["id"], "status": "paid"}
            if not paid.facts:
                return 0
            payments = [
                reduce_event(event_about(payment["id"], "invoice_payment.paid", at, payment))
                async for payment in api.list_all("/v1/invoice_payments", query)
            ]
        except MalformedEventError as error:
            log.error("invoice cannot be read", invoice_id=invoice["id"], problem=str(error))  # noqa: TRY400
            return None
        for payment in payments:
            await self._apply(payment)
        return await self._apply(paid)

    async def _readable(self, document: dict[str, Any]) -> EventFacts | None:
        """What an event says; none, and a line in the log, where it cannot be read and never will be."""
        api, _ = self._needed()
        try:
            return await read_event(document, api)
        except (MalformedEventError, StripeRefusedError) as error:
            if isinstance(error, StripeRefusedError) and not error.missing:
                raise
            log.error("event cannot be read", event_id=document["id"], problem=str(error))  # noqa: TRY400
            return None

    async def _again(self, one: Untold) -> EventFacts | None:
        """An event that was applied before, read again: as Stripe lists it, or made of the object that it was about."""
        api, _ = self._needed()
        if one.event_id.startswith("evt_"):
            try:
                return await self._readable(await api.get(f"/v1/events/{one.event_id}"))
            except StripeRefusedError as error:
                if error.missing:
                    return None
                raise
        try:
            obj = await fetched(one.type, one.event_id.partition("#")[0], api)
            return reduce_event(event_about(one.event_id, one.type, obj["created"], obj)) if obj else None
        except MalformedEventError:
            return None

    async def _apply(self, event: EventFacts) -> int:
        """Apply an event and tell all concerned, as the webhook does; whether it said anything."""
        _, hashes = self._needed()
        if not event.facts:
            return 0
        async with self._database.discreet_transaction() as transaction:
            news = await facts.apply_event(transaction, event, self._plans, hashes)
        await self._messenger.tell(news, event.event_id)
        async for late in late_prices.news(self._database.discreet_transaction, news, self._plans):
            await self._messenger.tell(late, event.event_id)
        await self._told(event.event_id)
        log.info("event found", event_id=event.event_id, event_type=event.type)
        return 1

    async def _told(self, event_id: str) -> None:
        async with self._database.discreet_transaction() as transaction:
            await facts.mark_signalled(transaction, event_id)

    def _needed(self) -> tuple[StripeApi, IdentityHash]:
        if self._asks is None:
            raise StripeRefusedError("there is no key for Stripe's API any more", 401)
        return self._asks


def count_run_over() -> None:
    """Count a payment that found a run ended from outside although the ledger still waits for it."""
    _count(RUNS_OVER, activity.metric_meter(), 1)


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def declare_metrics(meter: MetricMeter) -> None:
    """Let what is counted here begin with zero, where it is seen before anything was found."""
    for each in (EVENTS_FOUND, INVOICES_FOUND, RUNS_OVER):
        _count(each, meter, 0)


def _count(counter: tuple[str, str], meter: MetricMeter, number: int) -> None:
    meter.create_counter(*counter).add(number)
