"""The commands of whoever deploys: run the programs, prepare what they need, bring a release in."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.answers import console, document, fail, first_line, perform, say
from cli.operators import COULD_NOT, AsJson
from cli.programs import Program

app = typer.Typer()

_MODULES = {Program.WORKER: "worker", Program.STARTER: "starter"}

Patience = Annotated[
    float, typer.Option("--patience", min=0, max=3600, metavar="SECONDS", help="How long to wait for it.")
]
Deployment = Annotated[
    str | None,
    typer.Option(help="The name of the workers' deployment.", envvar="REFERRALS_DEPLOYMENT_NAME"),
]


def _become(program: Program) -> None:
    """Turn this process into a program: it has the same environment, the same id, and its signals are its own."""
    # -P: what happens to lie in the working directory is not taken for the program.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", _MODULES[program]])  # noqa: S606


@app.command()
def worker() -> None:
    """Run the worker until told to stop: `python worker.py` by another name."""
    _become(Program.WORKER)


@app.command()
def api() -> None:
    """Run the HTTP side until told to stop: `python -m starter` by another name."""
    _become(Program.STARTER)


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit status 1 where migrations are pending.")
    ] = False,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0, max=3600, metavar="SECONDS", help="How long to try, or with --check to wait. [default: 600; 0]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the database's schema up to date, as the role that owns it (REFERRALS_MIGRATION_DATABASE_URL).

    Traffic may go on: a migration that does not get a lock within two seconds tries again. With --check the
    application's role will do (REFERRALS_DATABASE_URL); exit status 2: it could not be looked.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from ledger import migrate as migrating
    from runtime.settings import MigrationSettings, SettingsError

    failed = COULD_NOT if check else 1
    try:
        url = MigrationSettings.load().owner_url
        if check:
            found = _pending(url, patience or 0)
        else:
            before = migrating.pending(url)
            limit = migrating.PATIENCE if patience is None else timedelta(seconds=patience)
            version = migrating.migrate(url, patience=limit, say=say)
    except (SettingsError, TimeoutError) as error:
        raise fail(error, failed) from None
    except SQLAlchemyError as error:
        raise fail(f"the database: {first_line(getattr(error, 'orig', None) or error)}", failed) from None
    if check:
        if as_json:
            document(found)
        elif found.migrations:
            typer.echo(f"the database is at version {found.version or 'none'}; pending: {', '.join(found.migrations)}")
        else:
            typer.echo(f"the database is at version {found.version}; nothing is pending")
        if found.migrations:
            raise typer.Exit(1)
    elif as_json:
        document({"version": version, "applied": before.migrations})
    else:
        typer.echo(f"the database is at version {version}")


def _pending(url: str, patience: float) -> "migrating.Pending":  # type: ignore[name-defined]  # noqa: F821
    """What is pending, once nothing is or the patience is over."""
    from sqlalchemy.exc import OperationalError

    from ledger.migrate import pending

    until = time.monotonic() + patience
    while True:
        try:
            found = pending(url)
        except OperationalError:
            if time.monotonic() >= until:
                raise
        else:
            if not found.migrations or time.monotonic() >= until:
                return found
        time.sleep(min(1.0, max(until - time.monotonic(), 0)))


@app.command()
def setup_temporal(as_json: AsJson = False) -> None:
    """Make or mend what Temporal needs: the namespace, its search attributes, the Schedules (TEMPORAL_ADDRESS …)."""
    from runtime.schedules import set_up_schedules
    from runtime.settings import TemporalSetupSettings
    from runtime.temporal import connect, set_up_namespace

    async def set_up() -> tuple[str, bool]:
        settings = TemporalSetupSettings.load()
        client = await connect()
        changed = [await set_up_namespace(client), await set_up_schedules(client, settings.task_queue)]
        return client.namespace, any(changed)

    namespace, changed = perform(set_up())
    if as_json:
        document({"namespace": namespace, "changed": changed})
    else:
        typer.echo(f"namespace {namespace} {'is set up' if changed else 'was set up already'}")


@app.command()
def versions(deployment: Deployment = None, as_json: AsJson = False) -> None:
    """Show the releases of the versioned workers, and which of them runs go to (TEMPORAL_ADDRESS …)."""
    from cli import versions as versioning
    from runtime.temporal import connect

    name = _named(deployment)

    async def look() -> versioning.Versions:
        return await versioning.versions(await connect(), name)

    try:
        found = perform(look())
    except versioning.NoVersionsError as error:
        raise fail(error) from None
    if as_json:
        document(found)
    else:
        versioning.render(found, console())


@app.command()
def set_current_version(
    build_id: Annotated[str, typer.Argument(metavar="BUILD_ID", help="Of the release.", envvar="REFERRALS_BUILD_ID")],
    deployment: Deployment = None,
    ramp: Annotated[
        float | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="Only this share of all runs; 0 takes it back."),
    ] = None,
    patience: Patience = 300,
    as_json: AsJson = False,
) -> None:
    """Have all runs go to a release of the versioned workers, once they are there (TEMPORAL_ADDRESS …).

    Runs under way go on with it, too. An earlier release's BUILD_ID is a rollback: its workers must be up.
    """
    from cli import versions as versioning
    from cli.waiting import NoAnswerError
    from runtime.temporal import connect

    name = _named(deployment)

    async def make() -> versioning.Versions:
        return await versioning.make_current(await connect(), name, build_id, ramp, say, timedelta(seconds=patience))

    try:
        found = perform(make())
    except NoAnswerError as error:
        raise fail(f"release {build_id} was not made current within {patience:g} seconds: {error}") from None
    if as_json:
        document(found)
    else:
        versioning.render(found, console())


def _named(deployment: str | None) -> str:
    if not deployment:
        raise fail("set REFERRALS_DEPLOYMENT_NAME, or give --deployment")
    return deployment


@app.command()
def openapi(
    output: Annotated[Path | None, typer.Option(help="A file to write it into. [default: standard output]")] = None,
) -> None:
    """Print the OpenAPI document of this code: what is public of the HTTP side. It needs no settings and no servers."""
    from cli.contract import document_of_this_code, text_of

    text = text_of(document_of_this_code())
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise fail(error) from None


@app.command()
def release_check(
    histories: Annotated[Path, typer.Option(help="Histories of every released generation.")] = Path("tests/histories"),
    ledgers: Annotated[Path, typer.Option(help="Recorded ledgers of every released schema.")] = Path("tests/ledgers"),
    contract: Annotated[Path, typer.Option(help="The released OpenAPI document.")] = Path("docs/openapi.json"),
    as_json: AsJson = False,
) -> None:
    """Check in a checkout that this code can follow what is released: its runs, its data, its callers.

    Histories are replayed, recorded ledgers are migrated, the OpenAPI document is compared. With
    REFERRALS_COPY_DATABASE_URL (as its owner) that database is migrated as well, in place: name a restored copy, never
    the one in use. Exit status 1: this code would break something; 2: it could not be checked.
    """
    try:
        from cli import release
    except ModuleNotFoundError as error:
        raise fail(f"the development stack is not installed here ({error.name} is missing): make setup") from None
    from runtime.settings import RehearsalSettings, SettingsError

    try:
        copy = RehearsalSettings.load().copy_url
    except SettingsError as error:
        raise fail(error, COULD_NOT) from None
    shown = console(stderr=True)
    try:
        with shown.status("checking") as status:
            checked = perform(release.check(histories, ledgers, contract, copy, status.update), status=COULD_NOT)
    except release.CannotCheckError as error:
        raise fail(error, COULD_NOT) from None
    if as_json:
        document({"fine": checked.fine, "parts": checked.parts})
    else:
        release.render(checked, console())
    if not checked.fine:
        raise typer.Exit(1)
