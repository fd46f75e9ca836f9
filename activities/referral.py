"""One method a step, one transaction a method. Repeating any of them changes nothing."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

import structlog
from temporalio import activity

from ledger import decisions, referrals, signals
from ledger.database import Database, Transaction
from ledger.decisions import ImpossibleError
from ledger.referrals import CreditResult, UnknownReferralError
from ledger.signals import CardCheckNeededError
from program.plans import Plans
from program.referral import Stage
from program.signals import SignalPolicy
from workflows.activities import ReferralActivities
from workflows.messages import Attribution, Credit, Decided, Decision, Expiry, OpenBonus, workflow_id

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class CardComparison(Protocol):
    """Who can tell whether an invoice was paid with a card of certain customers (rule 19)."""

    async def same_card(self, invoice: str, customers: Iterable[str]) -> bool:
        """Ask; fails for as long as nobody can tell."""
        ...


class LedgerActivities(ReferralActivities):
    """The steps, with what they need."""

    def __init__(
        self, database: Database, plans: Plans, policy: SignalPolicy, cards: CardComparison | None = None
    ) -> None:
        """Carry the steps out on `database`, for the plans on sale, looking for the signs that `policy` names.

        Raises:
            ValueError: cards are to be compared, and nobody can.
        """
        if policy.same_card and cards is None:
            raise ValueError("cards are to be compared, and nobody can")
        self._database = database
        self._plans = plans
        self._policy = policy
        self._cards = cards

    @activity.defn
    async def attribute_signup(self, referral_id: str) -> Attribution:
        """Decide whether the reserved signup counts (rules 10, 15 and 18)."""
        async with self._database.discreet_transaction() as transaction:
            result = await referrals.attribute(transaction, referral_id, last=True)
        _log("signup looked at", referral_id, stage=result.stage, payment_known=result.payment_known)
        # A run that begins anew (a reset, an id taken again) finds the ledger ahead of it, and catches up step by step.
        stage = Stage.SIGNED_UP if result.stage.attributed else result.stage
        look_at_once = result.payment_known or result.stage is not stage
        return Attribution(stage, result.reason, result.signed_up_at, look_at_once)

    @activity.defn
    async def credit_both(self, referral_id: str) -> Credit:
        """Credit both sides, or say why not (yet) (rules 3 to 8)."""
        result = await self._with_cards_compared(
            lambda transaction: referrals.credit_both(transaction, referral_id, self._plans, self._policy, last=True)
        )
        _log("payment looked at", referral_id, stage=result.stage, plan=result.plan, minutes=result.minutes)
        return _credit(result)

    @activity.defn
    async def expire_bonuses(self, referral_id: str) -> Expiry:
        """Expire what is due (rules 7 and 9)."""
        async with self._database.discreet_transaction() as transaction:
            result = await referrals.expire(transaction, referral_id, self._plans)
        _log("expiry looked at", referral_id, stage=result.stage, expired_minutes=result.expired_minutes)
        return Expiry(
            result.stage,
            result.expired_minutes,
            result.voided_minutes,
            {role: OpenBonus(expires_at, due_in) for role, (expires_at, due_in) in result.open.items()},
        )

    @activity.defn
    async def decide(self, decision: Decision) -> Decided:
        """Carry out what an operator decided, and write down who and why (rules 19, 20 and 22)."""
        made = decisions.Decision(
            decision.referral_id, decision.decision_id, decision.action, decision.by, decision.note
        )
        try:
            result = await self._with_cards_compared(
                lambda transaction: decisions.decide(transaction, made, self._plans, self._policy)
            )
        except ImpossibleError as error:
            return Decided(impossible=str(error))
        except UnknownReferralError:
            return Decided(impossible="nobody is known to have signed up with that referral")
        _log("decided", decision.referral_id, action=decision.action, by=decision.by, stage=result.result.stage)
        return Decided(_credit(result.result), result.at, result.voided_minutes)

    async def _with_cards_compared(self, step: Callable[[Transaction], Awaitable[Result]]) -> Result:
        """Take a step that may need cards to be compared first: that takes its time, and holds no lock meanwhile."""
        while True:
            try:
                async with self._database.discreet_transaction() as transaction:
                    return await step(transaction)
            except CardCheckNeededError as error:
                # Stripe may take its time: that is for the visible step, which has some.
                if self._cards is None or activity.info().is_local:
                    raise
                needed = error
            same_card = await self._cards.same_card(needed.invoice, needed.customers)
            async with self._database.discreet_transaction() as transaction:
                await signals.record_card_check(transaction, needed.referral_id, needed.invoice, same_card=same_card)


def _credit(result: CreditResult) -> Credit:
    return Credit(
        result.stage,
        result.reason,
        result.needs_attention,
        list(result.review_reasons),
        result.plan,
        result.minutes,
        result.credited_at,
        result.expires_at or {},
    )


def _log(event: str, referral_id: str, **values: object) -> None:
    log.info(event, referral_id=referral_id, workflow_id=workflow_id(referral_id), **values)
