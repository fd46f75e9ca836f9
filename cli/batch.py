"""`referrals batch …`: one thing done to many referrals. Thin: what it does is in `cli/batching.py`."""

import secrets
from contextlib import nullcontext
from datetime import timedelta
from typing import Annotated, Any

import typer

from cli.answers import console, document, fail, perform, say
from program.doubts import flaw_of
from program.referral import Stage

app = typer.Typer(
    help="Do one thing to many referrals: retry, approve, reject or void what a query finds. Try --dry-run first.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

INTERRUPTED = 130

Query = Annotated[
    str | None, typer.Option(help="Those whose run this finds, in the language of Temporal's lists: Plan = 'pro' …")
]
Stages = Annotated[list[Stage] | None, typer.Option("--stage", help="At this stage; may be given more than once.")]
Referrer = Annotated[str | None, typer.Option(help="By the link of this account.")]
Reason = Annotated[
    str | None, typer.Option(help="Refused for it, in doubt or waiting for it: same-email, unknown-price …")
]
Attention = Annotated[
    bool, typer.Option("--needs-attention", help="Only what waits for an operator, or for something to be mended.")
]
AtMost = Annotated[
    int, typer.Option("--at-most", min=1, max=1_000_000, help="If more are like that, nothing is begun.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count what would be acted on, and show some of it.")]
BatchId = Annotated[
    str | None,
    typer.Option("--id", help="Name the batch: said again with the same id, it goes on. [default: one is made up]"),
]
PerSecond = Annotated[float, typer.Option("--per-second", min=0.01, max=1000, help="How many a second at most.")]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, max=64, help="How many are waited for at a time.")]
Patience = Annotated[
    float, typer.Option("--patience", min=1, max=3600, metavar="SECONDS", help="How long to wait for each.")
]
By = Annotated[str, typer.Option("--by", help="Who decides: an id of yours, no e-mail address. It is kept and shown.")]
Note = Annotated[str, typer.Option("--note", help="Why. It is kept and shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON document, and show no progress.")]


@app.command()
def retry(
    query: Query = None,
    stage: Stages = None,
    referrer: Referrer = None,
    reason: Reason = None,
    needs_attention: Attention = False,
    at_most: AtMost = 10_000,
    dry_run: DryRun = False,
    batch_id: BatchId = None,
    per_second: PerSecond = 20,
    at_once: AtOnce = 16,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Have many runs look again at once; what was done already is only read.

    It does not wait for what becomes of each: `referrals failing` and `list --needs-attention` tell. Exit status 0: all
    were asked; 1: some have nothing to retry; 2: some failed or are left, so that it can go on. Needs
    REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    which = (query, stage, referrer, reason, needs_attention, at_most)
    _batch("retry", None, None, which, batch_id, (per_second, at_once, patience), dry_run=dry_run, as_json=as_json)


@app.command()
def approve(
    by: By,
    note: Note,
    query: Query = None,
    stage: Stages = None,
    referrer: Referrer = None,
    reason: Reason = None,
    needs_attention: Attention = False,
    at_most: AtMost = 10_000,
    dry_run: DryRun = False,
    batch_id: BatchId = None,
    per_second: PerSecond = 5,
    at_once: AtOnce = 16,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Approve many referrals that are held or marked for review (rules 19, 20).

    Exit status 0: done to all; 1: some were refused, as they stand; 2: some failed or are left, so that it can go on.
    Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    which = (query, stage, referrer, reason, needs_attention, at_most)
    _batch("approve", by, note, which, batch_id, (per_second, at_once, patience), dry_run=dry_run, as_json=as_json)


@app.command()
def reject(
    by: By,
    note: Note,
    query: Query = None,
    stage: Stages = None,
    referrer: Referrer = None,
    reason: Reason = None,
    needs_attention: Attention = False,
    at_most: AtMost = 10_000,
    dry_run: DryRun = False,
    batch_id: BatchId = None,
    per_second: PerSecond = 5,
    at_once: AtOnce = 16,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Reject many referrals that are held for review: nobody is given a bonus (rule 19).

    Exit status 0: done to all; 1: some were refused, as they stand; 2: some failed or are left, so that it can go on.
    Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    which = (query, stage, referrer, reason, needs_attention, at_most)
    _batch("reject", by, note, which, batch_id, (per_second, at_once, patience), dry_run=dry_run, as_json=as_json)


@app.command()
def void(
    by: By,
    note: Note,
    query: Query = None,
    stage: Stages = None,
    referrer: Referrer = None,
    reason: Reason = None,
    needs_attention: Attention = False,
    at_most: AtMost = 10_000,
    dry_run: DryRun = False,
    batch_id: BatchId = None,
    per_second: PerSecond = 5,
    at_once: AtOnce = 16,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """End many referrals before their credit, or take back what is unused after it; used minutes stay used (rule 20).

    Exit status 0: done to all; 1: some were refused, as they stand; 2: some failed or are left, so that it can go on.
    Needs REFERRALS_DATABASE_URL and TEMPORAL_ADDRESS …
    """
    which = (query, stage, referrer, reason, needs_attention, at_most)
    _batch("void", by, note, which, batch_id, (per_second, at_once, patience), dry_run=dry_run, as_json=as_json)


@app.command()
def resume(
    batch_id: Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")],
    per_second: PerSecond = 5,
    at_once: AtOnce = 16,
    patience: Patience = 60,
    as_json: AsJson = False,
) -> None:
    """Go on with a batch that was cut short, and try again what failed of it; nothing is done twice.

    Of one that is over it says how it ended. Exit status as of the batch.
    """
    _go_on(batch_id, (per_second, at_once, patience), as_json=as_json)


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20, as_json: AsJson = False
) -> None:
    """List the batches begun last, and how far each is (REFERRALS_DATABASE_URL)."""
    from cli import batching
    from ledger import batches
    from ledger.database import Database
    from runtime.settings import LedgerSettings

    async def look() -> list[batches.Begun]:
        database = Database(LedgerSettings.load().database_url.get_secret_value(), pool_size=1)
        try:
            async with database.snapshot() as transaction:
                return await batches.newest(transaction, limit)
        finally:
            await database.close()

    begun = perform(look())
    if as_json:
        document({"batches": begun})
    else:
        batching.render_newest(begun, console())


Which = tuple[str | None, list[Stage] | None, str | None, str | None, bool, int]
Pace = tuple[float, int, float]


def _batch(
    name: str,
    by: str | None,
    note: str | None,
    which: Which,
    batch_id: str | None,
    pace: Pace,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from cli import batching, listing
    from ledger.batches import BatchAction, Order
    from ledger.database import Database
    from ledger.inspection import Wanted
    from runtime.settings import LedgerSettings
    from runtime.temporal import connect

    query, stage, referrer, reason, needs_attention, at_most = which
    choice = batching.Choice(query, Wanted(stage or (), referrer, reason, needs_attention), at_most)
    if not choice.given:
        raise fail("say which: --query, --stage, --referrer, --reason or --needs-attention")
    if reason is not None and reason not in listing.REASONS:
        raise fail(f"--reason is one of {', '.join(listing.REASONS)}")
    if by is not None and note is not None and (flaw := flaw_of(by, note)):
        raise fail(flaw)
    action = BatchAction(name)
    named = batch_id or f"{name}-{secrets.token_hex(4)}"
    if not batching.NAME.fullmatch(named):
        raise fail("--id has up to 40 small letters, digits and hyphens, and begins with a letter or digit")
    order = Order(named, action, by.strip() if by else None, note.strip() if note else None, choice.given)

    async def begin() -> batching.Preview | None:
        settings = LedgerSettings.load()
        client = await connect(lazy=choice.query is None)
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        try:
            if dry_run:
                return await batching.preview(client, database, settings.task_queue, action, choice)
            await batching.begin(client, database, settings.task_queue, order, choice)
            return None
        finally:
            await database.close()

    try:
        previewed = perform(begin())
    except (batching.TooManyError, batching.AnotherBatchError) as error:
        raise fail(error) from None
    if previewed is None:
        say(f"batch {named} is begun; cut short, it goes on with: referrals batch resume {named}")
        _go_on(named, pace, as_json=as_json)
    elif as_json:
        document(previewed)
    else:
        batching.render_preview(previewed, console())


def _go_on(batch_id: str, pace: Pace, *, as_json: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cli import batching
    from ledger.database import Database
    from runtime.settings import LedgerSettings
    from runtime.temporal import connect

    per_second, at_once, patience = pace
    shown = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=shown) if shown.is_terminal and not as_json else None
    bar = progress.add_task(batch_id, total=None) if progress else None

    def report(over: int, chosen: int) -> None:
        if progress is not None and bar is not None:
            progress.update(bar, completed=over, total=chosen)

    async def go_on() -> batching.Batch:
        settings = LedgerSettings.load()
        client = await connect()
        database = Database(settings.database_url.get_secret_value(), pool_size=at_once)
        try:
            return await batching.go_on(
                client,
                database,
                settings.task_queue,
                batch_id,
                per_second,
                at_once,
                timedelta(seconds=patience),
                report,
            )
        finally:
            await database.close()

    try:
        showing: Any = progress or nullcontext()
        with showing:
            batch = perform(go_on(), status=2)
    except batching.UnknownBatchError as error:
        raise fail(error) from None
    except KeyboardInterrupt:
        raise fail(f"interrupted; go on with: referrals batch resume {batch_id}", INTERRUPTED) from None
    if as_json:
        document({"batch": batch.order, "tally": batch.tally, "stopped": batch.stopped})
    else:
        batching.render(batch, console())
    if batch.status:
        raise typer.Exit(batch.status)
