"""The console script `referrals`: the development stack, and the chores of a deployment."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    help="KallyAI's referral program.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # A rich traceback shows local variables, and some of ours are secrets.
    pretty_exceptions_enable=False,
)


def _fail(message: object) -> typer.Exit:
    typer.echo(f"referrals: {message}", err=True)
    return typer.Exit(1)


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
        raise _fail(f"the development stack is not installed here ({error.name} is missing): make setup") from None
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
def migrate() -> None:
    """Bring the database's schema up to date, as the role that owns it (REFERRALS_MIGRATION_DATABASE_URL)."""
    from sqlalchemy.exc import SQLAlchemyError

    from ledger.migrate import migrate as migrate_database
    from runtime.settings import MigrationSettings, SettingsError

    try:
        version = migrate_database(MigrationSettings.load().owner_url)
    except (SettingsError, SQLAlchemyError) as error:
        raise _fail(error) from None
    typer.echo(f"the database is at version {version}")


@app.command()
def setup_temporal() -> None:
    """Make the namespace if it is missing, and register the search attributes that it lacks (TEMPORAL_ADDRESS …)."""
    from temporalio.service import RPCError

    from runtime.temporal import connect, set_up_namespace

    async def set_up() -> None:
        client = await connect()
        changed = await set_up_namespace(client)
        typer.echo(f"namespace {client.namespace} {'is set up' if changed else 'was set up already'}")

    try:
        asyncio.run(set_up())
    except (RuntimeError, RPCError) as error:
        raise _fail(error) from None


@app.command()
def record_history(
    workflow_id: Annotated[str, typer.Argument(help="Of the referral's run: referral-…")],
    file: Annotated[Path, typer.Argument(help="Written anew, as JSON.")],
    run_id: Annotated[str | None, typer.Option(help="One run of several. [default: the newest]")] = None,
) -> None:
    """Write a run's history into a file that can be replayed, without names of machines (TEMPORAL_ADDRESS …)."""
    from temporalio.service import RPCError

    from cli.record import record_history as record
    from runtime.temporal import connect

    async def write() -> None:
        events = await record(await connect(), workflow_id, file, run_id)
        typer.echo(f"{events} events of {workflow_id} are in {file}")

    try:
        asyncio.run(write())
    except (RuntimeError, RPCError, OSError) as error:
        raise _fail(error) from None


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
