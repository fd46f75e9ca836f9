"""Whole stories: what several people do over months, as Stripe's events and the backend's calls tell it.

Everything told has two sides: what the program gets (an event document, a call), and what `PlainModel` is told by it.
Names hold `RUN`, which each run of a story replaces by a name of its own, so that all share one database.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.plain_model import Invoice, Period, PlainModel
from tests.stripe_events import (
    Event,
    charge_refunded,
    checkout_completed,
    dispute,
    invoice_paid,
    invoice_unpaid,
    line,
    paid_by,
    price,
    subscription,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MONTH = timedelta(days=30)
MONTHLY = {"starter": 900, "pro": 2900, "power": 7900}
YEARLY = {"pro_yearly": 29000}

Say = Callable[[PlainModel], None]
Drawn = TypeVar("Drawn")


def nothing(_: PlainModel) -> None:
    """Says nothing to the model."""


@dataclass(frozen=True)
class StripeTells:
    """An event of Stripe's: when it is made, the document, and what it means."""

    at: datetime
    document: Event
    say: Say
    links: str | None = None

    def __repr__(self) -> str:
        """Short enough to read a whole story."""
        about = self.document["data"]["object"]
        told = {key: about[key] for key in ("customer", "status", "amount_paid", "client_reference_id") if key in about}
        return f"{self.at:%m-%d %H:%M} {self.document['type']} {about['id']} {told}"


@dataclass(frozen=True)
class Put:
    """The backend reports an account, with its Stripe customer or without."""

    at: datetime
    account: str
    email: str
    created_at: datetime
    customer: str | None


@dataclass(frozen=True)
class AskForLink:
    """A member asks for its link."""

    at: datetime
    account: str


@dataclass(frozen=True)
class SignUp:
    """The backend reports a signup with a click's token; `second`, where another person had that token first."""

    at: datetime
    referral: str
    referrer: str
    account: str
    email: str
    created_at: datetime
    clicked_at: datetime
    second: bool = False

    @property
    def name(self) -> str:
        """What the referral is called in the story."""
        return f"{self.referral}-second" if self.second else self.referral


@dataclass(frozen=True)
class Use:
    """An account uses minutes."""

    at: datetime
    account: str
    usage: str
    minutes: int


Told = StripeTells | Put | AskForLink | SignUp | Use


@dataclass(frozen=True)
class Story:
    """All that is told, in the order in which it happens."""

    accounts: tuple[str, ...]
    told: tuple[Told, ...]

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        # Hypothesis would write out every document; the test adds what is needed to its failure.
        printer.text("a story")

    @property
    def contended(self) -> frozenset[str]:
        """The customers that are said of more than one account: the first one told keeps them (rule 18)."""
        said: dict[str, set[str]] = {}
        for each in self.told:
            if isinstance(each, Put) and each.customer:
                said.setdefault(each.customer, set()).add(each.account)
            if isinstance(each, StripeTells) and each.links:
                said.setdefault(each.links, set()).add(each.document["data"]["object"]["client_reference_id"])
        return frozenset(customer for customer, accounts in said.items() if len(accounts) > 1)


@dataclass
class _Writer:
    """Writes down what is told, with ids of its own."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    told: list[Told] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def name(self, kind: str) -> str:
        self.numbers[kind] = self.numbers.get(kind, 0) + 1
        return f"{kind}_RUN_{self.numbers[kind]}"

    def one_of(self, *values: Drawn) -> Drawn:
        value: Drawn = self.draw(st.sampled_from(values))
        return value

    def perhaps(self) -> bool:
        return bool(self.draw(st.booleans()))

    def stripe(self, at: datetime, document: Event, say: Say, links: str | None = None) -> None:
        document |= {"id": self.name("evt"), "created": int(at.timestamp())}
        self.told.append(StripeTells(at, document, say, links))


class _Customer:
    """A Stripe customer, and what it does: one subscription at a time."""

    def __init__(self, writer: _Writer, at: datetime) -> None:
        self._writer = writer
        self.at = at
        self.customer = writer.name("cus")
        self._subscription = writer.name("sub")
        self._start = self._end = at
        self._key = "pro"
        self._price = ""
        self._over = True
        self._charges: list[tuple[str, int, str]] = []

    def was_there_at(self, at: datetime) -> None:
        """Begin earlier than the friend signs up."""
        self.at = self._start = self._end = at

    def live(self, steps: int) -> None:
        """Do a few things, one after the other, each possible after the one before."""
        for _ in range(steps):
            chapters = [*[self.pays] * 4, self.regrets, self.tries, self.has_a_coupon, self.pays_from_a_balance]
            if not self._over:
                chapters = [self.renews, self.renews, self.upgrades, self.moves_dates, self.stretches, self.cancels]
            if self._charges:
                chapters += [self.is_refunded, self.disputes]
            self._writer.one_of(*chapters, *chapters, self.fails_to_pay)()
            self.at += self._writer.one_of(0, 1, 30, 24 * 6, 24 * 12, 24 * 29) * HOUR

    def pays(self) -> None:
        """Begin with a real payment."""
        self._begin(MONTH, self._any_amount())

    def regrets(self) -> None:
        """Pay, and get all of it back at once: that was no payment, unless somebody was credited in between."""
        self.pays()
        self._is_given_back_of(self._charges[-1], (1,))

    def regrets_by_and_by(self) -> None:
        """Pay, and get a third back, then all of it."""
        self.pays()
        self._is_given_back_of(self._charges[-1], (3, 1))

    def pays_and_disputes(self) -> None:
        """Pay, and dispute it; mostly in vain, and what was told before that it was may come after."""
        self.pays()
        self.disputes(self._writer.one_of(("won", "under_review"), ("won", "under_review"), ("won",), ("lost",)))

    def pays_for_a_year(self) -> None:
        """Begin with a year, in which every bonus has an end of its own (rule 7)."""
        self._begin(MONTH, 1, key="pro_yearly")

    def pays_for_what_is_named_late(self) -> None:
        """Begin on a price that nobody knows until days later (rule 14)."""
        self._begin(MONTH, 1, named_after=self._writer.one_of(2, 5, 20) * DAY)

    def takes_less_after_trying(self) -> None:
        """Try the largest plan, and pay for a smaller one: the first real payment has the other's rest on it."""
        self.tries("power")
        self.at += self._writer.one_of(1, 24, 24 * 9) * HOUR
        self.upgrades(self._writer.one_of("starter", "pro"))

    def pays_and_is_given_time(self) -> None:
        """Pay, have the end put off, and be in the time that was added."""
        self.pays()
        self.is_given_time()

    def is_given_time(self) -> None:
        """Have the end put off, and be in the time that was added."""
        over = self._end
        self.stretches(20)
        self.at = max(self.at, over + 4 * DAY)

    def tries(self, key: str | None = None) -> None:
        """Begin with a trial."""
        self._choose(key)
        self._begins()
        self._sees(self.at, self.at + 14 * DAY, "trialing")
        self._invoice(0, 0)

    def has_a_coupon(self) -> None:
        """Begin with a full coupon."""
        self._begin(MONTH, 0)

    def pays_from_a_balance(self) -> None:
        """Begin with an invoice that is settled from a customer balance."""
        self._begin(MONTH, 0, worth=self._any_amount())

    def renews(self) -> None:
        """Let the next period begin at the end of this one; Stripe's clock may be ahead, and tell of it before."""
        self.at = max(self.at, self._end - self._writer.one_of(0, 30) * SECOND)
        self._sees(self._end, self._end + MONTH, "active")
        self._invoice(self._any_amount())

    def upgrades(self, key: str | None = None) -> None:
        """Take another plan with a new anchor; the old one's rest is prorated."""
        old = line("", self.at, max(self._end, self.at + HOUR), -100, proration=True)
        old["pricing"]["price_details"] = {"price": self._price, "product": f"prod_{self._key}_RUN"}
        before = Period(self._subscription, self.at, max(self._end, self.at + HOUR), self._price, proration=True)
        self._choose(key)
        self._sees(self.at, self.at + MONTH, "active")
        self._invoice(self._any_amount(), more=[(old, before)])

    def moves_dates(self) -> None:
        """Be given a trial within the subscription, which moves its dates."""
        if self.at >= self._end:
            return
        self._sees(self.at, self._end + self._writer.one_of(3, 10, 40) * DAY, "trialing")
        self._invoice(0, 0)

    def stretches(self, days: int | None = None) -> None:
        """Have the end of the period put off."""
        if self.at < self._end:
            self._sees(self._start, self._end + (days or self._writer.one_of(2, 9, 35)) * DAY, "active")

    def cancels(self) -> None:
        """End the subscription now."""
        at, sub = self.at, self._subscription
        self._sees(self._start, self._end, "canceled", ended_at=at)
        self._writer.told[-1] = _also(self._writer.told[-1], lambda model: model.subscription_ended(sub, at))
        self._over = True
        self.at = max(self.at, self._end)
        self._subscription = self._writer.name("sub")

    def is_refunded(self) -> None:
        """Get money back, in part or all of it, or first a part and then the rest."""
        self._is_given_back_of(self._writer.one_of(*self._charges), self._writer.one_of((1,), (3,), (3, 1)))

    def _is_given_back_of(self, charged: tuple[str, int, str], parts: Sequence[int]) -> None:
        """Get so large a part of a charge back, one after the other; Stripe tells how much it is by then."""
        payment, amount, charge = charged
        for part in parts:
            document = charge_refunded(
                payment,
                amount // part,
                amount=amount,
                charge_id=charge,
                customer=self._writer.one_of(None, self.customer),
                created=self.at,
            )
            self._writer.stripe(self.at, document, self._given_back(payment, amount // part))

    @staticmethod
    def _given_back(payment: str, back: int) -> Say:
        return lambda model: model.refund_seen(payment, back)

    def disputes(self, more: tuple[str, ...] | None = None) -> None:
        """Dispute a payment, and perhaps lose or win."""
        payment, _, charge = self._writer.one_of(*self._charges)
        name = self._writer.name("du")
        if more is None:
            more = self._writer.one_of((), ("won",), ("won", "under_review"), ("lost",))
        step = self._writer.one_of(0, 5) * DAY
        for status in ("needs_response", *more):
            # Stripe's events have whole seconds, and the money that comes back may be told of with the status before.
            type_ = {"needs_response": "created", "under_review": "funds_reinstated"}.get(status, "closed")
            document = dispute(payment, status, dispute_id=name, charge_id=charge, type_=type_, created=self.at)
            self._writer.stripe(self.at, document, self._standing(payment, name, status))
            self.at += step

    @staticmethod
    def _standing(payment: str, name: str, status: str) -> Say:
        return lambda model: model.dispute_seen(payment, name, status)

    def fails_to_pay(self) -> None:
        """Have an invoice that is not paid."""
        type_ = self._writer.one_of("invoice.payment_failed", "invoice.voided", "invoice.marked_uncollectible")
        document = invoice_unpaid(type_, self.customer, self._subscription, self.at, self.at + MONTH)
        self._writer.stripe(self.at, document, nothing)

    def is_said_of(self, account: str, at: datetime) -> None:
        """Complete a checkout that names an account."""
        document = checkout_completed(self.customer, account)
        self._writer.stripe(at, document, lambda model: model.link(self.customer, account), self.customer)

    def _any_amount(self) -> int:
        return (MONTHLY | YEARLY)[self._key]

    def _choose(self, key: str | None = None, named_after: timedelta | None = None) -> None:
        self._key = key or self._writer.one_of(*MONTHLY, *YEARLY)
        self._price = f"price_{self._key}_RUN"
        if named_after or (key is None and self._writer.draw(st.integers(0, 5)) == 5):
            # A price without a key sells no plan that anybody knows.
            self._price = self._writer.name("price_new")
            if named_after or self._writer.perhaps():
                self._is_named(self._price, self._key, named_after or self._writer.one_of(0, 1, 24 * 2, 24 * 20) * HOUR)

    def _is_named(self, name: str, key: str, after: timedelta) -> None:
        """Somebody names the price, before it is sold or weeks after."""
        at = self.at + after
        document = price(name, key, product=f"prod_{key}_RUN", created=at)
        self._writer.stripe(at, document, lambda model: model.price_seen(name, key, at))

    def _begin(
        self,
        length: timedelta,
        amount: int,
        worth: int | None = None,
        *,
        key: str | None = None,
        named_after: timedelta | None = None,
    ) -> None:
        self._begins()
        self._choose(key, named_after)
        if amount or worth:
            amount, worth = (self._any_amount(),) * 2 if amount else (0, self._any_amount())
        length = 365 * DAY if self._key in YEARLY else length
        self._sees(self.at, self.at + length, "active")
        self._invoice(amount, worth)

    def _begins(self) -> None:
        # The period before is over, for which of two cycles at once is the account's nobody says.
        self.at = max(self.at, self._end)
        self._over = False

    def _sees(self, start: datetime, end: datetime, status: str, ended_at: datetime | None = None) -> None:
        self._start, self._end = start, end
        at, sub, customer, name = self.at, self._subscription, self.customer, self._price
        key = None if name.startswith("price_new") else self._key
        type_ = "customer.subscription." + ("deleted" if ended_at else "updated")
        document = subscription(customer, sub, start, end, status=status, ended_at=ended_at, type_=type_, created=at)
        document["data"]["object"]["items"]["data"][0]["price"] |= {
            "id": name,
            "lookup_key": key,
            "product": f"prod_{self._key}_RUN",
        }

        def say(model: PlainModel) -> None:
            model.price_seen(name, key, at)
            model.period_seen(customer, Period(sub, start, end, name))

        self._writer.stripe(at, document, say)

    def _invoice(
        self, amount: int, worth: int | None = None, more: Sequence[tuple[dict[str, Any], Period]] = ()
    ) -> None:
        worth = amount if worth is None else worth
        at, customer, sub, period = self.at, self.customer, self._subscription, (self._start, self._end)
        invoice, payment, charge = (self._writer.name(kind) for kind in ("in", "pi", "ch"))
        paying = line("", *period, worth)
        paying["pricing"]["price_details"] = {"price": self._price, "product": f"prod_{self._key}_RUN"}
        document = invoice_paid(
            customer,
            sub,
            *period,
            invoice_id=invoice,
            amount_paid=amount,
            total=worth,
            paid_at=at,
            lines=[*(document for document, _ in more), paying],
            reason=self._writer.one_of("subscription_create", "subscription_cycle", "manual"),
        )
        lines = (*(prorated for _, prorated in more), Period(sub, *period, self._price))
        told = Invoice(customer, at, amount, worth, lines)
        self._writer.stripe(at, document, lambda model: model.invoice_paid(invoice, told))
        if amount:
            document = paid_by(invoice, payment, at, amount=amount)
            document["data"]["object"]["id"] = self._writer.name("inpay")
            self._writer.stripe(at, document, lambda model: model.payment_seen(invoice, payment))
            self._charges.append((payment, amount, charge))


def _also(told: Told, say: Say) -> Told:
    assert isinstance(told, StripeTells)

    def both(model: PlainModel) -> None:
        told.say(model)
        say(model)

    return StripeTells(told.at, told.document, both, told.links)


@st.composite
def stories(draw: Callable[[st.SearchStrategy[Any]], Any], cast: Sequence["Plot"]) -> Story:
    """Some months of several accounts: the first subscribes, each later one may be referred by any before.

    Args:
        draw: as Hypothesis gives it.
        cast: what each friend's story is about; who comes first is drawn.
    """
    writer = _Writer(draw)
    plots = draw(st.permutations(list(cast)))
    accounts: list[str] = []
    customers: list[str] = []
    spelled: list[str] = []
    signs_up = START
    for number in range(1 + len(plots)):
        account = f"acc-RUN-{number}"
        signs_up += writer.one_of(1, 50, 24 * 8) * HOUR
        created_at = signs_up - writer.one_of(0, 0, 1, 400) * HOUR if number == 0 else signs_up
        email = f"p{number}.RUN@gmail.com"
        customer = _Customer(writer, signs_up + (writer.one_of(0, 2, 24 * 5) if accounts else 0) * HOUR)
        newcomer = _Newcomer(writer, account, email, created_at, signs_up, customer)
        if accounts:
            newcomer.arrives(plots[number - 1], accounts, spelled, customers)
            for _ in range(draw(st.integers(1, 2))):
                at = max(customer.at, signs_up) + writer.one_of(1, 24, 24 * 6) * HOUR
                writer.told.append(Use(at, accounts[0], writer.name("use"), draw(st.integers(1, 60))))
        else:
            signs_up = newcomer.is_there()
        accounts.append(account)
        spelled.append(email)
        customers.append(customer.customer)
        last = max(each.at for each in writer.told)
        for _ in range(draw(st.integers(0, 2))):
            at = signs_up + draw(st.integers(1, 24 * 70)) * HOUR
            writer.told.append(Use(min(at, last + DAY), account, writer.name("use"), draw(st.integers(1, 200))))
    for account in accounts[1:]:
        if writer.perhaps():
            at = max(START + 60 * DAY, signs_up + DAY)
            writer.told.append(Use(at, account, writer.name("use"), draw(st.integers(1, 400))))
    return Story(tuple(accounts), tuple(sorted(writer.told, key=lambda each: each.at)))


class Plot(Enum):
    """What a friend's story is about; the rest is as it comes. What happens rarely is what goes wrong unseen."""

    ANYTHING = auto()
    """Anything at all."""
    COURTED = auto()
    """Several links were followed, and all signups by them told (rule 10)."""
    NAMED_LATE = auto()
    """The price paid is named days after the payment (rule 14)."""
    REGRETS = auto()
    """The first payment is given back in parts, before it is known whose it is; another one perhaps not (rule 14)."""
    DISPUTES = auto()
    """The first payment is disputed, and known to be the friend's only in time that was added (rules 7 and 14)."""
    TAKES_LESS = auto()
    """A trial of a large plan becomes a small one (rule 14)."""
    FOUND_OUT = auto()
    """The customer is known only after the signup counted, and is no new one (rules 10 and 18)."""


CASTS = (
    (Plot.COURTED, Plot.REGRETS, Plot.NAMED_LATE, Plot.ANYTHING),
    (Plot.DISPUTES, Plot.TAKES_LESS, Plot.FOUND_OUT, Plot.ANYTHING),
)
"""Who is in one story. Every plot is dealt as often as any other, instead of by luck."""


@dataclass
class _Newcomer:
    """One person of a story, from the click to whatever the customer does."""

    writer: _Writer
    account: str
    email: str
    created_at: datetime
    signs_up: datetime
    customer: _Customer

    def is_there(self) -> datetime:
        """Be the first of all, whom nobody referred; gives from when on the friends may come."""
        writer, customer = self.writer, self.customer
        self._put(self.signs_up, customer.customer)
        opening = writer.one_of(customer.pays, customer.pays_for_a_year, customer.pays_and_is_given_time)
        opening()
        if opening == customer.pays_and_is_given_time:
            # The link is asked for, and friends come, when the period would be over.
            return customer.at
        customer.live(writer.draw(st.integers(0, 4 if opening == customer.pays else 1)))
        self._ask(self.signs_up + 6 * DAY)
        return self.signs_up

    def arrives(self, plot: Plot, accounts: list[str], spelled: list[str], customers: list[str]) -> None:
        """Be referred by those there already, or by nobody; then live."""
        writer, customer = self.writer, self.customer
        odd = writer.draw(st.integers(0, 9)) if plot is Plot.ANYTHING else None
        if odd == 0:
            self.email = f"P{len(spelled) - 1}.RUN+x@Gmail.com"
        if odd == 1 or (plot is Plot.FOUND_OUT and writer.perhaps()):
            customer.customer = writer.one_of(*customers)
        elif odd == 2 or plot is Plot.FOUND_OUT:
            # A customer that bought before the click, of nobody's account until now.
            customer.was_there_at(self.signs_up - 3 * DAY)
        if plot is Plot.ANYTHING:
            self._is_referred_by_anybody(accounts)
        else:
            self._is_referred(accounts, writer.one_of(2, 3) if plot is Plot.COURTED else 1)
        steps = writer.draw(st.integers(0, 4 if plot is Plot.ANYTHING else 1))
        match plot:
            case Plot.NAMED_LATE:
                self._links(writer.one_of("put", "late", "checkout"))
                customer.pays_for_what_is_named_late()
                # Whatever came after would tell of the payment as well.
                steps = 0
            case Plot.REGRETS:
                again = (customer.cancels, customer.pays_and_is_given_time) if writer.perhaps() else ()
                self._is_known_after(customer.regrets_by_and_by, *again)
            case Plot.DISPUTES:
                self._is_known_after(customer.pays_and_disputes, customer.is_given_time)
            case Plot.TAKES_LESS:
                self._links(writer.one_of("put", "late", "checkout"))
                customer.takes_less_after_trying()
            case Plot.FOUND_OUT:
                self._is_known_after(customer.pays)
            case Plot.ANYTHING if odd in (3, 4):
                self._is_known_after(customer.pays, customer.cancels, customer.pays)
            case _:
                self._links(writer.one_of("put", "put", "put", "late", "late", "checkout", "checkout", "never"))
                steps += 1
        customer.live(steps)
        self._ask(self.signs_up + writer.one_of(1, 6, 31) * DAY)

    def _is_referred(self, accounts: list[str], times: int) -> None:
        """Follow links right before the signup, mostly the first member's, who surely has one."""
        for _ in range(times):
            self._signs_up_by(self.writer.one_of(accounts[0], *accounts), self.signs_up, accounts)

    def _is_referred_by_anybody(self, accounts: list[str]) -> None:
        writer = self.writer
        referrals = writer.draw(st.integers(0, 9))
        for _ in range(2 if referrals > 7 else min(referrals, 1)):
            referrer = writer.one_of(*accounts, *accounts, self.account if referrals == 9 else accounts[0])
            age = writer.one_of(0, 0, 0, 0, 0, 0, 0, -1, -30, 60 * 24 * 20, -60 * 24 * 95)
            clicked_at = self.signs_up - timedelta(minutes=age)
            if age < -60 * 24 * 50:
                clicked_at = self.signs_up - 92 * DAY
            self._signs_up_by(referrer, clicked_at, accounts)

    def _signs_up_by(self, referrer: str, clicked_at: datetime, accounts: list[str]) -> None:
        writer = self.writer
        at = max(self.signs_up, clicked_at) + writer.one_of(0, 1, 24 * 4) * HOUR
        referral = writer.name("ref")
        told = SignUp(at, referral, referrer, self.account, self.email, self.created_at, clicked_at)
        writer.told.append(told)
        if not writer.draw(st.integers(0, 5)):
            writer.told.append(SignUp(**{**vars(told), "at": at + HOUR}))
        if not writer.draw(st.integers(0, 7)) and accounts[1:]:
            # The same token with somebody else: a referral of its own (rule 16).
            self._forwards(told, writer.one_of(*accounts[1:]))

    def _forwards(self, told: SignUp, account: str) -> None:
        email, created_at = next(
            (each.email, each.created_at)
            for each in self.writer.told
            if isinstance(each, Put | SignUp) and each.account == account
        )
        second = SignUp(
            told.at + 2 * HOUR, told.referral, told.referrer, account, email, created_at, told.clicked_at, second=True
        )
        self.writer.told.append(second)

    def _links(self, way: str) -> None:
        customer = self.customer.customer
        self._put(self.signs_up, customer if way == "put" else None)
        late = self.signs_up + self.writer.one_of(1, 24 * 3, 24 * 12) * HOUR
        if way == "late":
            self._put(late, customer)
        if way == "checkout":
            self.customer.is_said_of(self.account, late)

    def _is_known_after(self, *chapters: Callable[[], None]) -> None:
        """Do something, and only then be known to be that customer: all of it is there before the signup is looked at.

        Told late enough for a signup to have been attributed by then.
        """
        self._put(self.signs_up, None)
        for chapter in chapters:
            chapter()
        self._put(max(self.customer.at, self.signs_up + 5 * DAY) + HOUR, self.customer.customer)

    def _put(self, at: datetime, customer: str | None) -> None:
        self.writer.told.append(Put(at, self.account, self.email, self.created_at, customer))

    def _ask(self, at: datetime) -> None:
        self.writer.told.append(AskForLink(at, self.account))
