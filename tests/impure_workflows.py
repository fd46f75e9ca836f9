"""Referrals' runs that ask the machine for something: each would answer otherwise in a replay, and must be noticed."""

import random
from datetime import UTC, datetime
from pathlib import Path

from temporalio import workflow

from workflows import messages
from workflows.messages import ReferralStart, ReferralState
from workflows.referral import ReferralWorkflow


@workflow.defn(name=messages.WORKFLOW)
class AsksTheClock(ReferralWorkflow):
    """What time is it?"""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        return await super().run(start) if datetime.now(UTC) > start.clicked_at else ReferralState()


@workflow.defn(name=messages.WORKFLOW)
class ReadsAFile(ReferralWorkflow):
    """What is written there?"""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        Path("plans.toml").read_text(encoding="utf-8")  # noqa: ASYNC240 - it is what must fail
        return await super().run(start)


@workflow.defn(name=messages.WORKFLOW)
class DrawsANumber(ReferralWorkflow):
    """Heads or tails?"""

    @workflow.init
    def __init__(self, start: ReferralStart) -> None:
        super().__init__(start)

    @workflow.run
    async def run(self, start: ReferralStart) -> ReferralState:
        return await super().run(start) if random.random() < 2 else ReferralState()  # noqa: S311 - it is what must fail
