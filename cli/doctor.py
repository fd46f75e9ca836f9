"""Whether everything is there that the program needs: settings, servers, and what was to be prepared in them."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pydantic import SecretStr
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from billing.api import StripeApi, StripeRefusedError, StripeUnreachableError
from cli.answers import first_line, row, table
from cli.programs import Program
from cli.runs import explained
from ledger import database, invariants
from ledger.condition import Condition, condition, one_customer
from ledger.database import Database
from ledger.migrate import newest_version
from program.cycles import CLOCKS_DIFFER
from program.plans import PlansError, load_plans
from runtime.schedules import schedules_amiss
from runtime.settings import DoctorSettings, Flaw, StarterSettings, WorkerSettings, flaws_of
from runtime.temporal import attributes_amiss, connect
from workflows.client import ReferralRuns, UnreachableError
from workflows.deliveries import WORKFLOW as DELIVERY_WORKFLOW
from workflows.deliveries import delivery_queue, run_id
from workflows.jobs import JOBS, upkeep_queue
from workflows.messages import WORKFLOW, workflow_id

CLOCKS_AGREE = timedelta(seconds=2)
"""How far two clocks may be apart before it is worth a word; more than :data:`CLOCKS_DIFFER` is a problem."""

READ_WITHIN = timedelta(hours=3)
"""Reconciliation reads Stripe's events every hour; for longer than this it is behind."""

PATIENCE = timedelta(seconds=20)
"""How long Temporal is waited for."""

REFUSED_MEANWHILE = timedelta(minutes=5)
"""Signatures that do not fit right after one that does are somebody else's, not a wrong secret's."""

POLLS = timedelta(seconds=90)
"""A worker asks for work at least once a minute; the server remembers for five that one did."""

TAKES_UP = timedelta(seconds=10)
"""Work that is there goes to whoever asks; where nobody has asked for this long, nobody is there."""

LATE = timedelta(seconds=15)
"""What a run does at once takes less, on a busy day too."""

MOST_LOOKED_AT = 10
"""Of how many runs it is looked up what keeps them."""

_SIGNING_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=_-]{16,}")
_API_KEY = re.compile(r"(sk|rk|pk)_(test|live)_\w+")


_SETTINGS: Mapping[Program, type[WorkerSettings] | type[StarterSettings]] = {
    Program.WORKER: WorkerSettings,
    Program.STARTER: StarterSettings,
}


class Verdict(StrEnum):
    """How something is: fine, worth a word, worth a look, or to be mended before anything works."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Examined:
    """Something that was looked at.

    Args:
        what: its name, for filters.
        verdict: how it is.
        words: what was found, and how it is mended.
    """

    what: str
    verdict: Verdict
    words: str


@dataclass
class _Behind:
    """Referrals for which a run should have done something by now, with what that is, where anybody could look."""

    looked: bool = False
    referrals: dict[str, str] = field(default_factory=dict)


def well(what: str, words: str) -> Examined:
    """Something is as it should be."""
    return Examined(what, Verdict.OK, words)


def problem(what: str, words: str) -> Examined:
    """Something has to be mended."""
    return Examined(what, Verdict.PROBLEM, words)


def warning(what: str, words: str) -> Examined:
    """Something deserves a look."""
    return Examined(what, Verdict.WARNING, words)


async def examine(wanted: Sequence[Program]) -> AsyncIterator[Examined]:
    """Look at everything, each as far as the environment allows.

    Args:
        wanted: programs for which the environment has to hold everything; of others it is only noted.
    """
    settings = DoctorSettings.load_what_can_be()
    for found in _settings(wanted):
        yield found
    for found in _webhook_secrets(settings.stripe_webhook_secrets):
        yield found
    yield _plans(settings)
    behind = _Behind()
    async for found in _database(settings, behind):
        yield found
    async for found in _temporal(settings, behind):
        yield found
    async for found in _stripe(settings):
        yield found


def _settings(wanted: Sequence[Program]) -> Iterable[Examined]:
    flaws = {program: flaws_of(settings) for program, settings in _SETTINGS.items()}
    malformed = {(flaw.setting, flaw.words) for found in flaws.values() for flaw in found if not flaw.missing}
    for setting, words in sorted(malformed):
        yield problem("settings", f"{setting}: {words}")
    for program, found in flaws.items():
        what, missing = f"settings of the {program}", _missing(found)
        if not missing and not found:
            yield well(what, "complete")
        elif missing:
            lacks = f"not set: {', '.join(missing)}"
            yield problem(what, lacks) if program in wanted else Examined(what, Verdict.NOTE, lacks)


def _missing(flaws: Iterable[Flaw]) -> list[str]:
    return [flaw.setting for flaw in flaws if flaw.missing]


def _webhook_secrets(secrets: Sequence[SecretStr] | None) -> Iterable[Examined]:
    if not secrets:
        return
    what, values = "webhook secrets", [secret.get_secret_value() for secret in secrets]
    odd = False
    for number, value in enumerate(values, start=1):
        if _API_KEY.fullmatch(value):
            odd = True
            yield problem(what, f"number {number} is an API key: take the endpoint's signing secret, whsec_…")
        elif not _SIGNING_SECRET.fullmatch(value):
            odd = True
            yield warning(what, f"number {number} does not look like one of Stripe's, whsec_…: nothing will verify")
    if len(set(values)) < len(values):
        odd = True
        yield warning(what, "one stands there twice")
    if not odd:
        yield well(what, f"{len(values)}, of the right form")


def _plans(settings: DoctorSettings) -> Examined:
    try:
        plans = load_plans(settings.plans_file)
    except PlansError as error:
        return problem("plans", str(error))
    return well("plans", ", ".join(f"{plan.id} ({plan.minutes} minutes, bonus {plan.bonus})" for plan in plans))


async def _database(settings: DoctorSettings, behind: _Behind) -> AsyncIterator[Examined]:
    if settings.database_url is None:
        yield problem("database", "not looked at: set REFERRALS_DATABASE_URL")
        return
    ledger = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        async for found in _ledger(ledger, settings, behind):
            yield found
    except SQLAlchemyError as error:
        yield problem("database", first_line(getattr(error, "orig", None) or error))
    finally:
        await ledger.close()


async def _ledger(ledger: Database, settings: DoctorSettings, behind: _Behind) -> AsyncIterator[Examined]:
    async with ledger.transaction() as transaction:
        known = await condition(transaction, newest_version())
    yield well("database", f"PostgreSQL {known.server}, as {known.role}")
    if known.owns:
        yield warning("database role", f"{known.role} owns the tables: give the program a role that does not")
    newest = newest_version()
    if known.schema == newest:
        yield well("schema", f"version {newest}")
    elif known.schema is None:
        yield problem("schema", "no migration ever ran: referrals migrate")
        return
    elif known.schema < newest:
        yield problem("schema", f"version {known.schema}, and this code wants {newest}: referrals migrate")
    elif known.serves:
        yield warning(
            "schema", f"version {known.schema}; this code knows {newest}, and can work with it: deploy the newer"
        )
    else:
        yield problem("schema", f"version {known.schema} is newer than this code, which knows {newest}: deploy it")
    if known.unreadable and known.schema == newest:
        yield problem("privileges", f"{known.role} cannot read {', '.join(known.unreadable)}")
    async for found in _clocks(ledger, known.offset):
        yield found
    if known.schema != newest or known.unreadable:
        yield Examined("ledger", Verdict.NOTE, "not looked into as long as the schema is not this code's")
        return
    for found in _news_of_stripe(known, may_read=settings.stripe_api_key is not None):
        yield found
    if known.endpoints_gone:
        yield warning("deliveries", f"gone, and sent nothing any more: {', '.join(known.endpoints_gone)}")
    for endpoint, number in known.given_up.items():
        yield warning("deliveries", f"{endpoint} has not taken {_of(number, 'message')} in the end: redeliver each")
    if known.for_people:
        yield Examined(
            "referrals",
            Verdict.NOTE,
            f"{_of(known.for_people, 'referral')} for an operator to look at: referrals list --needs-attention",
        )
    async for found in _what_is_behind(ledger, settings, behind):
        yield found


def _news_of_stripe(known: Condition, *, may_read: bool) -> Iterable[Examined]:
    seen = known.webhooks
    last = f"a signature last fitted {_ago(seen.verified_at)}" if seen.verified_at else "no signature ever fitted"
    if seen.refused and seen.refused_at:
        words = f"{last}, and at least {seen.refused} did not since, the last {_ago(seen.refused_at)}"
        if seen.verified_at and seen.refused_at - seen.verified_at < REFUSED_MEANWHILE:
            yield Examined("webhooks", Verdict.NOTE, words)
        else:
            yield problem("webhooks", f"{words}: take the endpoint's own signing secret into the starter's settings")
    elif seen.verified_at:
        yield well("webhooks", last)
    if known.events_read_until is None:
        if may_read:
            yield warning("reconciliation", "has never read Stripe's events: referrals reconcile")
    elif datetime.now(UTC) - known.events_read_until > READ_WITHIN:
        until = f"{known.events_read_until:%Y-%m-%d %H:%M} UTC"
        yield warning("reconciliation", f"has read Stripe's events until {until}: referrals reconcile")


async def _what_is_behind(ledger: Database, settings: DoctorSettings, behind: _Behind) -> AsyncIterator[Examined]:
    try:
        async with ledger.transaction() as transaction:
            for first, *others in await one_customer(transaction):
                yield warning(
                    "accounts",
                    f"{' and '.join([first, *others])} were reported as one Stripe customer, which stays {first}'s: "
                    f"referrals list --friend {others[-1]}",
                )
        async with ledger.transaction() as transaction:
            plans = load_plans(settings.plans_file)
            behind.referrals = await invariants.behind(transaction, plans, LATE, MOST_LOOKED_AT)
            behind.looked = True
    except PlansError:
        return  # told already
    except SQLAlchemyError as error:
        yield Examined("ledger", Verdict.NOTE, f"not looked into wholly: {first_line(getattr(error, 'orig', error))}")


def _of(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _ago(at: datetime) -> str:
    """How long ago a time is, in the largest unit that fits."""
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{_of(int(seconds // length), unit)} ago"
    return f"{_of(int(seconds), 'second')} ago"


async def _clocks(ledger: Database, offset: str) -> AsyncIterator[Examined]:
    if offset:
        yield problem("clock", f"referrals.clock_offset is set to {offset}; it is for tests alone: reset it")
    async with ledger.transaction() as transaction:
        await database.now(transaction)
        asked = datetime.now(UTC)
        theirs = await database.now(transaction)
        answered = datetime.now(UTC)
    apart = theirs - (asked + (answered - asked) / 2)
    words = f"the database's is {abs(apart.total_seconds()):.1f} s {'ahead' if apart > timedelta(0) else 'behind'}"
    if abs(apart) > CLOCKS_DIFFER:
        yield problem("clock", words)
    elif abs(apart) > CLOCKS_AGREE:
        yield warning("clock", words)
    else:
        yield well("clock", "the database's and this machine's agree")


async def _temporal(settings: DoctorSettings, behind: _Behind) -> AsyncIterator[Examined]:
    try:
        async with asyncio.timeout(PATIENCE.total_seconds()):
            client = await connect()
    except (RuntimeError, ValueError, TimeoutError) as error:
        yield problem("temporal", first_line(error))
        return
    try:
        namespace = await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace)
        )
        kept = namespace.config.workflow_execution_retention_ttl.ToTimedelta()
        yield well("temporal", f"namespace {client.namespace}, closed runs are kept for {kept.days} days")
        async for found in _prepared(client, settings.task_queue):
            yield found
        async for found in _runs(client, settings.task_queue, behind):
            yield found
        async for found in _deliveries(client, settings.task_queue):
            yield found
    except UnreachableError as error:
        yield problem("temporal", first_line(error))
    except RPCError as error:
        missing = error.status is RPCStatusCode.NOT_FOUND
        words = f"there is no namespace {client.namespace}: referrals setup-temporal" if missing else str(error)
        yield problem("temporal", words)


async def _prepared(client: Client, task_queue: str) -> AsyncIterator[Examined]:
    amiss = await attributes_amiss(client)
    for name, words in amiss.items():
        yield problem("search attributes", f"{name} {words}: referrals setup-temporal")
    if not amiss:
        yield well("search attributes", "all are registered")
    late = await schedules_amiss(client, task_queue)
    for schedule_id, words in late.items():
        yield problem("schedules", f"{schedule_id} {words}: referrals setup-temporal, or resume it")
    if not late:
        yield well("schedules", ", ".join(job.schedule_id for job in JOBS))
    for queue in (task_queue, upkeep_queue(task_queue)):
        yield await _workers(client, queue)


async def _workers(client: Client, queue: str) -> Examined:
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            report_stats=True,
        )
    )
    asked = {poller.identity: poller.last_access_time.ToDatetime(UTC) for poller in answer.pollers}
    waiting = answer.stats.approximate_backlog_count
    last, now = max(asked.values(), default=None), datetime.now(UTC)
    none = f"none polls the queue {queue}"
    if last is not None:
        none += f", and {_of(waiting, 'task')} wait there" if waiting else ""
        none += f"; the last that did was there {_ago(last)}"
    if last is None or now - last > POLLS or (waiting and now - last > TAKES_UP):
        return problem("workers", f"{none}: start one, or set REFERRALS_TASK_QUEUE alike")
    return well("workers", f"{sum(now - at <= POLLS for at in asked.values())} on the queue {queue}")


async def _runs(client: Client, task_queue: str, behind: _Behind) -> AsyncIterator[Examined]:
    """What keeps the runs that should have done something, and those of which Temporal itself says that they fail."""
    suspects = behind.referrals | {name: "" for name in await _failing(client) if name not in behind.referrals}
    runs = ReferralRuns(client, task_queue)
    for referral_id, what in suspects.items():
        run = await runs.run(referral_id)
        if run is None:
            keeps = "Temporal knows no run of it"
        elif not run.open:
            keeps = f"its run is over ({run.status.lower()})"
        else:
            keeps = (await explained(client, run)).problem or "its run is just at it"
        words = f"{what}; {keeps}" if what else keeps
        made = warning if run is not None and run.open and run.problem is None else problem
        yield made("runs", f"{referral_id}: {words}: referrals inspect {referral_id}")
    if behind.looked and not suspects:
        yield well("runs", "none is late")


async def _failing(client: Client) -> list[str]:
    """Referrals whose runs fail at their next step again and again; none where the server does not tell."""
    query = f"WorkflowType = '{WORKFLOW}' AND ExecutionStatus = 'Running' AND TemporalReportedProblems IS NOT NULL"
    try:
        return [
            run.id.removeprefix(workflow_id("")) async for run in client.list_workflows(query, limit=MOST_LOOKED_AT)
        ]
    except RPCError as error:
        if error.status is RPCStatusCode.INVALID_ARGUMENT:
            return []
        raise


async def _deliveries(client: Client, task_queue: str) -> AsyncIterator[Examined]:
    """Which endpoints do not take what they are sent, by the deliveries that are under way the longest."""
    query = f"WorkflowType = '{DELIVERY_WORKFLOW}' AND ExecutionStatus = 'Running'"
    number = (await client.count_workflows(query)).count
    not_taken: dict[str, tuple[int, str]] = {}
    async for run in client.list_workflows(query, limit=MOST_LOOKED_AT):
        try:
            description = await client.get_workflow_handle(run.id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                continue
            raise
        for step in description.raw_description.pending_activities:
            if step.activity_type.name != "deliver" or not step.HasField("last_failure"):
                continue
            endpoint = step.activity_options.task_queue.name.removeprefix(delivery_queue(upkeep_queue(task_queue), ""))
            tried, example = not_taken.get(endpoint, (0, ""))
            said = (
                f"{step.last_failure.message}, for {run.id.removeprefix(run_id(''))} after {step.attempt - 1} attempts"
            )
            not_taken[endpoint] = (tried + 1, example or said)
    for endpoint, (_, said) in sorted(not_taken.items()):
        yield warning(
            "deliveries",
            f"{endpoint} does not take what it is sent ({said}); {_of(number, 'message')} under way in all: "
            "once it does, referrals redeliver --waiting",
        )


async def _stripe(settings: DoctorSettings) -> AsyncIterator[Examined]:
    if settings.stripe_api_key is None:
        return
    key = settings.stripe_api_key.get_secret_value()
    api = StripeApi(key, settings.stripe_api_base, retries=0)
    try:
        await api.page("/v1/events", {"limit": 1})
        yield well("stripe", f"{settings.stripe_api_base} answers" + (", in test mode" if "_test_" in key else ""))
    except StripeRefusedError as error:
        yield problem("stripe", f"the key may not read events: {first_line(error)}")
    except StripeUnreachableError as error:
        yield warning("stripe", first_line(error))
    finally:
        await api.close()


_STYLES = {Verdict.OK: "green", Verdict.NOTE: "", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


def render(examined: Sequence[Examined], to: Console) -> None:
    """Show what was found."""
    found = table("", "", "")
    for each in examined:
        row(found, Text(each.verdict, style=_STYLES[each.verdict]), each.what, each.words)
    to.print(found)
