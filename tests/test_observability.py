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
from workflows.payloads import DATA_CONVERTER

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
    client = await Client.connect(dev_server, data_converter=DATA_CONVERTER)
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
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
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
            # What a release leaves behind that cannot go on with a run.
            lost = await client.start_workflow("Forgotten", id=unique("forgotten"), task_queue=world.task_queue)
            queue = upkeep_queue(world.task_queue)
            await client.execute_workflow(SWEEP, id=f"sweep-{queue}", task_queue=queue)

            async def both() -> dict[str, str]:
                found = {"starter": (await http.get("/metrics")).text}
                return found | {"worker": (await http.get(f"http://{metrics}/metrics")).text}

            texts = await until(both, lambda texts: "temporal_workflow_task_execution_failed" in texts["worker"])
            await lost.terminate()
            return texts
    finally:
        starter.kill()
        worker.kill()
        await database.close()


def told(texts: dict[str, str]) -> dict[str, set[str]]:
    """Every metric that the programs tell of by the name that Prometheus keeps, also without a sample; its labels."""
    found: dict[str, set[str]] = {}
    for line in "\n".join(texts.values()).splitlines():
        if line.startswith("# "):
            found.setdefault(line.split()[2], set())
        elif line:
            name, _, labels = line.partition("{")
            found.setdefault(name.split()[0], set()).update(re.findall(r'(\w+)="', labels))
    return found


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def asked(dashboard: dict[str, Any]) -> list[str]:
    """The queries of a dashboard, with what Grafana puts in for its variables."""
    return [
        target["expr"].replace("$__rate_interval", "5m") for panel in panels(dashboard) for target in panel["targets"]
    ]


def queries() -> Iterator[tuple[str, str]]:
    """Every query, and who asks it."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for path in DASHBOARDS:
        for query in asked(json.loads(path.read_text())):
            yield path.name, query


METRIC = re.compile(r"\b(?:referrals|temporal)_[a-z0-9_]+\b")
LABELS = re.compile(r"\b(?:by|without) \(([a-z_, ]*)\)|{([^}]*)}")
OF_PROMETHEUS = {"job", "instance", "le"}


@pytest.mark.asyncio(loop_scope="module")
async def test_alerts_and_dashboards_ask_for_metrics_and_labels_that_the_programs_have(scraped: dict[str, str]) -> None:
    known = told(scraped)
    asked_for = list(queries())
    assert len(asked_for) > 60
    for who, query in asked_for:
        metrics = METRIC.findall(query)
        assert metrics or query.startswith(("absent(up{", "sum(up{")), (who, query)
        assert set(metrics) <= known.keys(), (who, query)
        labels = {
            re.split("[=!]", label)[0].strip() for pair in LABELS.findall(query) for label in ",".join(pair).split(",")
        } - {""}
        there = OF_PROMETHEUS.union(*(known[metric] for metric in metrics))
        assert labels <= there, (who, query)


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_of_ours_is_documented_and_is_as_prometheus_wants_it(
    scraped: dict[str, str], checker: Path
) -> None:
    document = (PROJECT / "docs" / "observability.md").read_text()
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for text in scraped.values()
        for family in text_string_to_metric_families(text)
        if family.name.startswith("referrals_") and not family.name.endswith("_created")
    }
    assert {name for name in names if f"`{name}`" not in document} == set()
    mentioned = set(re.findall(r"`(referrals_[a-z_]+)`", document))
    assert mentioned <= names, "the document tells of what there is not"
    for text in scraped.values():
        _, said = promtool(checker, "check", "metrics", given=text)
        ours = [line for line in said.splitlines() if line.startswith("referrals_")]
        # Minutes are what is sold here, and no measure of time.
        assert [line for line in ours if "_minutes_" not in line] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_no_label_can_have_ever_more_values(scraped: dict[str, str]) -> None:
    for text in scraped.values():
        for family in text_string_to_metric_families(text):
            series = {tuple(sorted(sample.labels.items())) for sample in family.samples if "le" not in sample.labels}
            assert len(series) <= 120, family.name
            for labels in series:
                for name, value in labels:
                    assert not re.search(r"[0-9a-f]{24}|acct-|evt_|cus_|@", value), (family.name, name, value)


def test_prometheus_takes_the_alerts_and_its_configuration(checker: Path) -> None:
    status, said = promtool(checker, "check", "config", ALERTS.with_name("prometheus.yml"))
    assert status == 0, said
    assert f"{len(alerts())} rules found" in said


def test_every_alert_rings_when_it_should_and_keeps_quiet_before(checker: Path) -> None:
    path = ALERTS.with_name("alerts_test.yml")
    status, said = promtool(checker, "test", "rules", path)
    assert status == 0, said
    expected = [
        (test["exp_samples"][0]["labels"] if test["exp_samples"] else None)
        for group in yaml.safe_load(path.read_text())["tests"]
        for test in group["promql_expr_test"]
    ]
    assert {f'{{alertname="{rule["alert"]}"}}' for rule in alerts()} == set(expected) - {None}
    assert expected.count(None) >= len(alerts()) - 1


def test_every_alert_says_why_and_leads_to_a_heading_that_there_is() -> None:
    for rule in alerts():
        notes = rule["annotations"]
        assert notes["summary"].endswith("."), rule["alert"]
        assert notes["why"].endswith("."), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        path, _, anchor = notes["runbook"].partition("#")
        assert anchor in anchors((PROJECT / path).read_text()), rule["alert"]
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    document = (PROJECT / "docs" / "observability.md").read_text()
    assert {name for name in names if f"`{name}`" not in document} == set()


def anchors(document: str) -> set[str]:
    """What GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path, checker: Path, tmp_path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["schemaVersion"] >= 39
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    taken: dict[tuple[int, int], str] = {}
    for title, at in places:
        assert at["x"] + at["w"] <= 24, title
        for cell in ((at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])):
            assert taken.setdefault(cell, title) == title, f"{title} lies over {taken[cell]}"
    for panel in panels(dashboard):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0, panel["title"]
    # Prometheus itself reads every query.
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked(dashboard))]
    read = tmp_path / "rules.yml"
    read.write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))
    status, said = promtool(checker, "check", "rules", read)
    assert status == 0, said
    assert f"{len(rules)} rules found" in said


def test_dashboards_have_names_of_their_own() -> None:
    known = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({dashboard["uid"] for dashboard in known}) == len({dashboard["title"] for dashboard in known}) == 2
