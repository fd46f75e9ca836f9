"""The operators' commands: look, decide, repair, examine. Thin: what each does is in the module of its name."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import batch
from cli.answers import console, document, fail, perform, say
from cli.programs import Program
from program.doubts import Action
from program.referral import Stage
from program.signals import Handling

app = typer.Typer()
app.add_typer(batch.app, name="batch")

AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
Referral = Annotated[str, typer.Argument(metavar="REFERRAL", help="The referral's id; referral-… will do.")]
By = Annotated[str, typer.Option("--by", help="Who decides: an id of yours, no e-mail address. It is kept and shown.")]
Note = Annotated[str, typer.Option("--note", help="Why. It is kept and shown.")]
Patience = Annotated[
    float, typer.Option("--patience", min=1, max=3600, metavar="SECONDS", help="How long to wait for a worker.")
]
MOST_PERCENT = 100
COULD_NOT = 2
"""How a check ends that could not be made: neither yes nor no."""


def _id(referral: str) -> str:
    return referral.strip().removeprefix("referral-").removesuffix("-review")


@app.command()
def inspect(referral: Referral, as_json: AsJson = False) -> None:
    """Tell the whole story of a referral: stages, payments, decisions, bonuses, messages, and its run in Temporal.

    Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …; with REFERRALS_UI_URL there is a link into Temporal's Web UI.
    """
    from cli import inspect as inspecting
    from ledger.database import Database
    from program.plans import load_plans
    from runtime.settings import InspectSettings
    from runtime.temporal import connect

    async def look() -> inspecting.Inspected:
        settings = InspectSettings.load()
        plans = load_plans(settings.plans_file)
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            return await inspecting.inspect(
                await connect(lazy=True), database, plans, settings.task_queue, settings.ui_url, _id(referral)
            )
        finally:
            await database.close()

    try:
        seen = perform(look())
    except inspecting.UnknownReferralError:
        raise fail(f"there is no referral {_id(referral)}, or no longer") from None
    if as_json:
        document(seen)
    else:
        inspecting.render(seen, console())


@app.command("list")
def list_referrals(
    stage: Annotated[list[Stage] | None, typer.Option(help="At this stage; may be given more than once.")] = None,
    referrer: Annotated[str | None, typer.Option(help="By the link of this account.")] = None,
    friend: Annotated[str | None, typer.Option(help="Whose friend this account is.")] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Refused for it, in doubt or waiting for it: same-email, disputed, unknown-price …"),
    ] = None,
    needs_attention: Annotated[
        bool, typer.Option("--needs-attention", help="Only what waits for an operator, or for something to be mended.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on after a page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List referrals with a signup, the newest click first (REFERRALS_DATABASE_URL)."""
    from cli import listing
    from ledger.database import Database
    from ledger.inspection import Page, Wanted
    from runtime.settings import LedgerSettings

    if reason is not None and reason not in listing.REASONS:
        raise fail(f"--reason is one of {', '.join(listing.REASONS)}")

    async def look() -> Page:
        database = Database(LedgerSettings.load().database_url.get_secret_value(), pool_size=1)
        try:
            return await listing.page_of(
                database, Wanted(stage or (), referrer, reason, needs_attention, friend), limit, cursor
            )
        finally:
            await database.close()

    try:
        page = perform(look())
    except listing.InvalidCursorError as error:
        raise fail(f"--cursor: {error}") from None
    if as_json:
        document({"referrals": page.referrals, "next_cursor": listing.cursor_of(page.next)})
    else:
        listing.render(page, console())


@app.command()
def review(
    referral: Referral,
    by: By,
    note: Note,
    approve: Annotated[bool, typer.Option("--approve", help="The bonus is given, or stands.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Nobody is given a bonus.")] = False,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Decide about a referral that is held or marked for review, and wait for what becomes of it (rules 19, 20).

    A worker carries it out. Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    if approve == reject:
        raise fail("give either --approve or --reject")
    _decide(referral, Action.APPROVE if approve else Action.REJECT, by, note, patience, as_json=as_json)


@app.command()
def void(referral: Referral, by: By, note: Note, patience: Patience = 60, as_json: AsJson = False) -> None:
    """End a referral before its credit, or take back what is unused after it; used minutes stay used (rule 20).

    A worker carries it out. Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    _decide(referral, Action.VOID, by, note, patience, as_json=as_json)


def _decide(referral: str, action: Action, by: str, note: str, patience: float, *, as_json: bool) -> None:
    from cli import decide as deciding
    from cli.waiting import NoAnswerError
    from ledger.database import Database
    from runtime.settings import LedgerSettings
    from runtime.temporal import connect
    from workflows.client import DecisionRefusedError

    async def decide() -> deciding.Decided:
        settings = LedgerSettings.load()
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            return await deciding.decide(
                await connect(),
                database,
                settings.task_queue,
                _id(referral),
                action,
                by,
                note,
                say,
                timedelta(seconds=patience),
            )
        finally:
            await database.close()

    try:
        decided = perform(decide())
    except DecisionRefusedError as error:
        raise fail(f"refused: {error}") from None
    except NoAnswerError as error:
        raise fail(f"not decided within {patience:g} seconds: {error} Look again: referrals inspect") from None
    if as_json:
        document(decided)
    else:
        console().print(deciding.in_words(decided), soft_wrap=True)


@app.command()
def retry(referral: Referral, patience: Patience = 60, as_json: AsJson = False) -> None:
    """Have a referral's run look again at once: a step that failed, a payment, a bonus that is due; wait for it.

    What was done already is only read, so nobody is credited twice. Exit status 1: it has not looked, or still needs
    attention. Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    from cli import retry as retrying
    from cli.waiting import NoAnswerError
    from ledger.database import Database
    from runtime.settings import LedgerSettings
    from runtime.temporal import connect

    async def look_again() -> retrying.Retried:
        settings = LedgerSettings.load()
        client = await connect()
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            return await retrying.retry(
                client, database, settings.task_queue, _id(referral), say, timedelta(seconds=patience)
            )
        finally:
            await database.close()

    try:
        retried = perform(look_again())
    except retrying.NothingToRetryError as error:
        raise fail(f"nothing to retry: {error}") from None
    except NoAnswerError as error:
        raise fail(f"asked, and not done within {patience:g} seconds: {error}") from None
    if as_json:
        document(retried)
    else:
        console().print(retrying.in_words(retried), soft_wrap=True)
    if retried.needs_attention:
        raise typer.Exit(1)


@app.command()
def failing(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 100, as_json: AsJson = False
) -> None:
    """List the runs whose step keeps failing, as Temporal knows them: also while the database is away.

    A run is listed within a minute, and no longer once its step has succeeded. Exit status 1: there are such runs; 2:
    it could not be asked. Needs TEMPORAL_ADDRESS …
    """
    from cli import retry as retrying
    from runtime.settings import TemporalSetupSettings
    from runtime.temporal import connect
    from workflows.client import Failing, ReferralRuns

    async def look() -> list[Failing]:
        return await ReferralRuns(await connect(), TemporalSetupSettings.load().task_queue).failing(limit)

    found = perform(look(), status=COULD_NOT)
    if as_json:
        document({"failing": found})
    else:
        retrying.render_failing(found, console())
    if found:
        raise typer.Exit(1)


@app.command()
def attribute(
    account: Annotated[
        str, typer.Argument(metavar="ACCOUNT", help="The friend's account, which the backend reported.")
    ],
    by: By,
    note: Note,
    code: Annotated[str | None, typer.Option(help="The code of the link that was followed; or")] = None,
    referrer: Annotated[str | None, typer.Option(help="the account whose link it is.")] = None,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Attribute a signup that lost its link, on an operator's word, and wait for what the referral's run decides.

    It goes the way of every signup: rules 10, 15 and 18 decide, and nobody is credited twice. Needs
    REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …, and the starter's REFERRALS_ATTRIBUTION_WINDOW where that is set.
    """
    from cli import attribute as attributing
    from cli.waiting import NoAnswerError
    from ledger.accounts import UnknownAccountError
    from ledger.attributions import NotAttributableError
    from ledger.database import Database
    from runtime.settings import AttributeSettings
    from runtime.temporal import connect

    if (code is None) == (referrer is None):
        raise fail("give either --code or --referrer")

    async def attribute_it() -> attributing.AttributedByHand:
        settings = AttributeSettings.load()
        client = await connect()
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            return await attributing.attribute(
                client,
                database,
                settings.task_queue,
                settings.attribution_window,
                account,
                code=code,
                referrer_id=referrer,
                by=by,
                note=note,
                say=say,
                patience=timedelta(seconds=patience),
            )
        finally:
            await database.close()

    try:
        done = perform(attribute_it())
    except NotAttributableError as error:
        raise fail(f"not attributed: {error}") from None
    except UnknownAccountError:
        raise fail(f"the backend has reported no account {account}: PUT /v1/accounts/{account} first") from None
    except NoAnswerError as error:
        raise fail(f"on record, and not decided within {patience:g} seconds: {error}") from None
    if as_json:
        document(done)
    else:
        console().print(attributing.in_words(done), soft_wrap=True)
    if not done.stage.attributed:
        raise typer.Exit(1)


@app.command()
def check(
    late: Annotated[
        int, typer.Option(min=1, metavar="MINUTES", help="How late may be what the program does by itself at once.")
    ] = 15,
    untold: Annotated[
        int,
        typer.Option(min=1, metavar="MINUTES", help="How late may be heard of what Stripe told; hourly made up for."),
    ] = 90,
    examples: Annotated[int, typer.Option(min=1, max=1000, help="How many ids to name of what is broken.")] = 20,
    ledger_only: Annotated[bool, typer.Option("--ledger-only", help="Leave the runs in Temporal aside.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that everything holds which always holds: in all of the ledger, and between it and the open runs.

    It only reads, in one snapshot. Exit status 0: it holds; 1: something does not; 2: it could not be checked. Needs
    REFERRALS_DATABASE_URL, and TEMPORAL_ADDRESS … for the runs.
    """
    from cli import check as checking
    from ledger.database import Database
    from ledger.invariants import Patience as Lateness
    from program.plans import load_plans
    from runtime.settings import LedgerSettings
    from runtime.temporal import connect

    shown = console(stderr=True)

    async def look() -> checking.Checked:
        settings = LedgerSettings.load()
        plans = load_plans(settings.plans_file)
        lateness = Lateness(timedelta(minutes=late), timedelta(minutes=untold))
        client = None if ledger_only else await connect()
        database = Database(settings.database_url.get_secret_value(), pool_size=2)
        try:
            with shown.status("reading the ledger") as status:
                checked = await checking.check_ledger(database, plans, lateness, examples, status.update)
                if client is not None:
                    await checking.check_runs(client, database, settings.task_queue, checked, examples, status.update)
            return checked
        finally:
            await database.close()

    checked = perform(look(), status=COULD_NOT)
    if as_json:
        document({"holds": checked.holds, "looked_at": checked.looked_at, "findings": checked.findings})
    else:
        checking.render(checked, console())
    if not checked.holds:
        raise typer.Exit(1)


@app.command("what-if")
def what_if(
    plans_file: Annotated[
        Path | None, typer.Option("--plans", help="Other plans than those on sale: a file like plans.toml.")
    ] = None,
    bonus_percent: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="What each side gets of the plan's minutes, 12.5 say.")
    ] = None,
    attribution_window: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long every click counts: 30d, 12h …")
    ] = None,
    same_card: Annotated[
        bool | None, typer.Option(help="Whether the card that paid is compared with the referrer's.")
    ] = None,
    same_device: Annotated[Handling | None, typer.Option(help="Signed up with the referrer's browser.")] = None,
    disposable_email: Annotated[Handling | None, typer.Option(help="Signed up with a throw-away address.")] = None,
    many_signups: Annotated[Handling | None, typer.Option(help="Many signups on one link in a day;")] = None,
    signups_a_day: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="more than so many.")] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            help="Only what was clicked from then on, UTC.",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, max=1000, help="How many referrals to name of each group.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Try a changed rule over past referrals: who would be credited otherwise, and how many minutes more or less.

    It only reads, in one snapshot, and asks the rules of the program themselves, once as they are and once changed.
    As they are is what the environment says, as the worker has it (REFERRALS_PLANS_FILE, REFERRALS_SIGNAL_…, and
    REFERRALS_STRIPE_API_KEY for cards). Exit status 2: it could not be tried. Needs REFERRALS_DATABASE_URL.
    """
    from cli import what_if as trying
    from ledger.database import Database
    from program.hindsight import Rules
    from program.plans import load_plans
    from runtime.settings import WhatIfSettings, duration

    given: dict[str, Any] = {"same_card": same_card, "same_device": same_device, "disposable_email": disposable_email}
    given |= {"many_signups": many_signups, "signups_a_day": signups_a_day}
    signs = {name: value for name, value in given.items() if value is not None}
    try:
        percent = None if bonus_percent is None else Fraction(bonus_percent)
        window = None if attribution_window is None else duration(attribution_window)
    except (ValueError, ZeroDivisionError) as error:
        raise fail(error, COULD_NOT) from None
    if percent is not None and not 0 < percent <= MOST_PERCENT:
        raise fail(f"--bonus-percent is more than 0, and {MOST_PERCENT} at most", COULD_NOT)
    begins = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
    shown = console(stderr=True)

    async def try_it() -> trying.Tried:
        settings = WhatIfSettings.load()
        now = Rules(load_plans(settings.plans_file), settings.signals)
        plans = load_plans(plans_file) if plans_file else None
        tried = trying.rules(now, plans, percent, window, replace(now.policy, **signs))
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            with shown.status("reading the ledger") as status:
                return await trying.try_over_the_past(
                    database, now, tried, begins, examples, lambda seen: status.update(f"{seen} looked at")
                )
        finally:
            await database.close()

    try:
        tried = perform(try_it(), status=COULD_NOT)
    except (trying.NothingTriedError, trying.NoBonusError) as error:
        raise fail(error, COULD_NOT) from None
    if as_json:
        document(tried)
    else:
        trying.render(tried, console())


@app.command()
def replay(
    days: Annotated[int, typer.Option(min=0, max=365, help="Closed runs as well, of the last so many days.")] = 7,
    clicks: Annotated[
        int, typer.Option(min=0, help="So many of the runs that wait for a signup, the newest; few have a history.")
    ] = 1000,
    query: Annotated[
        str | None, typer.Option(help="Only what this finds too, in the language of Temporal's lists.")
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, max=64, help="How many histories are read and replayed at a time.")
    ] = 4,
    as_json: AsJson = False,
) -> None:
    """Replay a namespace's open and recent runs against the code at hand: before a deploy (TEMPORAL_ADDRESS …).

    It changes nothing. Exit status 0: the code can go on with all of them; 1: with some it cannot; 2: it could not be
    tried.
    """
    from cli import replay as replaying
    from runtime.temporal import connect

    # What is found is said in the answer, once.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    shown = console(stderr=True)

    async def try_all() -> replaying.Replayed:
        client = await connect()
        extent = replaying.Extent(timedelta(days=days), clicks, at_once, query)
        with shown.status("listing runs") as status:

            def report(so_far: replaying.Replayed) -> None:
                status.update(f"{so_far.seen} runs looked at, {len(so_far.failures)} failed")

            return await replaying.replay(client, extent, report)

    replayed = perform(try_all(), status=COULD_NOT)
    if as_json:
        document(replayed)
    else:
        replaying.render(replayed, console())
    if replayed.failures:
        raise typer.Exit(1)


@app.command()
def doctor(
    program: Annotated[
        list[Program] | None, typer.Option("--for", help="The environment has to hold all that this program needs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine settings, database, Temporal, Stripe, plans and clocks, and say what has to be mended.

    It reads the environment that it is given, as the worker or the starter would. Exit status 1: something has to be
    mended.
    """
    from cli import doctor as examining

    async def examine() -> list[examining.Examined]:
        return [found async for found in examining.examine(program or ())]

    examined = perform(examine())
    sound = not any(found.verdict is examining.Verdict.PROBLEM for found in examined)
    if as_json:
        document({"sound": sound, "examined": examined})
    else:
        examining.render(examined, console())
    if not sound:
        raise typer.Exit(1)
