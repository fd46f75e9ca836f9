"""The program once more: plain dicts and loops, written from its numbered rules alone, to hold the real one against.

It is told what comes in, in the order in which it comes, and decides at once: so it knows what came first (rule 14).
It shares no code with the program, knows no events and no tables, and is slow on purpose: everything is looked at anew
after every step. Nothing here may be bent to make a test pass: where the two differ, the rules say which is wrong.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction

DAY = timedelta(days=1)
LONGEST = 31 * DAY
NEW_ACCOUNT = timedelta(minutes=2)
SIGNUP_WINDOW = 90 * DAY
REPORT_WINDOW = 7 * DAY
RENEWAL_GRACE = 3 * DAY
CLOCKS_APART = timedelta(minutes=1)


@dataclass
class Account:
    """Somebody who was reported."""

    email: str
    created_at: datetime
    has_link: bool = False


@dataclass(frozen=True)
class Period:
    """What one line of an invoice pays for, or a billing period that a subscription was seen in."""

    subscription: str
    start: datetime
    end: datetime
    price: str = ""
    proration: bool = False


@dataclass(frozen=True)
class Invoice:
    """A paid invoice: what was really paid for it, and what it was worth, a balance that settled it included."""

    customer: str
    paid_at: datetime
    amount_paid: int
    worth: int
    lines: tuple[Period, ...]


@dataclass
class Lot:
    """Bonus minutes of one side of one referral."""

    name: str
    account: str
    minutes: int
    remaining: int
    credited_at: datetime
    expires_at: datetime
    expired: bool = False


@dataclass
class Referral:
    """One click, and who signed up by it."""

    referrer: str
    referee: str
    clicked_at: datetime
    stage: str = "clicked"
    reasons: frozenset[str] = frozenset()
    plan: str | None = None
    late: bool = False
    attributed: bool = False
    credited_at: datetime | None = None
    lots: dict[str, Lot] = field(default_factory=dict)


def same_person(email: str) -> str:
    """An address as rule 10 compares it; only Google's mail is known here to ignore dots and tags."""
    name, _, domain = email.lower().partition("@")
    if domain in ("gmail.com", "googlemail.com"):
        name, domain = name.split("+")[0].replace(".", ""), "gmail.com"
    return f"{name}@{domain}"


class PlainModel:
    """The whole program in one object.

    Args:
        plans: the minutes of a plan by its lookup key.
    """

    def __init__(self, plans: dict[str, int]) -> None:
        self.plans = plans
        self.accounts: dict[str, Account] = {}
        self.referrals: dict[str, Referral] = {}
        self.emails: list[tuple[str, str]] = []
        self.customers: list[tuple[str, str]] = []
        self.invoices: dict[str, Invoice] = {}
        self.seen: list[tuple[str, Period]] = []
        self.ended: dict[str, datetime] = {}
        self.prices: dict[str, tuple[datetime, str]] = {}
        self.payments: dict[str, str] = {}
        self.refunded: dict[str, int] = {}
        self.disputes: dict[str, dict[str, str]] = {}
        self.used: dict[str, int] = {}

    # What comes in.

    def put(self, account: str, email: str, created_at: datetime, customer: str | None) -> None:
        """The backend reports an account."""
        self.accounts.setdefault(account, Account(email, created_at))
        self.emails.append((same_person(email), account))
        if customer:
            self.link(customer, account)

    def link(self, customer: str, account: str) -> None:
        """A customer is said to be an account's."""
        self.customers.append((customer, account))

    def ask_for_link(self, now: datetime, account: str) -> bool:
        """Rule 1: only a paid subscriber is given a link; one already given is returned at any time."""
        self.accounts[account].has_link |= self.is_paid_subscriber(now, account)
        return self.accounts[account].has_link

    def sign_up(self, referral: str, referrer: str, account: str, clicked_at: datetime) -> None:
        """A signup is reported with the token of a click (rule 2); the same call again is no other signup."""
        if referral in self.referrals:
            return
        made = self.referrals[referral] = Referral(referrer, account, clicked_at)
        created_at = self.accounts[account].created_at
        made.late = created_at >= clicked_at + SIGNUP_WINDOW

    def is_reported_too_late(self, now: datetime, clicked_at: datetime) -> bool:
        """Rule 15: the call that reports a signup may come up to 7 days after the window."""
        return now >= clicked_at + SIGNUP_WINDOW + REPORT_WINDOW

    def invoice_paid(self, invoice: str, told: Invoice) -> None:
        """Stripe says that an invoice is paid."""
        self.invoices.setdefault(invoice, told)

    def period_seen(self, customer: str, period: Period) -> None:
        """Stripe shows a subscription in a billing period."""
        self.seen.append((customer, period))

    def subscription_ended(self, subscription: str, at: datetime) -> None:
        """Stripe says that a subscription is over."""
        self.ended[subscription] = min(at, self.ended.get(subscription, at))

    def price_seen(self, price: str, lookup_key: str | None, at: datetime) -> None:
        """Stripe says by which key a price is known; a price that has lost its key keeps the plan it was sold as."""
        if lookup_key and (price not in self.prices or at >= self.prices[price][0]):
            self.prices[price] = (at, lookup_key)

    def payment_seen(self, invoice: str, payment: str) -> None:
        """Stripe says by which payment an invoice was paid."""
        self.payments[payment] = invoice

    def refund_seen(self, payment: str, amount: int) -> None:
        """Stripe says how much of a payment was given back so far."""
        self.refunded[payment] = max(amount, self.refunded.get(payment, 0))

    def dispute_seen(self, payment: str, dispute: str, status: str) -> None:
        """Stripe says how a dispute stands; one that is over stays so."""
        known = self.disputes.setdefault(payment, {})
        if known.get(dispute) not in ("won", "lost"):
            known[dispute] = status

    def use(self, account: str, usage: str, minutes: int, *, ties: list[str]) -> int:
        """Rule 21: how many minutes the bonus covers, the soonest to expire first.

        Which of two lots with one and the same end comes first is nobody's promise, so it is told by their names.
        """
        if usage in self.used:
            return self.used[usage]
        left = minutes
        for lot in sorted(self.open_lots(account), key=lambda lot: (lot.expires_at, ties.index(lot.name))):
            taken = min(left, lot.remaining)
            lot.remaining -= taken
            left -= taken
        self.used[usage] = minutes - left
        return minutes - left

    # What follows from it.

    def time_passes(self, now: datetime) -> None:
        """Rule 7: at its end a lot is expired; with both, the referral is settled."""
        for referral in self.referrals.values():
            for lot in referral.lots.values():
                lot.expired = lot.expired or now >= lot.expires_at
            if referral.lots and all(lot.expired for lot in referral.lots.values()):
                referral.stage = "settled"

    def ends_move(self) -> None:
        """Rule 9, for every lot that is not over."""
        for referral in self.referrals.values():
            for lot in referral.lots.values():
                if not lot.expired:
                    lot.expires_at = self.moved(lot.account, lot.credited_at, lot.expires_at)

    def decide(self, now: datetime) -> None:
        """Whatever can be decided by what is known now: who is whose referral (rules 10, 18), and who is credited."""
        for name, referral in self.referrals.items():
            if referral.stage == "clicked":
                self.refuse(referral, self.reasons_at_signup(name, referral))
                if referral.stage == "clicked" and referral.late:
                    referral.stage = "lapsed"
                elif referral.stage == "clicked":
                    referral.stage, referral.attributed = "signed_up", True
            if referral.stage == "signed_up" and self.something_to_look_at(referral.referee):
                self.refuse(referral, self.reasons_at_any_time(referral))
            if referral.stage == "signed_up":
                self.look_at_payments(now, name, referral)

    def something_to_look_at(self, account: str) -> bool:
        """Whether the referee has paid anything, or names a customer whose payments will never be the referee's."""
        mine = self.own_customers(account)
        paid = any(invoice.customer in mine and invoice.amount_paid > 0 for invoice in self.invoices.values())
        return paid or any(named == account and customer not in mine for customer, named in self.customers)

    def refuse(self, referral: Referral, reasons: set[str]) -> None:
        """Rule 22: it ends with its reasons, where there are any; which of several is told is nobody's promise."""
        if reasons:
            referral.stage, referral.reasons = "refused", frozenset(reasons)

    def reasons_at_signup(self, name: str, referral: Referral) -> set[str]:
        """Rule 10 and rule 18, when the signup is attributed."""
        reasons = self.reasons_at_any_time(referral)
        if self.accounts[referral.referee].created_at < referral.clicked_at - NEW_ACCOUNT:
            reasons.add("not new")
        for other_name, other in self.referrals.items():
            if (
                other_name != name
                and other.referee == referral.referee
                and other.attributed
                and other.stage != "refused"
            ):
                reasons.add("referred already")
        return reasons

    def reasons_at_any_time(self, referral: Referral) -> set[str]:
        """What of rules 10 and 18 may become known at any time until the credit."""
        reasons = set()
        referrer, referee = referral.referrer, referral.referee
        if referrer == referee:
            reasons.add("self")
        mails = {mail for mail, account in self.emails if account == referee}
        customers = {customer for customer, account in self.customers if account == referee}
        if any(account == referrer for mail, account in self.emails if mail in mails):
            reasons.add("same e-mail")
        if any(account == referrer for customer, account in self.customers if customer in customers):
            reasons.add("same customer")
        if any(self.first(self.emails, mail) != referee for mail in mails):
            reasons.add("known e-mail")
        if any(self.first(self.customers, customer) != referee for customer in customers):
            reasons.add("known customer")
        for invoice in self.invoices.values():
            if invoice.customer in customers and invoice.amount_paid > 0 and invoice.paid_at < referral.clicked_at:
                reasons.add("paid before")
        return reasons

    @staticmethod
    def first(told: list[tuple[str, str]], what: str) -> str | None:
        """The account that something was first said of."""
        return next((account for name, account in told if name == what), None)

    def own_customers(self, account: str) -> set[str]:
        """Rule 18: a customer's payments are those of the first account that it was said of."""
        return {customer for customer, _ in self.customers if self.first(self.customers, customer) == account}

    def look_at_payments(self, now: datetime, referral_name: str, referral: Referral) -> None:
        """Rule 14: the earliest payment that is known to be for a plan; it is waited for, where none is."""
        mine = self.own_customers(referral.referee)
        paid = [(told.paid_at, name) for name, told in self.invoices.items() if told.customer in mine]
        for _, name in sorted(paid):
            invoice = self.invoices[name]
            back = sum(self.refunded.get(payment, 0) for payment, of in self.payments.items() if of == name)
            if invoice.amount_paid <= 0 or back >= invoice.amount_paid:
                continue
            prices = [line.price for line in invoice.lines if not line.proration]
            keys = [self.prices[price][1] for price in prices if self.sells_a_plan(price)]
            if not keys:
                continue
            if back or self.disputed(name):
                referral.stage = "in_review"
                return
            self.credit(now, referral_name, referral, max(keys, key=lambda key: self.plans[key]))
            return

    def sells_a_plan(self, price: str) -> bool:
        """Whether it is known by now that a price sells one of the plans."""
        return price in self.prices and self.prices[price][1] in self.plans

    def disputed(self, invoice: str) -> bool:
        """Whether a dispute of an invoice's payment is not won."""
        payments = [payment for payment, of in self.payments.items() if of == invoice]
        return any(status != "won" for payment in payments for status in self.disputes.get(payment, {}).values())

    def credit(self, now: datetime, name: str, referral: Referral, plan: str) -> None:
        """Rules 3, 4 and 6: a quarter of the plan's minutes to both, at once."""
        minutes = round(Fraction(self.plans[plan], 4))
        referral.stage, referral.plan, referral.credited_at = "credited", plan, now
        for role, account in (("referrer", referral.referrer), ("referee", referral.referee)):
            referral.lots[role] = Lot(
                f"{name}-{role}", account, minutes, minutes, now, self.end_of_credit(now, account)
            )

    def paid_periods(self, account: str) -> list[Period]:
        """The billing periods that an account has paid for, from a balance too, as long as Stripe made them since."""
        mine = self.own_customers(account)
        paid = []
        for invoice in self.invoices.values():
            for line in invoice.lines:
                if (
                    invoice.customer in mine
                    and invoice.worth > 0
                    and not line.proration
                    and self.sells_a_plan(line.price)
                ):
                    ends = [line.end]
                    ends += [
                        seen.end
                        for seen in self.seen_periods(account)
                        if (seen.subscription, seen.start) == (line.subscription, line.start)
                    ]
                    paid.append(Period(line.subscription, line.start, max(ends)))
        return paid

    def seen_periods(self, account: str) -> list[Period]:
        """The billing periods that an account's subscriptions to plans were seen in, paid or not."""
        mine = self.own_customers(account)
        return [period for customer, period in self.seen if customer in mine and self.sells_a_plan(period.price)]

    def is_paid_subscriber(self, now: datetime, account: str) -> bool:
        """In a paid period, or less than three days after the last of a subscription that has not ended."""
        for period in self.paid_periods(account):
            if period.start <= now < period.end:
                return True
            over = period.subscription in self.ended and self.ended[period.subscription] <= now
            if period.end <= now < period.end + RENEWAL_GRACE and not over:
                return True
        return False

    def end_of_credit(self, now: datetime, account: str) -> datetime:
        """Rules 7 and 8: the end of the cycle that the account is in, if it is in one, and 31 days at most.

        One that is paid for and begins within a minute has begun by Stripe's clock.
        """
        paid = self.paid_periods(account)
        ends = [period.end for period in paid if period.start <= now < period.end]
        if not ends:
            begins = [(period.start, period.end) for period in paid if now < period.start <= now + CLOCKS_APART]
            ends = [end for _, end in sorted(begins)[:1]]
        return self.moved(account, now, min(max(ends), now + LONGEST)) if ends else now + LONGEST

    def moved(self, account: str, credited_at: datetime, end: datetime) -> datetime:
        """Rule 9: a period that begins before the end and ends after it takes the end along, again and again."""
        periods = self.paid_periods(account) + self.seen_periods(account)
        while True:
            later = [period.end for period in periods if period.start < end < period.end]
            if not later or end >= credited_at + LONGEST:
                return end
            end = min(max(later), credited_at + LONGEST)

    # What can be seen of it.

    def open_lots(self, account: str) -> list[Lot]:
        """The lots of an account that can be used."""
        lots = [lot for referral in self.referrals.values() for lot in referral.lots.values()]
        return [lot for lot in lots if lot.account == account and not lot.expired]

    def available(self, account: str) -> int:
        """The bonus minutes that an account can use."""
        return sum(lot.remaining for lot in self.open_lots(account))

    def summary(self, account: str) -> tuple[int, int, int, int]:
        """Rule 12: invited, subscribed, earned in either role, and what is left of it to use."""
        mine = [referral for referral in self.referrals.values() if referral.referrer == account]
        invited = sum(referral.attributed and referral.stage != "refused" for referral in mine)
        subscribed = sum(bool(referral.lots) for referral in mine)
        lots = [lot for referral in self.referrals.values() for lot in referral.lots.values()]
        earned = sum(lot.minutes for lot in lots if lot.account == account)
        return invited, subscribed, earned, self.available(account)
