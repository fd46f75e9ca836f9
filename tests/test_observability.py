"""Alerts and dashboards: valid by the tools' own checks, and about metrics that the real programs really have."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from ledger.database import Database
from program.plans import Plans
from runtime.settings import PROJECT
from tests.conftest import free_port
from tests.http_support import environment, paid, person
from tests.promtool import NoPromtoolError, find_or_get, promtool
from tests.stripe_events import unique
from tests.support import Clock, DatabaseUrls, World, until
from tests.test_end_to_end import STARTER, WORKER, Program, Stack
from workflows.jobs import SWEEP, upkeep_queue

FOLDER = PROJECT / "deploy" / "observability"
ALERTS = FOLDER / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((FOLDER / "grafana").glob("*.json"))
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def checker() -> Path:
    """Prometheus's own checker, which is got where there is none."""
    try:
        return find_or_get()
    except NoPromtoolError as error:
        why = str(error)
    pytest.fail(why, pytrace=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(
    module_urls: DatabaseUrls, plans: Plans, dev_server: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What both programs tell Prometheus, by program, after one referral was credited."""
    folder = tmp_path_factory.mktemp("scraped")
    database = Database(module_urls.app)
    client = await Client.connect(dev_server, data_converter=pydantic_data_converter)
    world = World(database, plans, WorkflowEnvironment.from_client(client), Clock(), unique("queue"))
    port, metrics = free_port(), f"127.0.0.1:{free_port()}"
    settings = environment(module_urls, world.task_queue, dev_server, port)
    settings |= {
        "REFERRALS_METRICS_ADDRESS": metrics,
        "REFERRALS_DELIVERY_ENDPOINTS": f"backend=http://127.0.0.1:{free_port()}/",
        "REFERRALS_DELIVERY_SECRETS": "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb2YgbWV0cmljcw==",
        "TEMPORAL_CONFIG_FILE": os.devnull,
    }
    starter = Program(STARTER, settings, folder / "starter.log")
    worker = Program(WORKER, settings, folder / "worker.log")
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            stack = Stack(http, world, starter, worker)
            worker.start()
            await stack.start_starter()
            rita = await stack.subscriber()
            visit = await stack.click(await stack.link(rita))
            fred = person("fred")
            await stack.signed_up(fred, referral_token=visit.token)
            await stack.account(fred)
            for event in paid(fred, datetime.now(UTC), datetime.now(UTC) + 30 * DAY):
                await stack.stripe(event)
            await stack.reaches(visit.referral_id, "credited", seconds=60)
            queue = upkeep_queue(world.task_queue)
            await client.execute_workflow(SWEEP, id=f"sweep-{queue}", task_queue=queue)

            async def both() -> dict[str, str]:
                found = {"starter": (await http.get("/metrics")).text}
                return found | {"worker": (await http.get(f"http://{metrics}/metrics")).text}

            return await until(both, lambda texts: 'referrals_credits_total{plan="pro"' in texts["worker"])
    finally:
        starter.kill()
        worker.kill()
        await database.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_dump(scraped: dict[str, str]) -> None:
    for k, v in scraped.items():
        Path(f"/tmp/obs/{k}.prom").write_text(v)
