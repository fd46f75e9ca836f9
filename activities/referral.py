"""One method a step, one transaction a method. Repeating any of them changes nothing."""

import structlog
from temporalio import activity

from ledger import referrals
from ledger.database import Database
from program.plans import Plans
from program.referral import Stage
from workflows.activities import ReferralActivities
from workflows.messages import Attribution, Credit, Expiry, OpenBonus, workflow_id

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LedgerActivities(ReferralActivities):
    """The steps, with what they need."""

    def __init__(self, database: Database, plans: Plans) -> None:
        """Carry the steps out on `database`, for the plans on sale."""
        self._database = database
        self._plans = plans

    @activity.defn
    async def attribute_signup(self, referral_id: str) -> Attribution:
        """Decide whether the reserved signup counts (rules 10, 15 and 18)."""
        async with self._database.discreet_transaction() as transaction:
            result = await referrals.attribute(transaction, referral_id)
        _log("signup looked at", referral_id, stage=result.stage, payment_known=result.payment_known)
        # A run that begins anew (a reset, an id taken again) finds the ledger ahead of it, and catches up step by step.
        stage = Stage.SIGNED_UP if result.stage.attributed else result.stage
        return Attribution(stage, result.reason, result.signed_up_at, result.payment_known)

    @activity.defn
    async def credit_both(self, referral_id: str) -> Credit:
        """Credit both sides, or say why not (yet) (rules 3 to 8)."""
        async with self._database.discreet_transaction() as transaction:
            result = await referrals.credit_both(transaction, referral_id, self._plans)
        _log("payment looked at", referral_id, stage=result.stage, plan=result.plan, minutes=result.minutes)
        return Credit(
            result.stage,
            result.reason,
            result.needs_attention,
            result.review_reason,
            result.plan,
            result.minutes,
            result.credited_at,
            result.expires_at or {},
        )

    @activity.defn
    async def expire_bonuses(self, referral_id: str) -> Expiry:
        """Expire what is due (rules 7 and 9)."""
        async with self._database.discreet_transaction() as transaction:
            result = await referrals.expire(transaction, referral_id, self._plans)
        _log("expiry looked at", referral_id, stage=result.stage, expired_minutes=result.expired_minutes)
        return Expiry(
            result.stage,
            result.expired_minutes,
            {role: OpenBonus(expires_at, due_in) for role, (expires_at, due_in) in result.open.items()},
        )


def _log(event: str, referral_id: str, **values: object) -> None:
    log.info(event, referral_id=referral_id, workflow_id=workflow_id(referral_id), **values)
