"""Attributes a signup that lost its link: on the road of every signup, with by whom and why on record (rule 2)."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client

from activities.telling import Messenger, start_of
from cli.waiting import waited_for
from ledger import attributions, inspection
from ledger.attributions import Vouched
from ledger.database import Database
from program.referral import Stage
from workflows.client import ReferralRuns

LOOK = timedelta(milliseconds=200)
"""How often it is looked whether the run has decided."""

SAY = timedelta(seconds=5)
"""How long a worker may take for it before it is worth a word."""


@dataclass(frozen=True)
class AttributedByHand:
    """What became of it.

    Args:
        referral_id: the signup's referral.
        account_id: the friend's account.
        referrer_account_id: whose link it was.
        stage: how far it is.
        reason: why, where it ended.
        known: the account belonged to this referral before, and nothing was done.
    """

    referral_id: str
    account_id: str
    referrer_account_id: str
    stage: Stage
    reason: str | None
    known: bool


async def attribute(
    client: Client,
    database: Database,
    task_queue: str,
    window: timedelta,
    account_id: str,
    *,
    code: str | None,
    referrer_id: str | None,
    by: str,
    note: str,
    say: Callable[[str], None],
    patience: timedelta,
) -> AttributedByHand:
    """Attribute an account to the owner of a link, and wait for what the run decides.

    Args:
        client: connected to the workers' namespace.
        database: the ledger.
        task_queue: that of the referrals.
        window: how long a click counts.
        account_id: the friend's account.
        code: of the link; or
        referrer_id: whose link it is.
        by: who vouches for it, by an id of the operator's.
        note: why.
        say: hears what keeps it.
        patience: how long it is waited for.

    Raises:
        NotAttributableError: it cannot be attributed; nothing was written.
        UnknownAccountError: the backend never reported that account.
        NoAnswerError: no worker has decided in time; it is on record, and will be decided.
        UnreachableError: Temporal could not be reached; said again, it goes on from there.
    """
    runs = ReferralRuns(client, task_queue)
    async with database.transaction() as transaction:
        link = await attributions.link_of(transaction, code=code, referrer_id=referrer_id)
        reservation = await attributions.vouch(transaction, Vouched(account_id, link, by, note), window)
    referral_id = reservation.referral_id
    known = reservation.stage is not Stage.CLICKED
    if not known:
        await Messenger(runs, database, lambda: None).report_signup(start_of(reservation), account_id)

    async def problem() -> str | None:
        run = await runs.run(referral_id)
        return run.problem if run else None

    decided = _decided(database, referral_id)
    stands = await waited_for(decided, problem, say, look=SAY, patience=patience)
    return AttributedByHand(referral_id, account_id, link.account_id, stands.stage, stands.reason, known)


async def _decided(database: Database, referral_id: str) -> inspection.Standing:
    while True:
        async with database.transaction() as transaction:
            stands = await inspection.standing(transaction, referral_id)
        if stands is not None and stands.stage is not Stage.CLICKED:
            return stands
        await asyncio.sleep(LOOK.total_seconds())


def in_words(done: AttributedByHand) -> str:
    """What became of it, in a line for a person."""
    said = f"{done.account_id} and {done.referrer_account_id}: referral {done.referral_id} is {done.stage}"
    if done.known:
        said += ", as it was before"
    return f"{said}. {done.reason}" if done.reason else said
