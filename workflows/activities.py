"""What runs do outside themselves; `activities` carries it out on the ledger.

Each step can be carried out any number of times and has one effect: what was done already is read, not done again.
"""

from abc import ABC, abstractmethod

from temporalio import activity

from workflows.deliveries import DeliveryOrder, DeliveryOutcome, Parcel
from workflows.messages import Attribution, Credit, Decided, Decision, Expiry
from workflows.reconciliation_messages import Compared, PageRead, Progress, ReconciliationStart, Span


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

    @activity.defn
    @abstractmethod
    async def decide(self, decision: Decision) -> Decided:
        """Carry out what an operator decided, and write down who and why (rules 19, 20 and 22)."""


class UpkeepActivities(ABC):
    """What Schedules have done regularly."""

    @activity.defn
    @abstractmethod
    async def remind_of_reviews(self) -> int:
        """Write a log line for each referral that waits for an operator (rules 19 and 20); gives how many there are."""

    @activity.defn
    @abstractmethod
    async def remind_of_expiring(self) -> int:
        """Tell the owner of each bonus that ends within three days; gives how many bonuses were looked at."""

    @activity.defn
    @abstractmethod
    async def start_deliveries(self) -> int:
        """Have delivered what nobody seems to deliver; gives how many deliveries were started."""

    @activity.defn
    @abstractmethod
    async def tidy_outbox(self) -> None:
        """Throw away old messages."""


class DeliveryActivities(ABC):
    """The delivery of one message to every endpoint."""

    @activity.defn
    @abstractmethod
    async def begin_delivery(self, order: DeliveryOrder) -> list[str]:
        """Find out which endpoints the message has to go to."""

    @activity.defn
    @abstractmethod
    async def deliver(self, parcel: Parcel) -> None:
        """Send the message to an endpoint, once; fails where the endpoint does not take it."""

    @activity.defn
    @abstractmethod
    async def end_delivery(self, outcome: DeliveryOutcome) -> None:
        """Write down that the delivery is over, and which endpoints have not taken the message."""


class ReconciliationActivities(ABC):
    """What the ledger lacks of what Stripe knows, found and mended."""

    @activity.defn
    @abstractmethod
    async def begin_reconciliation(self, start: ReconciliationStart) -> Progress | None:
        """Decide from when on events are read; none where Stripe cannot be asked."""

    @activity.defn
    @abstractmethod
    async def apply_events(self, span: Span) -> PageRead:
        """Apply what was never handled of one page of events."""

    @activity.defn
    @abstractmethod
    async def tell_the_untold(self) -> int:
        """Tell the runs of events that were applied and never told; gives how many, none when all are."""

    @activity.defn
    @abstractmethod
    async def compare_invoices(self) -> Compared:
        """Compare the next referrals that wait for a payment with Stripe's paid invoices."""

    @activity.defn
    @abstractmethod
    async def report_reconciliation(self, progress: Progress) -> None:
        """Write down what was mended."""
