"""The console script `referrals`: the development stack, and the chores of a deployment."""

import asyncio
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import deploying, operators
from cli.answers import document, fail, say
from cli.operators import AsJson

app = typer.Typer(
    help="KallyAI's referral program.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A rich traceback shows local variables, and some of ours are secrets.
    pretty_exceptions_enable=False,
)


@app.callback()
def _program() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")


@app.command()
def dev(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data; by default .local of the project.", envvar="REFERRALS_DEV_FOLDER"),
    ] = None,
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="Port of the starter.", envvar=["REFERRALS_DEV_PORT", "REFERRALS_PORT"]),
    ] = 8000,
    temporal_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Temporal.", envvar="REFERRALS_DEV_TEMPORAL_PORT")
    ] = 7233,
    ui_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Temporal's Web UI.", envvar="REFERRALS_DEV_UI_PORT")
    ] = 8233,
    postgres_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of PostgreSQL.", envvar="REFERRALS_DEV_POSTGRES_PORT")
    ] = 5433,
    metrics_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the worker's metrics.", envvar="REFERRALS_DEV_METRICS_PORT")
    ] = 9464,
    temporal: Annotated[
        str | None,
        typer.Option(
            help="Another Temporal CLI than the installed package's: a path, or a program on the PATH.",
            envvar="REFERRALS_DEV_TEMPORAL",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the walk; its outcome is the exit status.")] = False,
    walk: Annotated[bool, typer.Option(help="Walk one referral from its click to the expiry of both bonuses.")] = True,
    plan: Annotated[str, typer.Option(help="The plan that the friend buys in the walk.")] = "pro",
    cycle_seconds: Annotated[
        float, typer.Option(min=2, max=3600, help="How long after the payment the first of the two cycles ends.")
    ] = 6,
) -> None:
    """Run the whole stack here, take one referral through it, and stay up until Ctrl-C.

    The servers are real and embedded: PostgreSQL, and Temporal with its Web UI. With REFERRALS_DATABASE_URL or
    TEMPORAL_ADDRESS in the environment that database or that Temporal is used instead. Whatever REFERRALS_ setting the
    environment has wins over the stack's own.
    """
    try:
        from devstack.command import run
    except ModuleNotFoundError as error:
        raise fail(f"the development stack is not installed here ({error.name} is missing): make setup") from None
    from devstack.command import DevOptions

    raise typer.Exit(
        run(
            DevOptions(
                data=data,
                port=port,
                temporal_port=temporal_port,
                ui_port=ui_port,
                postgres_port=postgres_port,
                metrics_port=metrics_port,
                temporal=temporal,
                once=once,
                walk=walk or once,
                plan=plan,
                cycle_seconds=cycle_seconds,
            )
        )
    )


@app.command()
def demo(
    members: Annotated[int, typer.Option(min=12, max=5000, help="How many members, friends among them.")] = 200,
    seed: Annotated[
        int, typer.Option(min=0, max=999_999, help="The same seed gives the same members, and adds them once.")
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the development stack; by default .local of the project.", envvar="REFERRALS_DEV_FOLDER"
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Fill a stack that is not the development stack's own: never a real one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fill a running stack with a believable population to look at: half a year of members and their friends.

    The stack is that of `make run`, in another terminal; or, with --yes, the one that the environment names
    (REFERRALS_DATABASE_URL, REFERRALS_IDENTITY_HASH_KEY, TEMPORAL_ADDRESS …, and REFERRALS_URL and REFERRALS_API_KEY
    for the dashboards' addresses). Nothing of it can be taken out again. The same again adds nothing.
    """
    try:
        from devstack.demo_command import DemoOptions, run
    except ModuleNotFoundError as error:
        raise fail(f"the development stack is not installed here ({error.name} is missing): make setup") from None
    from devstack.errors import StackError

    try:
        filled = run(DemoOptions(members, seed, data, yes), silent=as_json)
    except StackError as error:
        raise fail(error) from None
    if as_json:
        document(filled)


@app.command()
def portal(
    account: Annotated[str, typer.Argument(help="Whose dashboard: the backend's id of the account.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the development stack; by default .local of the project.", envvar="REFERRALS_DEV_FOLDER"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an address that opens a member's dashboard, once, within minutes.

    The deployment is the one that REFERRALS_URL and REFERRALS_API_KEY name, else the development stack's.
    """
    import os

    from devstack.errors import StackError
    from devstack.portal import deployment, new_session
    from runtime.settings import PROJECT

    try:
        session = new_session(deployment(os.environ, data or PROJECT / ".local"), account)
    except StackError as error:
        raise fail(error) from None
    if as_json:
        document(session)
    else:
        typer.echo(session.url)


@app.command()
def reconcile(
    since: Annotated[
        datetime | None,
        typer.Option(
            help="Read the events from then on, UTC; Stripe keeps 30 days. [default: where the last one ended]",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reconcile with Stripe now, and wait for it: find what no webhook told of (TEMPORAL_ADDRESS …).

    The workers do it; they need REFERRALS_STRIPE_API_KEY and REFERRALS_IDENTITY_HASH_KEY. Ctrl-C ends the waiting only.
    """
    from temporalio.client import WorkflowFailureError
    from temporalio.service import RPCError

    from cli.reconcile import AlreadyRunningError, mended
    from cli.reconcile import reconcile as reconcile_now
    from runtime.settings import ReconcileSettings, SettingsError
    from runtime.temporal import connect

    async def wait() -> None:
        settings = ReconcileSettings.load()
        begins = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
        if begins and begins > datetime.now(UTC):
            raise fail("--since lies in the future")
        reconciled = await reconcile_now(await connect(), settings.task_queue, begins, say if as_json else typer.echo)
        if not reconciled.possible or reconciled.progress is None:
            raise fail("the workers need REFERRALS_STRIPE_API_KEY and REFERRALS_IDENTITY_HASH_KEY for that")
        if as_json:
            document(reconciled.progress)
        for line in () if as_json else mended(reconciled.progress):
            typer.echo(line)

    try:
        asyncio.run(wait())
    except (SettingsError, AlreadyRunningError, RuntimeError, RPCError) as error:
        raise fail(error) from None
    except WorkflowFailureError as error:
        raise fail(f"the reconciliation came to no end: {error.cause}") from None


@app.command("import")
def import_from_stripe(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be stored.")] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin at the beginning, not where an interrupted import stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring in what Stripe knows already: prices, subscriptions, paid invoices and their payments.

    Before going live, once the webhook endpoint is there. It may be interrupted and repeated. Referrals that wait for
    what is found are told by the next reconciliation. Needs REFERRALS_DATABASE_URL, REFERRALS_STRIPE_API_KEY, and the
    starter's REFERRALS_IDENTITY_HASH_KEY.
    """
    from billing.api import StripeApi, StripeRefusedError, StripeUnreachableError
    from cli.stripe_import import Imported, StripeImport
    from ledger.database import Database, TransactionFailedError
    from program.identity import IdentityHash
    from program.plans import PlansError, load_plans
    from runtime.settings import ImportSettings, SettingsError

    async def bring_in() -> None:
        settings = ImportSettings.load()
        plans = load_plans(settings.plans_file)
        hashes = IdentityHash(settings.identity_hash_key.get_secret_value())
        database = Database(settings.database_url.get_secret_value(), pool_size=1)
        api = StripeApi(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base)
        try:
            told = say if as_json else typer.echo
            brought_in = StripeImport(database, api, plans, hashes, told, dry_run=dry_run)
            done = await brought_in.run(anew=anew)
        finally:
            await api.close()
            await database.close()
        if as_json:
            document({**asdict(done), "stored": not dry_run})
        else:
            tell(done)
        if done.unreadable:
            raise fail(f"{done.unreadable} could not be read")

    def tell(done: Imported) -> None:
        typer.echo(f"{done.read} read, {done.new} new" + (", nothing stored" if dry_run else ", all stored"))
        if done.to_tell:
            typer.echo(
                f"{done.to_tell} concern open referrals: the next reconciliation tells them (referrals reconcile)"
            )

    try:
        asyncio.run(bring_in())
    except (SettingsError, PlansError, StripeRefusedError) as error:
        raise fail(error) from None
    except TransactionFailedError as error:
        raise fail(f"the database: {error}") from None
    except StripeUnreachableError as error:
        raise fail(f"{error}; import again, and it goes on from there") from None


@app.command()
def record_history(
    workflow_id: Annotated[str, typer.Argument(help="Of the referral's run: referral-…")],
    file: Annotated[Path, typer.Argument(help="Written anew, as JSON.")],
    run_id: Annotated[str | None, typer.Option(help="One run of several. [default: the newest]")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's history into a file that can be replayed, without names of machines (TEMPORAL_ADDRESS …)."""
    from temporalio.service import RPCError

    from cli.record import record_history as record
    from runtime.temporal import connect

    async def write() -> None:
        events = await record(await connect(), workflow_id, file, run_id)
        if as_json:
            document({"workflow_id": workflow_id, "file": str(file), "events": events})
        else:
            typer.echo(f"{events} events of {workflow_id} are in {file}")

    try:
        asyncio.run(write())
    except (RuntimeError, RPCError, OSError) as error:
        raise fail(error) from None


@app.command()
def redeliver(
    delivery_id: Annotated[
        str | None, typer.Argument(help="Of the message or of its run: msg_…, delivery-msg_…; or --waiting")
    ] = None,
    endpoint: Annotated[list[str] | None, typer.Option(help="To this one alone, by name. [default: all]")] = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="All that wait for their next attempt, to those that have not taken them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have a message to the backend delivered again, under the same id (REFERRALS_DATABASE_URL, TEMPORAL_ADDRESS …).

    An endpoint that was away is tried again by itself, after hours at last: with --waiting that is now.
    """
    from temporalio.service import RPCError

    from cli.redeliver import redeliver as deliver_again
    from cli.redeliver import redeliver_waiting
    from ledger.database import Database, TransactionFailedError
    from ledger.outbox import UnknownMessageError
    from runtime.settings import LedgerSettings, SettingsError
    from runtime.temporal import connect

    if (delivery_id is None) is not waiting or (waiting and endpoint):
        raise fail("give either a message or --waiting")

    async def deliver() -> None:
        settings = LedgerSettings.load()
        client = await connect()
        database = Database(settings.database_url.get_secret_value())
        try:
            if delivery_id is None:
                number = await redeliver_waiting(client, database, settings.task_queue)
                if as_json:
                    document({"messages": number, "namespace": client.namespace})
                else:
                    typer.echo(f"{number} under way in namespace {client.namespace}")
                return
            run = await deliver_again(client, database, settings.task_queue, delivery_id, endpoint or ())
        finally:
            await database.close()
        if as_json:
            document({"run": run, "namespace": client.namespace})
        else:
            typer.echo(f"{run} is under way in namespace {client.namespace}")

    try:
        asyncio.run(deliver())
    except UnknownMessageError:
        raise fail(f"there is no message {delivery_id}, or no longer") from None
    except (SettingsError, TransactionFailedError, RuntimeError, RPCError) as error:
        raise fail(error) from None


app.add_typer(operators.app)
app.add_typer(deploying.app)


def main() -> NoReturn:
    """Run the console script, and end the way a program with a Temporal client ends best."""
    from runtime.temporal import leave

    try:
        app()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(0)


if __name__ == "__main__":
    main()
