"""How many bytes Temporal's own database keeps of waiting clicks: `python -m bench.temporal_rows`.

The development server keeps in SQLite what a cluster keeps in PostgreSQL: the same tables, the same encoded rows.
"""

import asyncio
import secrets
import sqlite3
import sys
import sysconfig
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from temporalio.testing import WorkflowEnvironment

from workflows.client import ReferralRuns
from workflows.messages import SEARCH_ATTRIBUTES, ReferralStart
from workflows.payloads import DATA_CONVERTER

CLICKS = 2000
AT_ONCE = 8
WINDOW_AND_GRACE = timedelta(days=97)
ACCOUNT = "0f8fad5b-d9cb-469f-a165-70867728950e"
"""An account id of the length that a UUID has."""


async def main(clicks: int) -> None:
    """Start clicks on a server of its own, and print what each of its tables has grown by."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "temporal.db"
        server = await WorkflowEnvironment.start_local(
            dev_server_existing_path=str(Path(sysconfig.get_path("scripts")) / "temporal"),
            dev_server_database_filename=str(file),
            dev_server_extra_args=["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=OFF"],
            dev_server_log_level="error",
            search_attributes=SEARCH_ATTRIBUTES,
            data_converter=DATA_CONVERTER,
        )
        async with server:
            runs = ReferralRuns(server.client, "referrals", timeout=timedelta(seconds=60))
            before = tables(file)
            turns = asyncio.Semaphore(AT_ONCE)

            async def click() -> None:
                now = datetime.now(UTC).replace(microsecond=0)
                start = ReferralStart(secrets.token_hex(12), ACCOUNT, now, now + WINDOW_AND_GRACE)
                async with turns:
                    await runs.clicked(start, now, "whatsapp")

            await asyncio.gather(*(click() for _ in range(clicks)))
            count = 0
            while count < clicks:
                count = (await server.client.count_workflows("ReferralStage = 'clicked'")).count
        after = tables(file)
    for name in sorted(after, key=lambda name: before.get(name, 0) - after[name]):
        if grown := after[name] - before.get(name, 0):
            sys.stdout.write(f"{name:40} {grown / clicks:8.0f} bytes a click\n")
    whole = sum(after.values()) - sum(before.values())
    sys.stdout.write(f"{'all':40} {whole / clicks:8.0f} bytes a click\n")


def tables(file: Path) -> dict[str, int]:
    """Bytes of the entries of each table, with its indexes; pages that are half empty count by what is in them."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        sizes = dict(database.execute("SELECT name, sum(payload) FROM dbstat GROUP BY name").fetchall())
        of = dict(database.execute("SELECT name, tbl_name FROM sqlite_schema").fetchall())
    grouped: Counter[str] = Counter()
    for name, size in sizes.items():
        grouped[str(of.get(name, name))] += int(size)
    return grouped


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else CLICKS))
