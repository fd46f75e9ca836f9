"""The whole story of one referral: what the ledger has, what Temporal has, and where they differ."""

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import OperationalError
from temporalio.client import Client

from cli.answers import first_line, row, shown, table
from cli.runs import disagreement, explained, link
from ledger import inspection
from ledger.database import Database
from ledger.inspection import Story
from program.plans import Plans
from workflows.client import Click, ReferralRuns, Run, UnreachableError

PAYMENTS_SHOWN = 6
"""How many of a friend's payments are shown to people; the document has them all."""


class UnknownReferralError(Exception):
    """Neither the ledger nor Temporal knows the referral."""


@dataclass(frozen=True)
class Shown:
    """A run, with its address in the Web UI where that is known."""

    run: Run
    link: str | None


@dataclass(frozen=True)
class Inspected:
    """What is known of a referral.

    Args:
        referral_id: which.
        story: what the ledger has; none of a mere click.
        click: what Temporal has of a mere click.
        run: the referral's own run; none where Temporal knows it no longer.
        review: the run in which an operator decides after that one is closed.
        disagreement: where ledger and run say different things.
        unreachable: why Temporal could not be asked, so that nothing is said of runs.
        ledger_unreachable: why the ledger could not be asked, so that there is only what Temporal has.
    """

    referral_id: str
    story: Story | None
    click: Click | None
    run: Shown | None
    review: Shown | None
    disagreement: str | None
    unreachable: str | None = None
    ledger_unreachable: str | None = None


async def inspect(
    client: Client, database: Database, plans: Plans, task_queue: str, ui_url: str | None, referral_id: str
) -> Inspected:
    """Look at a referral. What one of ledger and Temporal has is told also where the other cannot be reached.

    Raises:
        UnknownReferralError: nobody knows it.
        UnreachableError: the ledger does not know it, and Temporal could not be reached.
        OperationalError: the ledger could not be asked, and Temporal knows no run.
    """
    runs = ReferralRuns(client, task_queue)
    story, away = None, None
    try:
        async with database.snapshot() as transaction:
            story = await inspection.story(transaction, referral_id, plans)
    except OperationalError as error:
        away = error
    try:
        run, review = await runs.run(referral_id), await runs.run(referral_id, review=True)
    except UnreachableError as error:
        if story is None:
            raise
        return Inspected(referral_id, story, None, None, None, None, first_line(error))
    if away is not None:
        if run is None:
            raise away
        shown = Shown(run, link(ui_url, client.namespace, run))
        return Inspected(referral_id, None, None, shown, None, None, ledger_unreachable=first_line(away.orig))
    click = await runs.click(referral_id) if story is None else None
    if story is None and click is None:
        raise UnknownReferralError(referral_id)
    different = None
    if story is not None:
        stands = story.referral
        different = disagreement(stands.stage, run, voided=stands.voided_at is not None)

    async def with_link(of: Run | None) -> Shown | None:
        return Shown(await explained(client, of), link(ui_url, client.namespace, of)) if of else None

    return Inspected(referral_id, story, click, await with_link(run), await with_link(review), different)


def render(seen: Inspected, to: Console) -> None:
    """Show it on one screen."""
    if seen.story is not None:
        _standing(seen.story, to)
        _story(seen.story, to)
        _payments(seen.story, to)
        _decisions(seen.story, to)
        _grants(seen.story, to)
        _messages(seen.story, to)
    elif seen.click is not None:
        facts = table("", "")
        row(facts, "referral", Text(f"{seen.referral_id}  {seen.click.stage}", style="bold"))
        row(facts, "why", seen.click.reason or "nobody has signed up with this click yet")
        row(facts, "referrer", seen.click.referrer)
        row(facts, "clicked", seen.click.clicked_at)
        to.print(facts)
    if seen.ledger_unreachable is not None:
        words = f"The ledger cannot be reached: {seen.ledger_unreachable}"
        to.print(Text(words, style="bold red"), soft_wrap=True)
    _runs(seen, to)


def _standing(story: Story, to: Console) -> None:
    referral = story.referral
    facts = table("", "")
    row(facts, "referral", Text(f"{referral.referral_id}  {referral.stage}", style="bold"))
    if referral.voided_at is not None:
        row(facts, "void since", referral.voided_at)
    row(facts, "why", referral.reason)
    if referral.needs_attention:
        row(facts, "needs attention", Text(referral.needs_attention, style="bold"))
    if referral.review_reasons:
        row(facts, "in doubt", referral.review_reasons)
    row(facts, "referrer", f"{referral.referrer_account_id}, by code {referral.code} ({referral.channel})")
    row(facts, "friend", referral.referee_account_id)
    for other in story.shared:
        what = "e-mail address" if other.kind == "email" else "Stripe customer"
        whose = f"{other.account_id}{' (erased)' if other.erased else ''}"
        row(facts, "shares", f"its {what} with {whose}, {'which had it first' if other.first else 'and had it first'}")
    if referral.plan:
        row(facts, "bonus", f"{referral.bonus_minutes} minutes each, for plan {referral.plan}")
    if story.attributed:
        vouched = story.attributed
        row(facts, "attributed", f"{shown(vouched.at)} by {vouched.by}: {vouched.note}")
    to.print(facts)


def _story(story: Story, to: Console) -> None:
    referral = story.referral
    steps = table("when", "stage", "why", title="\nStory")
    row(steps, referral.clicked_at, "clicked", f"an account made before {shown(referral.signup_until)} counts")
    if referral.reserved_at is not None:
        row(steps, referral.reserved_at, "", "the signup was reported")
    for step in story.steps:
        row(steps, step.at, step.stage, step.reason)
    to.print(steps)


def _payments(story: Story, to: Console) -> None:
    if not story.payments:
        return
    paid = table("paid at", "invoice", "paid (cents)", "plan", "price", "", title="\nPayments of the friend")
    for payment in story.payments[:PAYMENTS_SHOWN]:
        remarks = [
            *(["qualifies"] if payment.qualifying else []),
            *([f"{payment.refunded} given back"] if payment.refunded else []),
            *(["disputed"] if payment.disputed else []),
            *(["the referrer's own card"] if payment.same_card else []),
        ]
        prices = [
            f"{price.price_id} ({price.lookup_key or price.product_id or 'nothing known of it'})"
            for price in payment.prices
        ]
        row(paid, payment.paid_at, payment.invoice_id, payment.amount_paid, payment.plan or "none", prices, remarks)
    if (left := len(story.payments) - PAYMENTS_SHOWN) > 0:
        row(paid, f"and {left} later", "", "", "", "", "")
    to.print(paid)


def _decisions(story: Story, to: Console) -> None:
    if not story.reviews:
        return
    decisions = table("when", "decision", "by", "why", "in doubt", "taken back", title="\nDecisions")
    for made in story.reviews:
        taken = [f"{role} {minutes}" for role, minutes in sorted(made.minutes_voided.items())]
        row(decisions, made.at, made.action, made.by, made.note, made.reasons, taken)
    to.print(decisions)


def _grants(story: Story, to: Console) -> None:
    for lot in story.grants:
        over = f"void since {shown(lot.voided_at)}" if lot.voided_at else f"ends {shown(lot.expires_at)}"
        if lot.expired_at:
            over = f"expired {shown(lot.expired_at)}"
        left = f"{lot.remaining} of {lot.minutes} minutes left"
        to.print(Text(f"\nBonus of the {lot.role} {lot.account_id}: {left}, {over}", style="bold"), soft_wrap=True)
        journal = table("when", "entry", "minutes", "operation")
        for entry in lot.journal:
            row(journal, entry.at, entry.kind, f"{entry.delta:+d}", entry.operation_key)
        to.print(journal)


def _messages(story: Story, to: Console) -> None:
    if not story.messages:
        return
    told = table("when", "message", "id", "delivery", title="\nTold to the backend")
    for message in story.messages:
        deliveries = [f"{one.endpoint}: {one.problem or one.state} {shown(one.at)}" for one in message.deliveries]
        if message.due_at is not None:
            deliveries.append(f"to be delivered, looked after {shown(message.due_at)}")
        about = f"{message.type} ({message.account_id})" if message.account_id else message.type
        row(told, message.created_at, about, message.message_id, deliveries or ["to nobody"])
    to.print(told)


def _runs(seen: Inspected, to: Console) -> None:
    if seen.unreachable is not None:
        to.print(Text(f"\nTemporal cannot be reached: {seen.unreachable}", style="bold red"), soft_wrap=True)
        return
    runs = table("run", "status", "stage", "events", "since", "", title="\nTemporal")
    for each in (seen.run, seen.review):
        if each is None:
            continue
        run = each.run
        row(
            runs,
            run.workflow_id,
            run.status.lower(),
            run.stage,
            run.events,
            run.closed_at or run.started_at,
            run.problem,
        )
    if seen.run is None and seen.review is None:
        row(runs, "knows nothing of it any more", "", "", "", "", "")
    to.print(runs)
    for each in (seen.run, seen.review):
        if each is not None and each.link is not None:
            to.print(Text(each.link), soft_wrap=True)
    if seen.disagreement:
        words = f"\nThe ledger and the run disagree: {seen.disagreement}. Look again in a moment."
        to.print(Text(words, style="bold red"), soft_wrap=True)
