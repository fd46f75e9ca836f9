"""Whole stories, as Stripe and the backend tell them, in any order: the ledger ends as the rules say.

Each story is told three times to the real ledger, as three sets of people. *Calmly*: in batches, in order, and after
each the runs do what they are told to. *Shuffled*: the same batches, but within each the events come in any order, some
twice, and some not at all until reconciliation brings them, the newest first: it ends in the same facts and the same
ledger, to the second. *At random*: every event comes hours or weeks late, and the runs act at once, so that what is
first known differs (rule 14). Each is told to `PlainModel` too, which has to agree.

`HYPOTHESIS_EXAMPLES` lets it run for longer, `HYPOTHESIS_SEED` with other stories.
"""

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from hypothesis import strategies as st

from billing.events import reduce_event
from devstack.postgres import EmbeddedPostgres
from ledger import accounts, facts, late_prices, queries, reports, usage
from ledger.accounts import NotAPaidSubscriberError, Profile
from ledger.database import Database
from ledger.facts import News
from ledger.referrals import ClickedLink, Reservation
from program.eligibility import Refusal
from program.plans import Plans
from program.referral import AttributionWindow, Role, Stage
from tests.plain_model import PlainModel
from tests.stories import CASTS, DAY, START, AskForLink, Plot, Put, SignUp, Story, StripeTells, Told, Use, stories
from tests.stripe_events import unique
from tests.support import HASHES, Books, Clock, copied_database

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "8"))
SEED = os.environ.get("HYPOTHESIS_SEED")

PLAN_MINUTES = {"starter": 90, "pro": 360, "power": 1200, "pro_yearly": 360}
REASONS = {
    "self": Refusal.SAME_ACCOUNT,
    "same e-mail": Refusal.SAME_EMAIL,
    "same customer": Refusal.SAME_CUSTOMER,
    "not new": Refusal.EXISTING_ACCOUNT,
    "referred already": Refusal.ALREADY_REFERRED,
    "known e-mail": Refusal.KNOWN_EMAIL,
    "known customer": Refusal.KNOWN_CUSTOMER,
    "paid before": Refusal.PAID_BEFORE,
}
FACTS = {
    "customer": "customer_id, account_id",
    "paid_period": "*",
    "seen_period": "*",
    "subscription": "*",
    "price": "*",
    "invoice_payment": "*",
    "refund": "*",
    "dispute": "*",
    "stripe_event": "event_id, type, created_at",
}

_runs = itertools.count(1)


class StoppedClock(Clock):
    """A clock that stands still until it is set; the ledger of these tests reads no other."""

    def set(self, now: datetime) -> None:
        """Let it be that time."""
        self._ahead = now - START

    async def now(self) -> datetime:
        return START + self._ahead


@dataclass
class Life:
    """One run of a story: the real ledger and the plain model side by side, and what the runs would know."""

    books: Books
    name: str = field(default_factory=lambda: f"r{next(_runs)}")
    model: PlainModel = field(default_factory=lambda: PlainModel(PLAN_MINUTES))
    now: datetime = START
    ids: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    due: dict[str, dict[Role, datetime]] = field(default_factory=dict)

    def real(self, name: str) -> str:
        """A name of the story, as this run has it."""
        return name.replace("RUN", self.name)

    async def pass_time(self, now: datetime) -> None:
        """Let it be later, and the runs expire what is due until then, each at its time."""
        now = max(now, self.now)
        while (at := min((end for ends in self.due.values() for end in ends.values()), default=now)) <= now:
            if not any(self.due.values()):
                break
            self._set(at)
            for name, ends in self.due.items():
                if ends and min(ends.values()) <= at:
                    result = await self.books.expire(self.ids[name])
                    self.due[name] = {role: end for role, (end, _) in result.open.items()}
                    assert all(end > at for end in self.due[name].values()), f"{name} is not over at its end (rule 7)"
            if at == now:
                break
        self._set(now)

    def _set(self, now: datetime) -> None:
        self.now = now
        assert isinstance(self.books.clock, StoppedClock)
        self.books.clock.set(now)
        self.model.time_passes(now)

    async def hear(self, told: Told) -> None:
        """Take one call or event, in the ledger and in the model."""
        match told:
            case StripeTells():
                document = json.loads(self.real(json.dumps(told.document)))
                reduced = reduce_event(document)
                async with self.books.database.transaction() as transaction:
                    news = await facts.apply_event(transaction, reduced, self.books.plans, HASHES)
                    await facts.mark_signalled(transaction, reduced.event_id)
                self._tell(news)
                async for late in late_prices.news(self.books.database.transaction, news, self.books.plans):
                    self._tell(late)
                told.say(self.model)
            case Put():
                await self._put(told)
            case AskForLink():
                await self._ask(told.account)
            case SignUp():
                await self._sign_up(told)
            case Use():
                await self._use(told)
        self.model.ends_move()

    def _tell(self, news: News) -> None:
        names = {actual: name for name, actual in self.ids.items()}
        self.told |= {names[waiting.referral_id] for waiting in news.payments}
        for moved in news.moved:
            ends = self.due[names[moved.referral_id]]
            ends[moved.role] = max(ends[moved.role], moved.expires_at)

    async def _put(self, told: Put) -> None:
        customer = self.real(told.customer) if told.customer else None
        profile = Profile(self.real(told.account), self.real(told.email), told.created_at, customer)
        async with self.books.database.transaction() as transaction:
            news, _ = await reports.account(transaction, profile, HASHES, self.books.plans)
        self._tell(news)
        self.model.put(told.account, told.email, told.created_at, told.customer)

    async def _ask(self, account: str) -> str | None:
        """Rule 1: both say whether there is a link; it is the same one every time."""
        if account not in self.model.accounts:
            return None
        try:
            async with self.books.database.transaction() as transaction:
                link = await accounts.give_link(transaction, self.real(account), "2026-01", self.books.plans)
        except NotAPaidSubscriberError:
            assert not self.model.ask_for_link(self.now, account), f"{account} is refused a link at {self.now}"
            return None
        assert self.model.ask_for_link(self.now, account), f"{account} is given a link at {self.now}"
        return link.code

    async def _sign_up(self, told: SignUp) -> None:
        code = await self._ask(told.referrer)
        if code is None:
            return
        click = ClickedLink(self.real(told.referral), code, "link", AttributionWindow(told.clicked_at))
        assert click.window.lapsed(self.now) == self.model.is_reported_too_late(self.now, told.clicked_at)
        if click.window.lapsed(self.now):
            return
        profile = Profile(self.real(told.account), self.real(told.email), told.created_at)
        async with self.books.database.transaction() as transaction:
            made: Reservation = await reports.signup(transaction, profile, click, self.real(told.referrer), HASHES)
        # Where the first person with a token never came to sign up, a second one has the click's own referral.
        name = next((name for name, actual in self.ids.items() if actual == made.referral_id), told.name)
        self.ids[name] = made.referral_id
        self.told.add(name)
        self.model.put(told.account, told.email, told.created_at, None)
        self.model.sign_up(name, told.referrer, told.account, told.clicked_at)

    async def _use(self, told: Use) -> None:
        """Rule 21: the same again is the same."""
        ties = [
            f"{name}-{role}" for _, role, name in sorted((id_, r, n) for n, id_ in self.ids.items() for r in list(Role))
        ]
        for _ in range(2):
            async with self.books.database.transaction() as transaction:
                used = await usage.spend(transaction, self.real(told.account), self.real(told.usage), told.minutes)
            expected = self.model.use(told.account, told.usage, told.minutes, ties=ties)
            assert used.from_bonus == expected, f"{told.account} uses {told.minutes} at {self.now}"
        # Of which lot they were shows as long as these are open.
        await self._agree_on(told.account)

    async def act(self) -> None:
        """Let the runs that were told do what they do, in the order of the signups; the model decides by itself."""
        for name in list(self.ids):
            if name in self.told and name not in self.held:
                self.told.discard(name)
                if (await self.books.attribute(self.ids[name])).stage is Stage.SIGNED_UP:
                    await self._look_at_payment(name)
        self.model.decide(self.now)

    async def _look_at_payment(self, name: str) -> None:
        result = await self.books.credit(self.ids[name])
        if result.stage is Stage.CREDITED:
            assert result.expires_at is not None
            self.due[name] = dict(result.expires_at)
        elif result.stage is Stage.IN_REVIEW:
            # Held until an operator decides (rule 19).
            self.held.add(name)

    async def end(self) -> None:
        """Compare all that can be seen, then again when every bonus is over."""
        # All lives of a story share one clock.
        self._set(self.now)
        try:
            await self._agree()
            await self.pass_time(self.now + 40 * DAY)
            await self._agree()
        except AssertionError as error:
            error.add_note("\n".join(f"{name}: {referral}" for name, referral in self.model.referrals.items()))
            raise

    async def _agree(self) -> None:
        for name, told in self.model.referrals.items():
            shown = await self.books.referral(self.ids[name])
            assert shown.stage == told.stage, f"{name} at {self.now}"
            assert (told.plan or "").partition("_")[0] == (shown.plan or ""), name
            assert shown.credited_at == told.credited_at, name
            assert {str(role): end for role, end in shown.expires_at.items()} == {
                role: lot.expires_at for role, lot in told.lots.items()
            }, name
            assert bool(shown.reason) == (told.stage in ("refused", "lapsed", "in_review")), name
            if told.stage == "refused":
                assert shown.reason in {REASONS[reason].words for reason in told.reasons}, name
        for account in self.model.accounts:
            await self._agree_on(account)
        await self._within_bounds()

    async def _agree_on(self, account: str) -> None:
        async with self.books.database.transaction() as transaction:
            lots = (await queries.lots(transaction, self.real(account))).lots
            seen = await queries.summary(transaction, self.real(account))
        real = {lot.grant_id: (lot.minutes, lot.remaining, lot.state == "expired") for lot in lots}
        plain = {
            f"{self.ids[name]}-{role}": (lot.minutes, 0 if lot.expired else lot.remaining, lot.expired)
            for name, referral in self.model.referrals.items()
            for role, lot in referral.lots.items()
            if lot.account == account
        }
        assert real == plain, f"{account} at {self.now}"
        assert (seen.invited, seen.subscribed, seen.bonus_minutes_earned, seen.bonus_minutes_available) == (
            self.model.summary(account)
        ), f"{account} at {self.now}"

    async def _within_bounds(self) -> None:
        """What holds of every ledger, whatever the story (rules 3, 6, 11 and 21)."""
        mine = {"mine": f"acc-{self.name}-%"}
        lots = await self.books.rows(
            "SELECT l.referral_id, l.role, l.minutes, l.remaining, l.account_id, r.referrer_id, r.referee_id, "
            "(SELECT sum(delta) FROM entry e WHERE e.grant_id = l.grant_id), "
            "(SELECT count(*) FROM entry e WHERE e.grant_id = l.grant_id AND e.kind = 'credit') "
            "FROM grant_lot l JOIN referral r USING (referral_id) WHERE l.account_id LIKE :mine",
            **mine,
        )
        sides: dict[str, dict[str, int]] = {}
        referees: Counter[str] = Counter()
        for referral_id, role, minutes, remaining, account, referrer, referee, journal, credited in lots:
            assert 0 <= remaining <= minutes
            assert journal == remaining, f"the journal of {referral_id}-{role}"
            assert credited == 1, f"credits of {referral_id}-{role}"
            assert account == (referrer if role == "referrer" else referee), f"the owner of {referral_id}-{role}"
            sides.setdefault(referral_id, {})[role] = minutes
            referees[referee] += role == "referee"
        assert all(set(both) == {"referrer", "referee"} and len(set(both.values())) == 1 for both in sides.values())
        assert set(referees.values()) <= {1}, "somebody was bonus-worthy twice"
        # Rule 12: what is kept by month and by channel adds up.
        adrift = await self.books.rows(
            "SELECT a.account_id, m.*, c.* FROM account a, "
            "LATERAL (SELECT coalesce(sum(invited), 0), coalesce(sum(subscribed), 0), coalesce(sum(minutes), 0) "
            " FROM month_total t WHERE t.account_id = a.account_id) m (invited, subscribed, minutes), "
            "LATERAL (SELECT coalesce(sum(signups), 0) FROM channel_total t WHERE t.account_id = a.account_id) "
            " c (signups) "
            "WHERE account_id LIKE :mine AND (a.invited, a.subscribed, a.minutes_earned, a.invited) "
            "<> (m.invited, m.subscribed, m.minutes, c.signups)",
            **mine,
        )
        assert adrift == []

    async def facts(self, without: frozenset[str] = frozenset()) -> dict[str, list[str]]:
        """What is known of Stripe's facts, but for the customers `without` which."""
        found = {}
        for table, columns in FACTS.items():
            statement = f"SELECT {columns} FROM {table} t WHERE t::text LIKE :mine"  # noqa: S608 - names of our own
            rows = await self.books.rows(statement, mine=f"%\\_{self.name}%")
            found[table] = sorted(repr(row).replace(self.name, "RUN") for row in rows)
        found["customer"] = [row for row in found["customer"] if not any(f"'{each}'" in row for each in without)]
        return found

    async def ledger(self) -> list[str]:
        """Every referral with its grants and its journal, to the second."""
        names = {actual: name for name, actual in self.ids.items()}
        rows = await self.books.rows(
            "SELECT r.referral_id, r.stage, r.reason, r.refusal, r.plan, r.qualifying_invoice, r.signed_up_at, "
            "r.credited_at, l.role, l.minutes, l.remaining, l.expires_at, l.expired_at, "
            "(SELECT string_agg(e.kind || e.delta || e.operation_key || e.at, ';' ORDER BY e.entry_id) "
            " FROM entry e WHERE e.grant_id = l.grant_id) "
            "FROM referral r LEFT JOIN grant_lot l USING (referral_id) WHERE r.referral_id = ANY(:ids)",
            ids=list(names),
        )
        return sorted(repr((names[row[0]], *row[1:])).replace(self.name, "RUN") for row in rows)


def _batches(story: Story, chance: random.Random) -> list[list[Told]]:
    """The story, cut at some places, and after most signups: these are decided before more is known of the friend."""
    cuts = {*chance.sample(range(len(story.told)), min(len(story.told), chance.randint(1, 12)))}
    signups = [number for number, told in enumerate(story.told, start=1) if isinstance(told, SignUp)]
    cuts.update(number for number in signups if chance.randrange(3))
    edges = sorted({0, *cuts, len(story.told)})
    return [list(story.told[start:end]) for start, end in itertools.pairwise(edges) if start < end]


def _disturbed(batch: Sequence[Told], chance: random.Random, contended: frozenset[str]) -> list[Told]:
    """The same news: events in any order, some twice, some found by reconciliation; who said first stays first."""
    fixed: list[Told] = [told for told in batch if isinstance(told, Put) or _contends(told, contended)]
    events = [told for told in batch if isinstance(told, StripeTells) and not _contends(told, contended)]
    lost = [told for told in events if not chance.randrange(6)]
    came = [told for told in events if told not in lost]
    came += [told for told in came if not chance.randrange(4)]
    chance.shuffle(came)
    for told in came:
        fixed.insert(chance.randint(0, len(fixed)), told)
    # Stripe lists its events with the newest first; those that came are known, and change nothing.
    return fixed + [told for told in reversed(events) if told in lost or not chance.randrange(3)]


def _contends(told: Told, contended: frozenset[str]) -> bool:
    return isinstance(told, StripeTells) and told.links in contended


async def _in_batches(books: Books, story: Story, batches: list[list[Told]], disturb: random.Random | None) -> Life:
    """Tell it in batches: what is told first, then what people do, and the runs act after each."""
    life = Life(books)
    for batch in batches:
        await life.pass_time(batch[-1].at)
        first = [told for told in batch if isinstance(told, Put | StripeTells)]
        done = [told for told in batch if not isinstance(told, Put | StripeTells)]
        at = life.now
        for told in _disturbed(first, disturb, story.contended) if disturb else first:
            # Who was there first is told by the clock (rule 10).
            if isinstance(told, Put):
                await life.pass_time(at + timedelta(seconds=1 + first.index(told)))
            await life.hear(told)
        await life.pass_time(at + timedelta(minutes=10))
        await life.act()
        for told in done:
            await life.pass_time(life.now + timedelta(seconds=1))
            await life.hear(told)
            await life.act()
    return life


async def _at_random(books: Books, story: Story, chance: random.Random) -> Life:
    """Tell it with events hours or weeks late, twice or lost for a while; the runs act at once."""
    arrivals: list[tuple[datetime, float, Told]] = []
    # Where hardly anything comes in time nobody has a link, so it is not always so.
    lateness = chance.choice([[0, 0, 0, 0, 0, 0, 0, 72], [0, 0, 0, 1, 5, 72, 24 * 20, 24 * 50]])
    for told in story.told:
        if not isinstance(told, StripeTells):
            arrivals.append((told.at, chance.random(), told))
            continue
        late = chance.choice(lateness)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            arrivals.append((told.at + timedelta(hours=late), chance.random(), told))
            late += chance.choice([0, 1, 24, 24 * 10])
    life = Life(books)
    for at, _, told in sorted(arrivals, key=lambda arrival: arrival[:2]):
        await life.pass_time(max(at, life.now + timedelta(seconds=1)))
        await life.hear(told)
        await life.act()
    return life


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def stopped(postgres: EmbeddedPostgres, template: str, plans: Plans, loop: asyncio.Runner) -> Iterator[Books]:
    """A ledger whose clock stands still, one for all stories."""
    urls = copied_database(postgres, template, unique("whole_stories"))
    with psycopg.connect(urls.owner.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS "
            f"$$ SELECT '{START.isoformat()}'::timestamptz + current_setting('referrals.clock_offset')::interval $$"
        )
    clock = StoppedClock()
    database = Database(urls.app, offset=clock.offset)
    yield Books(database, plans, clock)
    loop.run(database.close())


async def _tell(books: Books, story: Story, chance: random.Random) -> set[str]:
    """Tell a story in the three ways; gives the stages that its referrals came to."""
    batches = _batches(story, chance)
    calm = await _in_batches(books, story, batches, None)
    shuffled = await _in_batches(books, story, batches, chance)
    assert await calm.facts() == await shuffled.facts()
    assert await calm.ledger() == await shuffled.ledger()
    late = await _at_random(books, story, chance)
    assert await calm.facts(story.contended) == await late.facts(story.contended)
    for life in (calm, shuffled, late):
        await life.end()
    assert await calm.ledger() == await shuffled.ledger()
    return {referral.stage for life in (calm, shuffled, late) for referral in life.model.referrals.values()}


@pytest.mark.parametrize("cast", CASTS, ids=lambda cast: cast[0].name.lower())
def test_rules_1_to_22_any_order_of_a_whole_story_ends_as_the_rules_say(
    stopped: Books, loop: asyncio.Runner, cast: Sequence[Plot]
) -> None:
    @settings(
        max_examples=max(1, EXAMPLES // len(CASTS)),
        deadline=None,
        derandomize=SEED is None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(stories(cast), st.randoms(use_true_random=True))
    def any_story(story: Story, chance: random.Random) -> None:
        try:
            for stage in sorted(loop.run(_tell(stopped, story, chance))):
                event(stage)
        except BaseException as error:
            error.add_note("\n".join(repr(told) for told in story.told))
            raise

    (seed(int(SEED))(any_story) if SEED else any_story)()
