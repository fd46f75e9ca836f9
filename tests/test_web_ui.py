"""The filters of docs/operating.md for Temporal's Web UI, each tried on the real server with runs of every end."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

from runtime.settings import PROJECT
from tests.http_support import Starter
from tests.support import World, until
from tests.web_ui import RUNS, Scene, scene_on
from workflows import messages
from workflows.jobs import upkeep_queue

MEMBERS = {"waits for a payment", "in review", "credited", "marked after the credit", "an unknown price"}
"""Those that are open, beyond the click."""

FOUND = {
    "what needs a person, whatever the reason": {
        "in review",
        "marked after the credit",
        "an unknown price",
        "a review",
    },
    "nobody is credited before a decision": {"in review"},
    "in doubt, and over otherwise": {"a review"},
    "an unknown price": {"an unknown price"},
    "paid in part, disputed, refunded": {"in review", "marked after the credit", "a review"},
    "ended from outside": {"ended from outside"},
    "cannot go on with the code at hand": {"a run that is stuck"},
    "all of one member's": {"credited"},
    "how one friend came": {"credited"},
    "signed up, not yet paid": {"waits for a payment", "an unknown price"},
    "credited, and the next bonus ends before": {"credited", "marked after the credit"},
    "a plan's": {"settled"},
    "refused since": {"refused"},
    "everything beyond a click": MEMBERS | {"settled", "refused", "voided after the credit", "ended from outside"},
    "links followed, no signup yet": {"a click"},
    "messages that an endpoint has not taken yet": {"a delivery that fails"},
    "reconciliation, run by run": {"a reconciliation"},
}
"""By what is to be seen: which of the runs a filter finds, and no other of them."""

WANTED = sorted(set.union(*FOUND.values()) | {"lapsed", "a delivery"})


def filters() -> dict[str, str]:
    """What the document gives, by what is to be seen."""
    document = (PROJECT / "docs" / "operating.md").read_text()
    section = document.partition("\n## In Temporal's Web UI\n")[2].partition("\n## ")[0]
    table = section.partition("| to see | filter |")[2]
    return {
        re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", what): query
        for what, query in re.findall(r"^\| ([^|]+) \| `([^`]+)` \|$", table, re.MULTILINE)
    }


async def test_each_filter_of_the_runbook_finds_what_it_says_and_nothing_else(starter: Starter) -> None:
    given = filters()
    assert given.keys() == FOUND.keys()
    async with scene_on(starter) as scene:
        made = await asyncio.gather(*(RUNS[name](scene) for name in WANTED))
        runs = dict(zip(WANTED, made, strict=True))
        credited = await scene.world.environment.client.get_workflow_handle(runs["credited"]).describe()
        spoken_of = {
            "acct-rita": str(credited.typed_search_attributes[messages.REFERRER_ACCOUNT]),
            "acct-fred": str(credited.typed_search_attributes[messages.REFEREE_ACCOUNT]),
            "2026-12-31T00:00:00Z": f"{datetime.now(UTC) + timedelta(days=40):%Y-%m-%dT%H:%M:%SZ}",
            "2026-11-01T00:00:00Z": f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        }
        for what, query in given.items():
            for theirs, ours in spoken_of.items():
                query = query.replace(f"'{theirs}'", f"'{ours}'")
            await finds(scene, query, {runs[name] for name in FOUND[what]}, set(made))


async def finds(scene: Scene, query: str, wanted: set[str], known: set[str]) -> None:
    """Wait until a filter finds those runs, and no other that is known: lists run a little behind."""
    client = scene.world.environment.client

    async def look() -> set[str]:
        return {run.id async for run in client.list_workflows(f"({query}) AND {queues(scene.world)}")} & known

    assert await until(look, lambda found: found == wanted) == wanted, query


def queues(world: World) -> str:
    """What keeps other tests' runs out of a list."""
    own = (world.task_queue, upkeep_queue(world.task_queue), f"{world.task_queue}-release")
    return f"TaskQueue IN ({', '.join(repr(queue) for queue in own)})"
