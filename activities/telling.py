"""Tells the runs what the ledger has learnt: shared by whoever learns it, the webhook as well as reconciliation."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from ledger import referrals
from ledger.database import Database
from ledger.erasure import ErasedSide
from ledger.facts import News, ReversedReferral
from ledger.referrals import OpenReferral, Reservation
from program.referral import Stage
from workflows.client import ReferralOverError, ReferralRuns
from workflows.messages import AccountErased, CycleMoved, PaymentReversed, ReferralStart, ReviewStart, workflow_id

_TELL_AT_ONCE = 16

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Messenger:
    """Brings news to the runs that they concern."""

    def __init__(self, runs: ReferralRuns, database: Database, on_run_over: Callable[[], None]) -> None:
        """Reach the runs through `runs`; `on_run_over` counts those that had ended although the ledger waits."""
        self._runs = runs
        self._database = database
        self._on_run_over = on_run_over

    async def tell(self, news: News, source: str) -> None:
        """Tell every run that the news concern.

        Args:
            news: what the ledger has learnt.
            source: what brought it, for the reader of a history: the id of an event, say.

        Raises:
            UnreachableError: at least one could not be told; all may be told again.
        """
        turns = asyncio.Semaphore(_TELL_AT_ONCE)

        async def in_turn(telling: Awaitable[None]) -> None:
            async with turns:
                await telling

        payments = [self._tell_of_payment(waiting, source) for waiting in news.payments]
        moves = [
            self._runs.cycle_moved(grant.referral_id, CycleMoved(grant.role, grant.expires_at)) for grant in news.moved
        ]
        reversals = [self._tell_of_reversal(reversed_) for reversed_ in news.reversed]
        told = await asyncio.gather(*map(in_turn, [*payments, *moves, *reversals]), return_exceptions=True)
        for failure in told:
            if failure is not None:
                raise failure

    async def _tell_of_payment(self, waiting: OpenReferral, source: str) -> None:
        ids = {"referral_id": waiting.referral_id, "workflow_id": workflow_id(waiting.referral_id)}
        try:
            if waiting.stage is Stage.CLICKED:
                # The report of the signup was cut short, and a plain signal would not wake a run that waits for it.
                await self.report_signup(start_of(waiting), waiting.referee_id)
            else:
                await self._runs.payment_reported(start_of(waiting), waiting.referee_id, source)
        except ReferralOverError:
            # Ended from outside: an operator has to know, for the ledger still waits for it.
            self._on_run_over()
            log.error("paid, but the run is over", **ids)  # noqa: TRY400

    async def _tell_of_reversal(self, doubtful: ReversedReferral) -> None:
        ids = {"referral_id": doubtful.referral_id, "workflow_id": workflow_id(doubtful.referral_id)}
        if not await self._runs.reversed(doubtful.referral_id, PaymentReversed(doubtful.reason)):
            await self._runs.review(
                ReviewStart(
                    doubtful.referral_id, doubtful.referrer_id, doubtful.referee_id, doubtful.stage, [doubtful.reason]
                )
            )
        log.warning("marked for review", reason=doubtful.reason, **ids)

    async def tell_of_erasing(self, sides: Iterable[ErasedSide]) -> None:
        """Tell the runs of an erased account's referrals to look again (rule 23).

        Raises:
            UnreachableError: at least one could not be told; all may be told again.
        """
        for side in sides:
            await self._runs.account_erased(side.referral_id, AccountErased(side.role))

    async def report_signup(self, start: ReferralStart, account_id: str) -> Stage:
        """Report a reserved signup to its run, and write down that it lapsed where the run is over already.

        Returns:
            `clicked`, as the run will decide; or the stage that the ledger knows of a run that is over.

        Raises:
            UnreachableError: Temporal could not be reached, or refused.
        """
        try:
            await self._runs.signed_up(start, account_id)
        except ReferralOverError:
            # It may have heard of this very signup before it ended.
            async with self._database.transaction() as transaction:
                return await referrals.lapse(transaction, start.referral_id)
        return Stage.CLICKED


def start_of(referral: OpenReferral | Reservation) -> ReferralStart:
    """What the run of a referral is started with."""
    return ReferralStart(
        referral.referral_id, referral.referrer_id, referral.window.clicked_at, referral.window.lapses_at
    )
