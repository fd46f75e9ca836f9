"""Carries a population out on a running stack: real facts, the ledger's own functions, real runs.

Nothing is written past the rules. Each act is a transaction of its own on a ledger clock that stands at the act's time,
so half a year of history comes about as it would have. What is still open at the end gets its run in Temporal, which
catches up with a ledger that is ahead of it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeVar, assert_never

from billing.events import reduce_event
from devstack.population import (
    OPERATOR,
    Act,
    Click,
    Decide,
    Dispute,
    End,
    Erase,
    GiveBack,
    Member,
    Pay,
    Population,
    Report,
    SignUp,
    Sweep,
    TakeLink,
    Use,
    populate,
)
from devstack.stripe_events import PRICES_IN_CENTS, Subscription, told
from ledger import accounts, database, decisions, erasure, facts, queries, reconciliation, referrals, usage
from ledger.accounts import AccountErasedError, Profile
from ledger.database import Database, Transaction
from ledger.decisions import Decision
from ledger.facts import News
from ledger.referrals import ClickedLink
from program.identity import IdentityHash
from program.plans import Plans
from program.referral import AttributionWindow, Stage
from program.signals import SignalPolicy
from program.terms import TERMS_VERSION
from workflows.client import ReferralOverError, ReferralRuns
from workflows.messages import ReferralStart

AT_ONCE = 8
"""How many transactions, or calls to Temporal, are under way together."""

CLICKS_RUN_FOR = timedelta(days=7)
"""Of the links that were followed without a signup, those of the last days have a run that waits."""

CATCHES_UP_WITHIN = timedelta(seconds=60)
"""How long is waited for the runs to come to the stage that the ledger is at."""

Step = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is, and how much there is."""

Thing = TypeVar("Thing")


class DemoError(Exception):
    """The stack cannot be filled; the message says why, for the person at the terminal."""


class OtherSizeError(DemoError):
    """The population of that seed is there already, with another number of members."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What there is now.

    Args:
        population: everybody.
        until: the time that six months lead up to, UTC.
        added: whether anything had to be done for it.
        stages: how many referrals are at which stage; `clicked` are the links followed that wait for a signup.
        runs: of the open referrals, the stage by the ledger.
        behind: of those, the ones whose run has not come there yet; an idle worker's are all.
        clicks: how often links were followed.
        minutes: bonus minutes that can be used now, of everybody.
    """

    population: Population
    until: datetime
    added: bool
    stages: Mapping[Stage, int]
    runs: Mapping[str, Stage]
    behind: tuple[str, ...]
    clicks: int
    minutes: int


class Demo:
    """Fills one stack."""

    def __init__(
        self,
        url: str,
        plans: Plans,
        hashes: IdentityHash,
        runs: ReferralRuns,
        step: Step = lambda *_: None,
        *,
        patience: timedelta = CATCHES_UP_WITHIN,
    ) -> None:
        """Describe the stack.

        Args:
            url: its database, as the application's role.
            plans: on sale.
            hashes: as the starter has them, so that it knows these people again.
            runs: reach the referrals' runs.
            step: is told how it goes on.
            patience: how long is waited for the runs.
        """
        self._moment: ContextVar[datetime | None] = ContextVar("moment", default=None)
        self._database = Database(url, offset=self._offset, pool_size=AT_ONCE)
        self._plans = plans
        self._hashes = hashes
        self._runs = runs
        self._step = step
        self._patience = patience
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        """Close the connections."""
        await self._database.close()

    async def fill(self, seed: int, members: int) -> Filled:
        """Bring the population of a seed about. Begun before, it is gone on with; there already, nothing is added.

        Raises:
            OtherSizeError: it is there with another number of members.
            DemoError: the plans on sale are not those that the population buys.
            UnreachableError: Temporal could not be reached, or refused.
            SQLAlchemyError: the database refused, or could not be reached.
        """
        begun = await self._begin(seed, members)
        population = populate(seed, members, begun.until, self._bonuses())
        added = begun.state != _Begun.DONE
        if added:
            await self._carry_out(population.acts)
            if begun.state == _Begun.ACTS:
                await self._count_clicks(seed, begun, population.clicks)
        stages = await self._stages(population)
        open_ = {referral_id: stage for referral_id, (stage, is_open) in stages.items() if is_open}
        waiting = self._waiting(population, begun.until)
        if added:
            await self._start_runs(population, open_, waiting)
            await self._note(seed, begun, _Begun.DONE)
        behind = await self._catch_up(open_)
        numbers = Counter(stage for stage, _ in stages.values())
        if waiting:
            numbers[Stage.CLICKED] += len(waiting)
        return Filled(
            population,
            begun.until,
            added,
            numbers,
            open_,
            behind,
            len(population.clicks),
            await self._usable(population.members),
        )

    def _offset(self) -> timedelta:
        moment = self._moment.get()
        return timedelta(0) if moment is None else moment - datetime.now(UTC)

    def _bonuses(self) -> dict[str, int]:
        bonuses = {plan.id: plan.bonus for plan in self._plans}
        missing = set(PRICES_IN_CENTS) - set(bonuses)
        if missing:
            raise DemoError(f"the plans on sale lack {', '.join(sorted(missing))}, which these members pay for")
        return bonuses

    # How far it is: the same people at the same times, however often it is begun

    async def _begin(self, seed: int, members: int) -> "_Begun":
        name = _walk(seed)
        async with self._database.transaction() as transaction:
            # Two at once would be two populations of one seed: they take turns.
            await accounts.lock(transaction, [name])
            written = await reconciliation.position(transaction, name)
            if written is None:
                now = (await database.now(transaction)).replace(microsecond=0)
                begun = _Begun(now, members, _Begun.ACTS)
                await reconciliation.go_on_at(transaction, name, str(begun))
                return begun
        begun = _Begun.read(written)
        if begun.members != members:
            raise OtherSizeError(
                f"the population of seed {seed} is there already, with {begun.members} members: "
                f"say --members {begun.members}, or another --seed"
            )
        return begun

    async def _note(self, seed: int, begun: "_Begun", state: str) -> None:
        async with self._database.transaction() as transaction:
            await reconciliation.go_on_at(transaction, _walk(seed), str(_Begun(begun.until, begun.members, state)))

    # What they do

    async def _carry_out(self, acts: Iterable[Act]) -> None:
        """All acts: those that touch one account in their order, others side by side."""
        todo, done = tuple(acts), 0
        last: dict[str, asyncio.Task[None]] = {}

        async def in_turn(act: Act, before: Iterable[asyncio.Task[None]]) -> None:
            nonlocal done
            for task in before:
                await task
            async with self._turns:
                await self._do(act)
            done += 1
            self._step("half a year goes by", done, len(todo))

        async with asyncio.TaskGroup() as group:
            for act in todo:
                before = {last[party] for party in act.parties if party in last}
                task = group.create_task(in_turn(act, before))
                last |= dict.fromkeys(act.parties, task)

    async def _do(self, act: Act) -> None:
        self._moment.set(act.at)
        match act:
            case Report():
                await self._report(act)
            case SignUp():
                await self._sign_up(act)
            case TakeLink(account_id=account_id):
                async with self._database.transaction() as transaction:
                    await accounts.give_link(transaction, account_id, TERMS_VERSION, self._plans)
            case Pay() | GiveBack() | Dispute() | End():
                for event in _events(act):
                    await self._hear(event)
            case Use():
                async with self._database.transaction() as transaction:
                    await usage.spend(transaction, act.account_id, act.usage_id, act.minutes)
            case Decide():
                decision = Decision(act.referral_id, f"demo-{act.referral_id}", act.action, OPERATOR, act.note)
                async with self._database.transaction() as transaction:
                    await decisions.decide(transaction, decision, self._plans, SignalPolicy())
            case Sweep():
                async with self._database.transaction() as transaction:
                    await referrals.expire(transaction, act.referral_id, self._plans)
            case Erase():
                async with self._database.transaction() as transaction:
                    await erasure.erase(transaction, act.account_id, self._hashes)
            case _:
                raise TypeError(f"nobody knows how to {act}")

    async def _report(self, act: Report) -> None:
        """As `PUT /v1/accounts/{account_id}` does it, and the runs that hear of it."""
        try:
            async with self._database.transaction() as transaction:
                await accounts.put(transaction, _profile(act.member, act.customer_id), self._hashes)
                news = await facts.news_of_account(transaction, act.member.account_id, self._plans)
        except AccountErasedError:
            return
        await self._credit(news)

    async def _sign_up(self, act: SignUp) -> None:
        """As `POST /v1/signups` does it, and the run's first step."""
        try:
            async with self._database.transaction() as transaction:
                link = await self._link(transaction, act.click.account_id)
                await accounts.put(transaction, _profile(act.member, None), self._hashes)
                await referrals.reserve(
                    transaction, _clicked(act.click, link), act.click.account_id, act.member.account_id
                )
        except AccountErasedError:
            return
        async with self._database.transaction() as transaction:
            await referrals.attribute(transaction, act.click.referral_id)

    async def _link(self, transaction: Transaction, account_id: str) -> str:
        """The code of a link that was taken before."""
        return (await accounts.give_link(transaction, account_id, TERMS_VERSION, self._plans)).code

    async def _hear(self, event: dict[str, Any]) -> None:
        """As the webhook does it, and the runs that hear of it; marked as signalled once they have."""
        reduced = reduce_event(event)
        async with self._database.transaction() as transaction:
            news = await facts.apply_event(transaction, reduced, self._plans, self._hashes)
            if not news.payments:
                await facts.mark_signalled(transaction, reduced.event_id)
        if news.payments:
            await self._credit(news)
            async with self._database.transaction() as transaction:
                await facts.mark_signalled(transaction, reduced.event_id)

    async def _credit(self, news: News) -> None:
        for waiting in news.payments:
            async with self._database.transaction() as transaction:
                await referrals.credit_both(transaction, waiting.referral_id, self._plans, SignalPolicy())

    async def _count_clicks(self, seed: int, begun: "_Begun", clicks: Iterable[Click]) -> None:
        """Count them all, with the note that they are: a number that is counted twice is wrong."""
        counted = tuple(clicks)
        async with self._database.transaction() as transaction:
            codes: dict[str, str] = {}
            for number, click in enumerate(counted, 1):
                if click.account_id not in codes:
                    codes[click.account_id] = await self._link(transaction, click.account_id)
                await accounts.link_followed(
                    transaction, codes[click.account_id], click.channel, click.clicked_at.date()
                )
                self._step("links are followed", number, len(counted))
            await reconciliation.go_on_at(
                transaction, _walk(seed), str(_Begun(begun.until, begun.members, _Begun.RUNS))
            )

    # What became of it

    async def _stages(self, population: Population) -> dict[str, tuple[Stage, bool]]:
        """The stage of each referral with a signup, and whether something can still become of it."""

        async def look(referral_id: str) -> tuple[Stage, bool]:
            async with self._database.transaction() as transaction:
                known = await queries.one_referral(transaction, referral_id)
                if known is None:
                    raise DemoError(f"the ledger does not know referral {referral_id} any more")
                if known.stage is not Stage.CREDITED:
                    return known.stage, known.stage.open
                result = await referrals.expire(transaction, referral_id, self._plans)
                return result.stage, bool(result.open)

        return await self._each("looking at the referrals", population.signups, look)

    def _waiting(self, population: Population, until: datetime) -> dict[str, Click]:
        """The links followed in the last days, without a signup so far."""
        return {
            click.referral_id: click
            for click in population.clicks
            if click.referral_id not in population.signups and click.clicked_at > until - CLICKS_RUN_FOR
        }

    async def _start_runs(
        self, population: Population, open_: Mapping[str, Stage], waiting: Mapping[str, Click]
    ) -> None:
        signups = {act.click.referral_id: act for act in population.acts if isinstance(act, SignUp)}

        async def begin(referral_id: str) -> None:
            try:
                if referral_id in waiting:
                    click = waiting[referral_id]
                    await self._runs.clicked(_start(click), datetime.now(UTC), click.channel)
                else:
                    act = signups[referral_id]
                    await self._runs.signed_up(_start(act.click), act.member.account_id)
            except ReferralOverError:
                # Started by an earlier attempt, and over since.
                return

        await self._each("starting their runs", [*open_, *waiting], begin)

    async def _catch_up(self, open_: Mapping[str, Stage]) -> tuple[str, ...]:
        """Wait until the runs are at the stage that the ledger is at; gives those that do not come there."""
        behind = dict(open_)
        deadline = monotonic() + self._patience.total_seconds()
        while behind:
            seen = await self._each("", behind, self._runs.click)
            behind = {
                referral_id: stage
                for referral_id, stage in behind.items()
                if (run := seen[referral_id]) is None or run.stage is not stage
            }
            self._step("the runs catch up", len(open_) - len(behind), len(open_))
            if monotonic() > deadline:
                break
            await asyncio.sleep(0.2 if behind else 0)
        return tuple(behind)

    async def _usable(self, members: Iterable[Member]) -> int:
        async def look(account_id: str) -> int:
            async with self._database.transaction() as transaction:
                return (await queries.usable(transaction, account_id, await database.now(transaction))).minutes

        found = await self._each("looking at the minutes", [member.account_id for member in members], look)
        return sum(found.values())

    async def _each(self, what: str, keys: Iterable[str], do: Callable[[str], Awaitable[Thing]]) -> dict[str, Thing]:
        """Do something for each, some at once."""
        todo = list(keys)
        found: dict[str, Thing] = {}

        async def in_turn(key: str) -> None:
            async with self._turns:
                found[key] = await do(key)
            if what:
                self._step(what, len(found), len(todo))

        async with asyncio.TaskGroup() as group:
            for key in todo:
                group.create_task(in_turn(key))
        return found


@dataclass(frozen=True, slots=True)
class _Begun:
    """How far a population is, as the ledger keeps it beside the other walks through what Stripe has."""

    until: datetime
    members: int
    state: str

    ACTS = "acts"
    RUNS = "runs"
    DONE = "done"

    @classmethod
    def read(cls, written: str) -> "_Begun":
        until, members, state = written.split("/")
        return cls(datetime.fromisoformat(until), int(members), state)

    def __str__(self) -> str:
        return f"{self.until.isoformat()}/{self.members}/{self.state}"


def _walk(seed: int) -> str:
    return f"demo {seed}"


def _profile(member: Member, customer_id: str | None) -> Profile:
    return Profile(
        member.account_id,
        member.email,
        member.created_at,
        customer_id,
        member.first_name,
        member.show_first_name,
    )


def _clicked(click: Click, code: str) -> ClickedLink:
    return ClickedLink(click.referral_id, code, click.channel, AttributionWindow(click.clicked_at))


def _start(click: Click) -> ReferralStart:
    window = AttributionWindow(click.clicked_at)
    return ReferralStart(click.referral_id, click.account_id, click.clicked_at, window.lapses_at)


def _events(act: Pay | GiveBack | Dispute | End) -> list[dict[str, Any]]:
    """What Stripe tells of it, under ids that follow from what it is about."""
    key, at = act.customer_id.removeprefix("cus_"), int(act.at.timestamp())
    subscription = Subscription(act.customer_id, act.plan, f"sub_{key}", f"si_{key}")
    first = f"in_{key}_0"
    match act:
        case Pay(number=number):
            start, end, invoice = int(act.start.timestamp()), int(act.end.timestamp()), f"in_{key}_{number}"
            paid = told(
                subscription.paid(start, end, at, renewal=number > 0, invoice=invoice), f"evt_{invoice}_paid", at
            )
            return [paid] if number else [told(subscription.created(start, end), f"evt_{key}_created", at), paid]
        case GiveBack(whole=whole):
            cents = PRICES_IN_CENTS[act.plan] if whole else PRICES_IN_CENTS[act.plan] // 3
            return [
                told(subscription.paid_by(first, at), f"evt_{first}_payment", at),
                told(subscription.refunded(first, cents, at), f"evt_{first}_refund", at),
            ]
        case Dispute():
            return [
                told(subscription.paid_by(first, at), f"evt_{first}_payment", at),
                told(subscription.disputed(first, at), f"evt_{first}_dispute", at),
            ]
        case End():
            return [told(subscription.ended(int(act.start.timestamp()), at, at), f"evt_{key}_ended", at)]
        case _:
            assert_never(act)
