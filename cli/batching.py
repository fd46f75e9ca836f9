"""Does one thing to many referrals: chosen once, each acted on once, at a pace; what was cut short goes on."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console
from sqlalchemy.exc import OperationalError
from temporalio.client import Client
from temporalio.service import RPCError

from cli.answers import first_line, row, table
from cli.decide import decide
from cli.retry import NothingToRetryError, nudge
from cli.runs import waits_for_its_run
from cli.waiting import NoAnswerError
from ledger import batches, decisions, inspection
from ledger.batches import Alike, BatchAction, Begun, ItemState, Order, Tally
from ledger.database import Database, TransactionFailedError
from ledger.inspection import Standing, Wanted
from program.doubts import Action
from program.referral import Stage
from workflows.client import AT_ONCE, DecisionRefusedError, ReferralRuns, UnreachableError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
"""What a batch can be called."""

PAGE = 500
"""How many referrals are read of the ledger at once."""

SAMPLE = 10
"""How many referrals a dry run shows."""

GIVE_UP_AFTER = 20
"""After so many failures, one right after the other, something is wrong with all: the batch stops."""


class TooManyError(Exception):
    """More referrals are like that than a batch was told to act on at most."""


class AnotherBatchError(Exception):
    """Something else was begun under that id: the message says what."""


class UnknownBatchError(Exception):
    """No batch was begun under that id."""


@dataclass(frozen=True)
class Choice:
    """Which referrals a batch is about: those to which all that is given applies.

    Args:
        query: those whose run, or review, is found by it, in the language of Temporal's lists.
        wanted: how they stand in the ledger.
        at_most: of more than that, none is acted on.
    """

    query: str | None
    wanted: Wanted
    at_most: int

    @property
    def given(self) -> dict[str, object]:
        """What was said of which, without what was not."""
        said = {
            "query": self.query,
            "stages": [str(stage) for stage in self.wanted.stages],
            "referrer": self.wanted.referrer_id,
            "reason": self.wanted.reason,
            "needs_attention": self.wanted.needs_attention,
        }
        return {name: value for name, value in said.items() if value}


@dataclass
class Preview:
    """What a batch would do.

    Args:
        chosen: to how many referrals it would come.
        by_stage: how many of them are at each stage.
        refused: those of which it cannot be as they stand, in which words.
        sample: some of them, as they stand.
    """

    chosen: int = 0
    by_stage: dict[str, int] = field(default_factory=dict)
    refused: list[Alike] = field(default_factory=list)
    sample: list[Standing] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """How a batch ended, for now.

    Args:
        order: what it does.
        tally: how far it is.
        stopped: why it came to no end; none where it did.
    """

    order: Order
    tally: Tally
    stopped: str | None = None

    @property
    def status(self) -> int:
        """How the process ends: 0 where everything is done, 1 where some was refused, 2 where some is left."""
        if self.tally.left or self.tally.failed:
            return 2
        return 1 if self.tally.refused else 0


async def chosen(client: Client, database: Database, task_queue: str, choice: Choice) -> AsyncIterator[list[Standing]]:
    """The referrals with a signup that a choice is about, page by page; one that comes twice is acted on once."""
    if choice.query is None:
        after = None
        while True:
            async with database.snapshot() as transaction:
                page = await inspection.find(transaction, choice.wanted, PAGE, after)
            if page.referrals:
                yield page.referrals
            if page.next is None:
                return
            after = page.next
    ids: set[str] = set()
    async for referral_id in ReferralRuns(client, task_queue).found_by(choice.query):
        ids.add(referral_id)
        if len(ids) >= AT_ONCE:
            yield await _among(database, ids, choice.wanted)
            ids = set()
    if ids:
        yield await _among(database, ids, choice.wanted)


async def _among(database: Database, ids: set[str], wanted: Wanted) -> list[Standing]:
    async with database.snapshot() as transaction:
        return await inspection.among(transaction, ids, wanted)


async def preview(client: Client, database: Database, task_queue: str, action: BatchAction, choice: Choice) -> Preview:
    """What a batch would do; nothing is changed, and nothing is begun.

    Raises:
        TooManyError: it would come to too many.
    """
    seen: set[str] = set()
    stages: Counter[str] = Counter()
    refusals: dict[str, list[str]] = {}
    found = Preview()
    async for page in chosen(client, database, task_queue, choice):
        new = [each for each in page if each.referral_id not in seen]
        seen.update(each.referral_id for each in new)
        _not_too_many(seen, choice)
        stages.update(str(each.stage) for each in new)
        found.sample += new[: max(SAMPLE - len(found.sample), 0)]
        for referral_id, words in (await _foreseen(database, action, new)).items():
            refusals.setdefault(words, []).append(referral_id)
    found.chosen, found.by_stage = len(seen), dict(sorted(stages.items()))
    found.refused = [
        Alike(words, len(ids), sorted(ids)[: batches.EXAMPLES])
        for words, ids in sorted(refusals.items(), key=lambda refusal: (-len(refusal[1]), refusal[0]))
    ]
    return found


async def _foreseen(database: Database, action: BatchAction, page: list[Standing]) -> dict[str, str]:
    if action is BatchAction.RETRY:
        return {
            each.referral_id: f"it is over: the referral is {each.stage}"
            for each in page
            if each.stage is not Stage.CLICKED and not waits_for_its_run(each.stage, voided=each.voided_at is not None)
        }
    async with database.snapshot() as transaction:
        return await decisions.foreseen(transaction, [each.referral_id for each in page], Action(action.value))


def _not_too_many(ids: set[str], choice: Choice) -> None:
    if len(ids) > choice.at_most:
        raise TooManyError(f"more than {choice.at_most} referrals are like that: narrow it down, or give --at-most")


async def begin(client: Client, database: Database, task_queue: str, order: Order, choice: Choice) -> None:
    """Choose the referrals of a batch and write them down; one that was begun before stays as it is.

    Raises:
        TooManyError: too many are like that; nothing was begun.
        AnotherBatchError: something else was begun under that id.
    """
    async with database.transaction() as transaction:
        stored = await batches.known(transaction, order.batch_id)
    if stored is None:
        ids: set[str] = set()
        async for page in chosen(client, database, task_queue, choice):
            ids.update(each.referral_id for each in page)
            _not_too_many(ids, choice)
        async with database.transaction() as transaction:
            stored = await batches.begin(transaction, order, sorted(ids))
    if stored != order:
        what = f"{stored.action} of what is {stored.wanted}" + (f", by {stored.by}: {stored.note}" if stored.by else "")
        raise AnotherBatchError(f"under that id was begun: {what}")


async def go_on(
    client: Client,
    database: Database,
    task_queue: str,
    batch_id: str,
    per_second: float,
    at_once: int,
    patience: timedelta,
    report: Callable[[int, int], None],
) -> Batch:
    """Act on what is left of a batch.

    Args:
        client: connected to the workers' namespace.
        database: the ledger.
        task_queue: that of the referrals.
        batch_id: of the batch.
        per_second: how many referrals are acted on in a second, at most.
        at_once: how many are waited for at a time.
        patience: how long one of them is waited for.
        report: hears of how many referrals of how many something has become.

    Raises:
        UnknownBatchError: there is no such batch.
        SQLAlchemyError: the ledger is away; the batch goes on from there when it is said again.
    """
    async with database.transaction() as transaction:
        order = await batches.known(transaction, batch_id)
        if order is None:
            raise UnknownBatchError(f"no batch {batch_id} was ever begun")
        before = await batches.tally(transaction, batch_id)
    work = _Work(client, database, task_queue, order, patience)
    over, queue = before.chosen - before.left - sum(each.number for each in before.failed), asyncio.Queue[str | None](1)
    report(over, before.chosen)

    async def act() -> None:
        nonlocal over
        while (referral_id := await queue.get()) is not None:
            if work.stopped is None:
                await work.on(referral_id)
                over += 1
                report(over, before.chosen)

    async def give_out() -> None:
        async for referral_id in _at_a_pace(database, batch_id, per_second):
            if work.stopped is not None:
                break
            await queue.put(referral_id)
        for _ in range(at_once):
            await queue.put(None)

    tasks = [asyncio.create_task(each) for each in (give_out(), *(act() for _ in range(at_once)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    async with database.transaction() as transaction:
        return Batch(order, await batches.tally(transaction, batch_id), work.stopped)


async def _at_a_pace(database: Database, batch_id: str, per_second: float) -> AsyncIterator[str]:
    """What is left of a batch, no faster than that."""
    loop = asyncio.get_running_loop()
    last, next_at = "", loop.time()
    while True:
        async with database.transaction() as transaction:
            page = await batches.left(transaction, batch_id, PAGE, last)
        for referral_id in page:
            # Time that passed without anybody to act is not made up for.
            next_at = max(next_at, loop.time() - 1 / per_second)
            await asyncio.sleep(next_at - loop.time())
            next_at += 1 / per_second
            yield referral_id
        if len(page) < PAGE:
            return
        last = page[-1]


class _Work:
    """Acts on one referral after the other, and writes down what became of each."""

    def __init__(self, client: Client, database: Database, task_queue: str, order: Order, patience: timedelta) -> None:
        self._client = client
        self._database = database
        self._task_queue = task_queue
        self._order = order
        self._patience = patience
        self._update_id = f"batch-{order.batch_id}"
        self._runs = ReferralRuns(client, task_queue)
        self._failures = 0
        self.stopped: str | None = None

    async def on(self, referral_id: str) -> None:
        """Act on a referral."""
        try:
            state, words = ItemState.DONE, await self._act(referral_id)
        except (DecisionRefusedError, NothingToRetryError) as error:
            # In words that are the same for all to whom the same happens.
            state, words = ItemState.REFUSED, str(error).replace(referral_id, "…")
        except (NoAnswerError, UnreachableError, RPCError, TransactionFailedError, OperationalError) as error:
            state, words = ItemState.FAILED, first_line(getattr(error, "orig", None) or error).replace(referral_id, "…")
        async with self._database.transaction() as transaction:
            await batches.record(transaction, self._order.batch_id, referral_id, state, words)
        self._failures = self._failures + 1 if state is ItemState.FAILED else 0
        if self.stopped is None and self._failures >= GIVE_UP_AFTER:
            self.stopped = f"{self._failures} failed one after the other: {words}"

    async def _act(self, referral_id: str) -> str:
        order = self._order
        if order.action is BatchAction.RETRY:
            return (await nudge(self._runs, self._database, referral_id, self._update_id)).how.value
        async with self._database.discreet_transaction() as transaction:
            # Done, and the batch was cut short before that was written down.
            if await decisions.made(transaction, referral_id, self._update_id):
                return order.action.value
        action, by, note = Action(order.action.value), order.by or "", order.note or ""
        await decide(
            self._client,
            self._database,
            self._task_queue,
            referral_id,
            action,
            by,
            note,
            lambda _: None,
            self._patience,
            self._update_id,
        )
        return order.action.value


def render_preview(found: Preview, to: Console) -> None:
    """Show what a batch would do."""
    to.print(f"{found.chosen} referrals would be acted on; nothing was changed")
    if found.by_stage:
        to.print(", ".join(f"{number} {stage}" for stage, number in found.by_stage.items()))
    _alike("would be refused", found.refused, to)
    if found.sample:
        sample = table("referral", "stage", "referrer", "friend", "why", title="\nSome of them")
        for each in found.sample:
            why = each.needs_attention or each.reason
            row(sample, each.referral_id, each.stage, each.referrer_account_id, each.referee_account_id, why)
        to.print(sample)


def render(batch: Batch, to: Console) -> None:
    """Show how a batch ended."""
    tally = batch.tally
    refused, failed = (sum(each.number for each in kind) for kind in (tally.refused, tally.failed))
    to.print(
        f"batch {batch.order.batch_id}, {batch.order.action}: of {tally.chosen} referrals "
        f"{tally.done} done, {refused} refused, {failed} failed, {tally.left} left",
        soft_wrap=True,
    )
    _alike("refused", tally.refused, to)
    _alike("failed", tally.failed, to)
    if batch.stopped:
        to.print(f"stopped: {batch.stopped}", soft_wrap=True)
    if tally.left or tally.failed:
        to.print(f"go on with: referrals batch resume {batch.order.batch_id}", soft_wrap=True)


def _alike(what: str, alike: list[Alike], to: Console) -> None:
    if alike:
        found = table("", "words", "for example", title=f"\n{what}")
        for each in alike:
            row(found, each.number, each.words, each.examples)
        to.print(found)


def render_newest(begun: list[Begun], to: Console) -> None:
    """Show the batches begun last."""
    found = table("batch", "begun", "action", "by", "chosen", "done", "refused", "failed", "left")
    for each in begun:
        order, tally = each.order, each.tally
        refused, failed = (sum(alike.number for alike in kind) for kind in (tally.refused, tally.failed))
        row(
            found,
            order.batch_id,
            each.begun_at,
            order.action,
            order.by,
            tally.chosen,
            tally.done,
            refused,
            failed,
            tally.left,
        )
    to.print(found if begun else "no batch was ever begun")
