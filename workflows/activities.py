"""The steps that a referral takes outside its run; `activities` carries them out on the ledger.

Each can be carried out any number of times and has one effect: what was done already is read, not done again.
"""

from abc import ABC, abstractmethod

from temporalio import activity

from workflows.messages import Attribution, Credit, Expiry


class ReferralActivities(ABC):
    """The steps of one referral, each one database transaction."""

    @activity.defn
    @abstractmethod
    async def attribute_signup(self, referral_id: str) -> Attribution:
        """Decide whether the signup that is reserved for the referral counts (rules 10, 15 and 18)."""

    @activity.defn
    @abstractmethod
    async def credit_both(self, referral_id: str) -> Credit:
        """Give both sides their bonus for the friend's first payment, once and together (rules 3 to 8)."""

    @activity.defn
    @abstractmethod
    async def expire_bonuses(self, referral_id: str) -> Expiry:
        """Expire what is unused of each bonus that is due, and say how both stand (rules 7 and 9)."""
