"""Whether everything holds that always holds: in the ledger by itself, and between the ledger and the open runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.text import Text
from temporalio.client import Client

from cli.answers import row, table
from cli.runs import disagreement, waits_for_its_run
from ledger import inspection, invariants
from ledger.database import Database
from ledger.invariants import Finding, Patience
from program.plans import Plans
from workflows.client import AT_ONCE, ReferralRuns

LOOKS = 4
"""How often ledger and run are compared before they are said to disagree: one is always a moment ahead."""

BETWEEN_LOOKS = 1.0
"""How many seconds lie between two looks."""

LISTS_AT_ONCE = 4
"""How many questions Temporal's list is asked at once."""

LOOKED_AT_AGAIN = 200
"""How many suspects are looked at again one by one; of more, the rest is counted as it was listed."""

OPEN_HAVE_RUNS = ("open-has-a-run", "For every attributed referral that is open, a run is open, at the same stage.")
RUNS_ARE_OPEN = ("run-has-an-open-referral", "Every run that is open beyond the click has a referral that is open.")

Each = TypeVar("Each")


@dataclass
class Checked:
    """What was found.

    Args:
        looked_at: how many there are of everything that was looked at.
        findings: what was found of each invariant, in order.
    """

    looked_at: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything holds."""
        return not any(found.number for found in self.findings)


async def check_ledger(
    database: Database, plans: Plans, patience: Patience, keep: int, say: Callable[[str], None]
) -> Checked:
    """Ask all of the ledger, in one snapshot.

    Args:
        database: the ledger.
        plans: the plans on sale.
        patience: how late something may be.
        keep: how many ids are kept of each invariant's offenders.
        say: hears what has been looked at.
    """
    checked = Checked()
    async with database.snapshot() as transaction:
        await invariants.begin(transaction)
        checked.looked_at = await invariants.looked_at(transaction)
        async for finding in invariants.check(transaction, plans, patience, keep):
            checked.findings.append(finding)
            say(f"{finding.name}: {finding.number or 'holds'}")
    return checked


async def check_runs(
    client: Client, database: Database, task_queue: str, checked: Checked, keep: int, say: Callable[[str], None]
) -> None:
    """Compare the open referrals with the open runs, page by page, and add what is found.

    Raises:
        UnreachableError: Temporal could not be reached, or refused.
    """
    comparison = _Comparison(ReferralRuns(client, task_queue), database, keep)
    for (name, meaning), suspects in (
        (OPEN_HAVE_RUNS, comparison.without_run()),
        (RUNS_ARE_OPEN, comparison.without_referral()),
    ):
        checked.findings.append(await comparison.confirmed(Finding(name, meaning, "referrals"), suspects))
        say(f"{name}: {checked.findings[-1].number or 'holds'}")
    checked.looked_at |= {"open referrals": comparison.referrals, "open runs": comparison.runs_seen}


class _Comparison:
    """Walks through the ledger and through Temporal's list, and holds one against the other."""

    def __init__(self, runs: ReferralRuns, database: Database, keep: int) -> None:
        self._runs = runs
        self._database = database
        self._keep = keep
        self.referrals = 0
        self.runs_seen = 0

    async def without_run(self) -> AsyncIterator[str]:
        """Referrals that are open in the ledger, and whose runs seem not to be, or to be at another stage."""
        last = ""
        while True:
            async with self._database.transaction() as transaction:
                page = await invariants.open_referrals(transaction, AT_ONCE * LISTS_AT_ONCE, last)
            stages = {each.referral_id: each.stage for each in page}
            parts = [self._runs.open_among(part) for part in _parts(list(stages), AT_ONCE)]
            listed = {name: stage for part in await asyncio.gather(*parts) for name, stage in part.items()}
            for referral_id, stage in stages.items():
                if listed.get(referral_id) != stage:
                    yield referral_id
            self.referrals += len(page)
            if len(page) < AT_ONCE * LISTS_AT_ONCE:
                return
            last = page[-1].referral_id

    async def without_referral(self) -> AsyncIterator[str]:
        """Referrals whose runs seem to be open beyond the click, and that are not open in the ledger."""
        async for page in _pages(self._runs.open_attributed(), AT_ONCE):
            self.runs_seen += len(page)
            ids = [referral_id for referral_id, _ in page]
            async with self._database.transaction() as transaction:
                known = await invariants.open_among(transaction, ids)
            for referral_id in ids:
                if referral_id not in known:
                    yield referral_id

    async def confirmed(self, finding: Finding, suspects: AsyncIterator[str]) -> Finding:
        """Look at suspects again until they are cleared, or are not."""
        looked_at = 0
        async for page in _pages(suspects, LISTS_AT_ONCE):
            again = page[: max(LOOKED_AT_AGAIN - looked_at, 0)]
            looked_at += len(again)
            verdicts = await asyncio.gather(*map(self._disagrees, again))
            guilty = [name for name, verdict in zip(again, verdicts, strict=True) if verdict]
            for referral_id in [*guilty, *page[len(again) :]]:
                finding.add(referral_id, self._keep)
        return finding

    async def _disagrees(self, referral_id: str) -> bool:
        for look in range(LOOKS):
            if look:
                await asyncio.sleep(BETWEEN_LOOKS)
            async with self._database.transaction() as transaction:
                stands = await inspection.standing(transaction, referral_id)
            run = await self._runs.run(referral_id)
            if stands is None:
                different = run is not None and run.open
            else:
                voided = stands.voided_at is not None
                different = disagreement(stands.stage, run, voided=voided) is not None and (
                    waits_for_its_run(stands.stage, voided=voided) or (run is not None and run.open)
                )
            if not different:
                return False
        return True


def _parts(of: list[Each], size: int) -> Iterable[Collection[Each]]:
    return (of[first : first + size] for first in range(0, len(of), size))


async def _pages(of: AsyncIterator[Each], size: int) -> AsyncIterator[list[Each]]:
    page: list[Each] = []
    async for each in of:
        page.append(each)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


def render(checked: Checked, to: Console) -> None:
    """Show what was found: each invariant, and what it means where it does not hold."""
    found = table("", "invariant", "", "offenders")
    for each in checked.findings:
        if not each.number:
            row(found, "ok", each.name, "", "")
            continue
        more = "" if each.number == len(each.examples) else f" and {each.number - len(each.examples)} more"
        row(
            found,
            Text("broken", style="bold red"),
            each.name,
            f"{each.meaning} Of {each.number} {each.about} it is not so.",
            f"{', '.join(each.examples)}{more}",
        )
    to.print(found)
    broken = sum(1 for each in checked.findings if each.number)
    to.print(f"\n{f'{broken} of {len(checked.findings)} do not hold' if broken else 'everything holds'}")
    to.print("looked at: " + ", ".join(f"{number} {name}" for name, number in checked.looked_at.items()))
