"""The same program on another engine: DBOS Transact, with the same ledger, the same HTTP side and the same PostgreSQL.

Only the engine differs. A click starts a workflow, which receives the signup and the payment as messages and takes the
same steps. DBOS is a library: its workflows live in the process that serves HTTP, and two of these share the work, as
the program has two processes as well. `python -m bench.on_dbos`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import uvicorn
from dbos import DBOS, SetWorkflowID
from temporalio.client import Client

from activities.referral import LedgerActivities
from ledger.database import Database
from program.plans import load_plans
from program.referral import Stage
from program.signals import SignalPolicy
from runtime.logs import configure_logs
from runtime.settings import StarterSettings
from starter.app import create_app
from starter.server import GRACEFUL_SHUTDOWN_SECONDS, Server
from workflows.client import ReferralRuns
from workflows.messages import Attribution, Credit, Expiry, ReferralStart, workflow_id

SYSTEM_DATABASE = "BENCH_DBOS_DATABASE_URL"
EXECUTOR = "BENCH_DBOS_EXECUTOR"
CONNECTIONS = 20

Life = Callable[[str, datetime], Awaitable[str]]


def referral_workflow(steps: LedgerActivities) -> Life:
    """The life of a referral as a workflow of DBOS's; its steps may be repeated, as Temporal's may."""

    @DBOS.step()
    async def attribute(referral_id: str) -> Attribution:
        return await steps.attribute_signup(referral_id)

    @DBOS.step()
    async def credit(referral_id: str) -> Credit:
        return await steps.credit_both(referral_id)

    @DBOS.step()
    async def expire(referral_id: str) -> Expiry:
        return await steps.expire_bonuses(referral_id)

    @DBOS.workflow()
    async def referral(referral_id: str, lapses_at: datetime) -> str:
        if await DBOS.recv_async("signup", _seconds_until(lapses_at)) is None:
            return Stage.LAPSED
        attribution = await attribute(referral_id)
        stage, look = attribution.stage, attribution.payment_known
        ends: list[datetime] = []
        while stage is Stage.SIGNED_UP:
            if not look:
                await DBOS.recv_async("payment", timedelta(days=365).total_seconds())
            credited = await credit(referral_id)
            stage, look, ends = credited.stage, False, list(credited.expires_at.values())
        while stage is Stage.CREDITED:
            await DBOS.sleep_async(max(_seconds_until(min(ends)), 1.0))
            expired = await expire(referral_id)
            stage, ends = expired.stage, [bonus.expires_at for bonus in expired.open.values()]
        return stage

    return referral


def _seconds_until(moment: datetime) -> float:
    return (moment - datetime.now(UTC)).total_seconds()


class DbosRuns:
    """What the HTTP side asks of Temporal, asked of DBOS: of all that is measured, nothing else is called."""

    def __init__(self, life: Life) -> None:
        """Start workflows of this kind."""
        self._life = life

    async def clicked(self, start: ReferralStart, *_: object) -> None:
        """Start a referral's workflow at a click."""
        with SetWorkflowID(workflow_id(start.referral_id)):
            await DBOS.start_workflow_async(cast("Any", self._life), start.referral_id, start.lapses_at)

    async def signed_up(self, start: ReferralStart, account_id: str) -> None:
        """Report the signup."""
        await DBOS.send_async(workflow_id(start.referral_id), account_id, "signup")

    async def payment_reported(self, start: ReferralStart, _: str, event_id: str) -> None:
        """Tell that a payment is on record."""
        await DBOS.send_async(workflow_id(start.referral_id), event_id, "payment")


async def main() -> None:
    """Serve HTTP, and carry workflows out, until told to stop."""
    settings = StarterSettings.load()
    database = Database(settings.database_url.get_secret_value())
    steps = LedgerActivities(database, load_plans(settings.plans_file), SignalPolicy())
    DBOS(
        config={
            "name": "referrals",
            "system_database_url": os.environ[SYSTEM_DATABASE],
            "sys_db_pool_size": CONNECTIONS,
            "executor_id": os.environ[EXECUTOR],
            "log_level": "WARNING",
        }
    )
    runs = DbosRuns(referral_workflow(steps))
    DBOS.launch()
    # A client that is never used: this side has no Temporal.
    app = create_app(settings, await Client.connect("127.0.0.1:1", lazy=True))
    app.state.services = replace(app.state.services, runs=cast("ReferralRuns", runs))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
    await Server(config, app.state.services.live).serve()


if __name__ == "__main__":
    configure_logs("starter")
    asyncio.run(main())
    # Workflows that wait have threads and tasks of their own; the next start takes them up again.
    os._exit(0)
