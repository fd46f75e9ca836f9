"""What tests say instead of spelling it out: accounts, clicks, signups, payments, on the real ledger and real runs."""

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import text
from temporalio import activity
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    Worker,
    WorkerDeploymentConfig,
)

from activities.delivery import Deliveries, http_client
from activities.telling import Messenger
from billing.api import StripeApi
from billing.cards import Cards
from billing.events import reduce_event
from devstack.postgres import APP, OWNER, EmbeddedPostgres
from ledger import accounts, decisions, erasure, facts, late_prices, queries, referrals, reports
from ledger.accounts import Link, Profile
from ledger.database import Database, Transaction
from ledger.decisions import Decision, DecisionResult
from ledger.erasure import ErasedSide
from ledger.facts import News
from ledger.referrals import AttributionResult, ClickedLink, CreditResult, ExpiryResult, Reservation
from program.cycles import Period
from program.doubts import Action
from program.identity import IdentityHash
from program.plans import Plans
from program.referral import AttributionWindow, Stage
from program.signals import SignalPolicy
from tests.stripe_events import Event, charge_refunded, invoice_paid, paid_by, subscription
from worker import build_courier, build_upkeep_worker, build_worker
from workflows.client import ReferralRuns
from workflows.delivery_client import DeliveryRuns
from workflows.messages import REVIEW, STATE, VOID, Outcome, ReferralStart, ReferralState, Review, Void, workflow_id
from workflows.registry import sandbox

TASK_QUEUE = "referrals-test"
HASHES = IdentityHash("a key that only tests use")
MONTH = timedelta(days=30)

_numbers = itertools.count(1)


@dataclass(frozen=True)
class DatabaseUrls:
    """One database, for its owner and for the application."""

    owner: str
    app: str


def copied_database(postgres: EmbeddedPostgres, template: str, name: str) -> DatabaseUrls:
    """Make one more database, as a copy of another (`template0` is an empty one)."""
    names = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
    names |= {"owner": sql.Identifier(OWNER), "app": sql.Identifier(APP)}
    with psycopg.connect(postgres.superuser_url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template} OWNER {owner}").format(**names))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {name} TO {app}").format(**names))
    urls = [f"{url.rpartition('/')[0]}/{name}" for url in (postgres.owner_url, postgres.app_url)]
    return DatabaseUrls(*(url.replace("postgresql://", "postgresql+psycopg://") for url in urls))


class Clock:
    """The time of a test: real, or that of a Temporal server which runs ahead. Ledger transactions follow it."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)
        self._environment: WorkflowEnvironment | None = None
        self.database_behind = timedelta(0)
        """By how much the ledger's clock is behind the test's time."""

    def follow(self, environment: WorkflowEnvironment) -> None:
        """Take the time from a server from now on."""
        self._environment = environment

    def advance(self, by: timedelta) -> None:
        """Move the time, where no server gives it."""
        self._ahead += by

    def offset(self) -> timedelta:
        """By how much the ledger's time is ahead of the real one."""
        return self._ahead - self.database_behind

    async def now(self) -> datetime:
        """The time, UTC."""
        if self._environment is not None:
            self._ahead = await self._environment.get_current_time() - datetime.now(UTC)
        return datetime.now(UTC) + self._ahead


class _OnTestTime(Interceptor):
    """Sets the test's clock right before each step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        clock = self._clock

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                await clock.now()
                return await super().execute_activity(input)

        return Inbound(next)


class AtStep(Interceptor):
    """Lets something happen right before or right after the work of a step, the first time that it is taken.

    What happens before is inside the step and ahead of its transaction; what happens after, behind its commit and ahead
    of the run's hearing of it. A `visible` step is taken as a regular activity, for the local way to it fails: then the
    run hears of news while the step is under way.
    """

    def __init__(
        self,
        step: str,
        *,
        before: Callable[[], Awaitable[object]] | None = None,
        after: Callable[[], Awaitable[object]] | None = None,
        visible: bool = False,
    ) -> None:
        self._step = step
        self._before = before
        self._after = after
        self._visible = visible
        self.happened = False

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        moment = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
                info = activity.info()
                if moment.happened or info.activity_type != moment._step:
                    return await super().execute_activity(input)
                if moment._visible and info.is_local:
                    raise ConnectionError("the local way fails")
                moment.happened = True
                if moment._before:
                    await moment._before()
                result = await super().execute_activity(input)
                if moment._after:
                    await moment._after()
                return result

        return Inbound(next)


@dataclass
class Member:
    """An account with its Stripe customer."""

    account_id: str
    email: str
    customer_id: str
    subscription_id: str
    created_at: datetime


class World:
    """The whole program short of HTTP, on the time of a test.

    Attributes:
        signup_took: how long the slowest signup of a scenario took: on a busy machine all that follows is as slow.
    """

    def __init__(
        self,
        database: Database,
        plans: Plans,
        environment: WorkflowEnvironment,
        clock: Clock,
        task_queue: str = TASK_QUEUE,
    ) -> None:
        self.policy = SignalPolicy()
        self.database = database
        self.plans = plans
        self.environment = environment
        self.clock = clock
        self.task_queue = task_queue
        self.runs = ReferralRuns(environment.client, task_queue, timeout=timedelta(seconds=10))
        self.cards: Cards | None = None
        self.messenger = Messenger(self.runs, database, lambda: None)
        self.signup_took = timedelta(0)

    def worker(self, *interceptors: Interceptor, versions: WorkerDeploymentConfig | None = None) -> Worker:
        """A worker for this world's runs."""
        return build_worker(
            self.environment.client,
            self.task_queue,
            self.database,
            self.plans,
            self.policy,
            versions,
            interceptors=[_OnTestTime(self.clock), *interceptors],
            cards=self.cards,
        )

    def upkeep_worker(
        self,
        *interceptors: Interceptor,
        stripe: StripeApi | None = None,
        deliveries: Deliveries | None = None,
        runs: DeliveryRuns | None = None,
        versions: WorkerDeploymentConfig | None = None,
    ) -> Worker:
        """A worker for what is done beside this world's runs; it delivers nothing unless told how."""
        return build_upkeep_worker(
            self.environment.client,
            self.task_queue,
            self.database,
            self.plans,
            versions,
            interceptors=[_OnTestTime(self.clock), *interceptors],
            stripe=stripe,
            hashes=HASHES,
            deliveries=deliveries or Deliveries(self.database, {}, http_client()),
            runs=runs,
            # No history of these is on record, so their code is watched here.
            runner=sandbox(),
        )

    def courier(self, endpoint: str, deliveries: Deliveries) -> Worker:
        """A worker that sends messages to an endpoint."""
        return build_courier(
            self.environment.client, self.task_queue, endpoint, deliveries, interceptors=[_OnTestTime(self.clock)]
        )

    async def pass_time(self, by: timedelta) -> None:
        """Let time pass, with everything that is due in it."""
        await self.environment.sleep(by)

    async def member(self, name: str, *, created_at: datetime | None = None, customer: str | None = None) -> Member:
        """An account that has just signed up at KallyAI, with a Stripe customer and no subscription."""
        number = next(_numbers)
        member = Member(
            f"{name}-{number}",
            f"{name}{number}@example.com",
            customer or f"cus_{name}{number}",
            f"sub_{name}{number}",
            created_at or await self.clock.now(),
        )
        await self.put(member)
        return member

    async def put(self, member: Member) -> News:
        """Report an account, as the backend does."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            profile = Profile(member.account_id, member.email, member.created_at, member.customer_id)
            await accounts.put(transaction, profile, HASHES)
            news = await facts.news_of_account(transaction, member.account_id, self.plans)
        await self.messenger.tell(news, "put")
        return news

    async def subscriber(
        self, name: str = "referrer", *, plan: str = "pro", started: timedelta = MONTH / 2, length: timedelta = MONTH
    ) -> Member:
        """An account in a paid period that began `started` ago and is `length` long."""
        now = await self.clock.now()
        member = await self.member(name, created_at=now - timedelta(days=400))
        start = now - started
        await self.report(subscription(member.customer_id, member.subscription_id, start, start + length, plan=plan))
        await self.report(
            invoice_paid(member.customer_id, member.subscription_id, start, start + length, plan=plan, paid_at=start)
        )
        return member

    async def report(self, *events: Event) -> None:
        """Let events of Stripe's come in, one after the other, as the webhook takes them."""
        for event in events:
            await self.clock.now()
            reduced = reduce_event(event)
            async with self.database.transaction() as transaction:
                news = await facts.apply_event(transaction, reduced, self.plans, HASHES)
            await self.messenger.tell(news, reduced.event_id)
            async for late in late_prices.news(self.database.transaction, news, self.plans):
                await self.messenger.tell(late, reduced.event_id)
            async with self.database.transaction() as transaction:
                await facts.mark_signalled(transaction, reduced.event_id)

    async def click(
        self,
        referrer: Member,
        *,
        window: timedelta = timedelta(days=90),
        start: bool = True,
        ago: timedelta = timedelta(0),
    ) -> ClickedLink:
        """Follow a referrer's link, which is made where there is none; `ago`, where the click was some time ago.

        Without `start`, Temporal never hears of it.
        """
        now = await self.clock.now()
        async with self.database.transaction() as transaction:
            link = await accounts.give_link(transaction, referrer.account_id, "2026-01", self.plans)
        click = ClickedLink(referrals.new_id(), link.code, "link", AttributionWindow(now - ago, window))
        if start:
            await self.runs.clicked(run_start(click, referrer), now)
        return click

    async def sign_up(self, click: ClickedLink, referrer: Member, friend: Member) -> Reservation:
        """Report that a friend signed up, as the backend does."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            profile = Profile(friend.account_id, friend.email, friend.created_at)
            reservation = await reports.signup(transaction, profile, click, referrer.account_id, HASHES)
        start = ReferralStart(
            reservation.referral_id, referrer.account_id, click.window.clicked_at, click.window.lapses_at
        )
        await self.runs.signed_up(start, friend.account_id)
        return reservation

    async def pay(self, friend: Member, *, plan: str = "pro", length: timedelta = MONTH) -> list[Event]:
        """Let a friend pay for a plan now."""
        now = await self.clock.now()
        events = [
            subscription(friend.customer_id, friend.subscription_id, now, now + length, plan=plan),
            invoice_paid(friend.customer_id, friend.subscription_id, now, now + length, plan=plan),
        ]
        await self.report(*events)
        return events

    async def refund(self, payment: list[Event], *, amount: int) -> None:
        """Give money back that a friend paid: what :meth:`pay` returned."""
        await self.report(*refunded(payment, amount, await self.clock.now()))

    async def erase(self, member: Member) -> None:
        """Erase an account, as the backend does."""
        async with self.database.transaction() as transaction:
            sides = await erasure.erase(transaction, member.account_id, HASHES)
        await self.messenger.tell_of_erasing(sides)

    async def review(self, run_id: str, decision: Literal["approve", "reject"], **how: Any) -> Outcome:
        """Decide about what is in doubt, as an operator does."""
        return await self._update(run_id, REVIEW, Review(decision, "ann", "looked at it"), **how)

    async def void(self, run_id: str, **how: Any) -> Outcome:
        """Void a referral, as an operator does."""
        return await self._update(run_id, VOID, Void("ann", "looked at it"), **how)

    async def _update(self, run_id: str, name: str, asked: Review | Void, **how: Any) -> Outcome:
        handle = self.environment.client.get_workflow_handle(run_id)
        outcome: Outcome = await handle.execute_update(name, asked, result_type=Outcome, **how)
        return outcome

    async def cycle(self, member: Member) -> Period:
        """The paid period that an account is in."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            cycle = (await accounts.standing_seen(transaction, member.account_id, self.plans)).cycle
        assert cycle is not None, "the account is in no paid period"
        return cycle

    async def referral(self, referral_id: str) -> queries.Referral:
        """A referral as the ledger has it."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            referral = await queries.one_referral(transaction, referral_id)
        assert referral is not None, "no signup is known for that referral"
        return referral

    async def lots(self, member: Member) -> list[queries.Lot]:
        """The grants of an account."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            return (await queries.lots(transaction, member.account_id)).lots

    async def story(self, referral_id: str) -> list[Stage]:
        """The stages that a referral came through."""
        async with self.database.transaction() as transaction:
            return [step.stage for step in await queries.story(transaction, referral_id)]

    def handle(self, referral_id: str) -> WorkflowHandle[Any, Any]:
        """The run of a referral."""
        return self.environment.client.get_workflow_handle(workflow_id(referral_id), result_type=ReferralState)

    async def events(self, referral_id: str) -> list[HistoryEvent]:
        """The history of a referral's newest run."""
        return list((await self.handle(referral_id).fetch_history()).events)

    async def state(self, referral_id: str) -> ReferralState:
        """What a referral's run knows."""
        state: ReferralState = await self.handle(referral_id).query(STATE, result_type=ReferralState)
        return state

    async def waiting_friend(self) -> tuple[str, Member, Member]:
        """A referral whose signup counts and whose first payment is waited for: its id, the referrer and the friend."""
        referrer = await self.subscriber()
        click = await self.click(referrer)
        friend = await self.member("friend")
        await self.sign_up(click, referrer, friend)
        await self.reaches(click.referral_id, Stage.SIGNED_UP)
        return click.referral_id, referrer, friend

    async def reaches(self, referral_id: str, *stages: Stage) -> Stage:
        """Wait until a referral's run has come to one of these stages."""
        state = await until(lambda: self.state(referral_id), lambda state: state.stage in stages)
        return state.stage

    async def outcome(self, referral_id: str) -> ReferralState:
        """How a referral's run ends; time runs ahead until it does."""
        # Only handles of runs that this client itself started let time run ahead by themselves.
        skip = getattr(self.environment, "time_skipping_unlocked", nullcontext)
        async with skip():
            result = await asyncio.wait_for(self.handle(referral_id).result(), 120)
        assert isinstance(result, ReferralState)
        return result


class Books:
    """The ledger alone, without any run: what is reported and decided, each in a transaction of its own."""

    def __init__(self, database: Database, plans: Plans, clock: Clock) -> None:
        self.database = database
        self.plans = plans
        self.clock = clock
        self.policy = SignalPolicy()

    async def someone(self, name: str = "friend", *, age: timedelta = timedelta(0)) -> Member:
        """A person whose account is `age` old, and of whom nothing was reported yet."""
        number = next(_numbers)
        created_at = await self.clock.now() - age
        account_id = f"{name}-{number}"
        return Member(account_id, f"{account_id}@example.com", f"cus_{account_id}", f"sub_{account_id}", created_at)

    async def put(self, member: Member, *, linked: bool = False) -> News:
        """Report an account as the backend does, `linked` to its Stripe customer or not."""
        async with self.database.transaction() as transaction:
            return await self.put_in(transaction, member, linked=linked)

    async def put_in(self, transaction: Transaction, member: Member, *, linked: bool = False) -> News:
        """The same, as a part of a transaction."""
        customer = member.customer_id if linked else None
        profile = Profile(member.account_id, member.email, member.created_at, customer)
        news, _ = await reports.account(transaction, profile, HASHES, self.plans)
        return news

    async def subscriber(
        self, name: str = "referrer", *, plan: str = "pro", started: timedelta = MONTH / 2, length: timedelta = MONTH
    ) -> Member:
        """An account in a paid period that began `started` ago and is `length` long."""
        member = await self.someone(name, age=timedelta(days=400))
        await self.put(member, linked=True)
        await self.pay(member, plan=plan, start=await self.clock.now() - started, length=length)
        return member

    async def pay(
        self, member: Member, *, plan: str = "pro", start: datetime | None = None, length: timedelta = MONTH
    ) -> list[Event]:
        """Report a subscription to a plan and the payment for its period, which begins now unless told."""
        start = start or await self.clock.now()
        events = [
            subscription(member.customer_id, member.subscription_id, start, start + length, plan=plan),
            invoice_paid(member.customer_id, member.subscription_id, start, start + length, plan=plan),
        ]
        await self.report(*events)
        return events

    async def apply(self, event: Event) -> News:
        """Store an event's facts; the runs concerned are not told yet."""
        async with self.database.transaction() as transaction:
            return await facts.apply_event(transaction, reduce_event(event), self.plans, HASHES)

    async def report(self, *events: Event) -> list[News]:
        """Let events of Stripe's come in, and all concerned be told."""
        news: list[News] = []
        for event in events:
            first = await self.apply(event)
            news.append(first)
            async for late in late_prices.news(self.database.transaction, first, self.plans):
                told = news[-1]
                news[-1] = replace(told, payments=told.payments + late.payments, moved=told.moved + late.moved)
            async with self.database.transaction() as transaction:
                await facts.mark_signalled(transaction, event["id"])
        return news

    async def link(self, member: Member, terms_version: str = "2026-01") -> Link:
        """Give a member its link."""
        async with self.database.transaction() as transaction:
            return await accounts.give_link(transaction, member.account_id, terms_version, self.plans)

    async def click(
        self, referrer: Member, *, at: datetime | None = None, window: timedelta = timedelta(days=90)
    ) -> ClickedLink:
        """Follow a referrer's link, now unless told."""
        link = await self.link(referrer)
        clicked_at = at or await self.clock.now()
        return ClickedLink(referrals.new_id(), link.code, "link", AttributionWindow(clicked_at, window))

    async def reserve(self, click: ClickedLink, referrer: Member, friend: Member) -> Reservation:
        """Report a signup as the backend does."""
        async with self.database.transaction() as transaction:
            return await self.reserve_in(transaction, click, referrer, friend)

    async def reserve_in(
        self, transaction: Transaction, click: ClickedLink, referrer: Member, friend: Member
    ) -> Reservation:
        """The same, as a part of a transaction."""
        profile = Profile(friend.account_id, friend.email, friend.created_at)
        return await reports.signup(transaction, profile, click, referrer.account_id, HASHES)

    async def attribute(self, referral_id: str) -> AttributionResult:
        """Look at a signup."""
        async with self.database.transaction() as transaction:
            return await referrals.attribute(transaction, referral_id)

    async def credit(self, referral_id: str) -> CreditResult:
        """Look at a payment."""
        async with self.database.transaction() as transaction:
            return await referrals.credit_both(transaction, referral_id, self.plans, self.policy)

    async def expire(self, referral_id: str) -> ExpiryResult:
        """Look at both expiries."""
        async with self.database.transaction() as transaction:
            return await referrals.expire(transaction, referral_id, self.plans)

    async def decide(self, referral_id: str, action: Action, decision_id: str = "one") -> DecisionResult:
        """Decide about a referral, as an operator does."""
        decision = Decision(referral_id, decision_id, action, "ann", "looked at it")
        async with self.database.transaction() as transaction:
            return await decisions.decide(transaction, decision, self.plans, SignalPolicy())

    async def erase(self, member: Member) -> list[ErasedSide]:
        """Erase an account, as the backend does."""
        async with self.database.transaction() as transaction:
            return await erasure.erase(transaction, member.account_id, HASHES)

    async def held(self, referrer: Member, friend: Member) -> str:
        """A referral that is held, for a part of the payment was refunded; gives its id."""
        referral_id = await self.sign_up(referrer, friend)
        await self.put(friend, linked=True)
        await self.report(*refunded(await self.pay(friend), 100, await self.clock.now()))
        await self.credit(referral_id)
        return referral_id

    async def sign_up(self, referrer: Member, friend: Member, *, clicked: timedelta = timedelta(minutes=1)) -> str:
        """Reserve and attribute a signup by a click that long ago; gives the referral's id."""
        click = await self.click(referrer, at=await self.clock.now() - clicked)
        reservation = await self.reserve(click, referrer, friend)
        await self.attribute(reservation.referral_id)
        return reservation.referral_id

    async def credited(self, referrer: Member, friend: Member, *, plan: str = "pro", length: timedelta = MONTH) -> str:
        """A whole referral up to the credit; gives its id."""
        referral_id = await self.sign_up(referrer, friend)
        await self.put(friend, linked=True)
        await self.pay(friend, plan=plan, length=length)
        await self.credit(referral_id)
        return referral_id

    async def cycle(self, member: Member) -> Period:
        """The paid period that an account is in."""
        await self.clock.now()
        async with self.database.transaction() as transaction:
            cycle = (await accounts.standing_seen(transaction, member.account_id, self.plans)).cycle
        assert cycle is not None, "the account is in no paid period"
        return cycle

    async def referral(self, referral_id: str) -> queries.Referral:
        """A referral as it is shown."""
        async with self.database.transaction() as transaction:
            referral = await queries.one_referral(transaction, referral_id)
        assert referral is not None, "no signup is known for that referral"
        return referral

    async def story(self, referral_id: str) -> list[queries.Step]:
        """The stages that a referral came through."""
        async with self.database.transaction() as transaction:
            return await queries.story(transaction, referral_id)

    async def lots(self, member: Member) -> list[queries.Lot]:
        """The grants of an account, the newest first."""
        async with self.database.transaction() as transaction:
            return (await queries.lots(transaction, member.account_id)).lots

    async def summary(self, member: Member) -> queries.Summary:
        """The numbers of a member's dashboard."""
        async with self.database.transaction() as transaction:
            return await queries.summary(transaction, member.account_id)

    async def rows(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """What a query of the test's own finds."""
        async with self.database.transaction() as transaction:
            return [tuple(row) for row in await transaction.execute(text(statement), parameters)]


def refunded(payment: list[Event], amount: int, at: datetime) -> list[Event]:
    """What Stripe tells when money is given back of a payment: how the invoice was paid, and the refund."""
    invoice, customer = (payment[1]["data"]["object"][name] for name in ("id", "customer"))
    intent = f"pi_{invoice}"
    return [paid_by(invoice, intent, at), charge_refunded(intent, amount, customer=customer, charge_id=f"ch_{invoice}")]


def run_start(click: ClickedLink, referrer: Member) -> ReferralStart:
    """What the run of a click begins with."""
    return ReferralStart(click.referral_id, referrer.account_id, click.window.clicked_at, click.window.lapses_at)


async def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """The console script itself, in an environment of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REFERRALS_", "TEMPORAL_"))}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "referrals",
        *arguments,
        env=kept | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode or 0, out.decode(), err.decode()


Seen = TypeVar("Seen")


async def until(look: Callable[[], Awaitable[Seen]], holds: Callable[[Seen], bool], seconds: float = 60.0) -> Seen:
    """Look again and again until what is seen holds.

    Raises:
        AssertionError: it did not within that many seconds; the message has what was seen last.
    """
    deadline = time.monotonic() + seconds
    while not holds(seen := await look()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain; seen last: {seen}"
        await asyncio.sleep(0.02)
    return seen
