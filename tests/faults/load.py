"""Those who use the program while it suffers: members, friends, the backend, operators, and Stripe.

Each says what it has to say until it is answered, as a backend and Stripe do, and writes down what it was answered.
"""

import asyncio
import hashlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from standardwebhooks import Webhook, WebhookVerificationError

from devstack.stripe_events import PRICES_IN_CENTS, Subscription, event, signed
from devstack.walk import BROWSER, TERMS_VERSION
from ledger.referrals import ClickedLink, derived_id
from program.referral import ATTRIBUTION_WINDOW, REPORTING_GRACE, AttributionWindow
from runtime.settings import PROJECT
from starter.tokens import Tokens
from tests.faults.record import Record
from tests.faults.schedule import Kind, Step
from tests.faults.servers import Servers
from tests.stripe_server import StripeServer
from workflows.client import ReferralOverError, ReferralRuns, UnreachableError
from workflows.messages import ReferralStart

AGAIN_SECONDS = 0.4
"""How soon somebody who got no answer says it again."""

LOOK_SECONDS = 1.0
COMMAND_SECONDS = 60

RECONCILE_SECONDS = 420.0
"""A step of a reconciliation whose worker was killed is taken up after two minutes."""

MOST_AT_ONCE = 14
"""How many stories go on at the same time."""

STORY_SECONDS = 240.0
"""How long a story may take, whatever happens meanwhile."""

STARS = 2

_MONTH = timedelta(days=30)
_FINAL = ("settled", "refused", "voided", "lapsed")


class UnexpectedAnswerError(Exception):
    """The program answered what its contract does not have for that call."""


class Receiver:
    """The backend's endpoint: takes messages, verifies them, and now and then wants to be told again (ASGI)."""

    def __init__(self, secret: str, record: Record) -> None:
        """Verify with this secret; what arrives is written down."""
        self._webhook = Webhook(secret)
        self._record = record
        self._attempts: Counter[str] = Counter()
        self.forged = 0
        self.refused = 0
        self.out_of_order = False

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            part = await receive()
            if part["type"] == "http.disconnect":
                # Whoever sent it was killed in the middle of it.
                return
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        await send({"type": "http.response.start", "status": self._take(scope, body), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def _take(self, scope: MutableMapping[str, Any], body: bytes) -> int:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        try:
            self._webhook.verify(body, headers)
        except WebhookVerificationError:
            self.forged += 1
            return 400
        message = headers["webhook-id"]
        self._attempts[message] += 1
        digest = hashlib.sha256(body).hexdigest()
        if self.out_of_order:
            self.refused += 1
            return 503
        if self._attempts[message] == 1 and int(digest[0], 16) < 2:
            return 503
        self._record.write("received", message=message, body=digest)
        return 204


@dataclass
class _Person:
    """An account with its Stripe customer and subscription."""

    account: str
    plan: str
    cycle_ends: datetime
    cycle_began: datetime
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        # Ids that Stripe could have given.
        self.email = f"{self.account}@example.com"
        self.subscription = Subscription(f"cus_{self.account.replace('-', '')}", self.plan)
        self.invoice = f"in_{self.account.replace('-', '')}"
        self.card = f"card of {self.account}"

    def begins_now(self) -> None:
        """Let the first period begin, and last as long as it was to."""
        lasts = self.cycle_ends - self.cycle_began
        self.cycle_began = datetime.now(UTC).replace(microsecond=0)
        self.cycle_ends = self.cycle_began + lasts

    def events(self) -> list[dict[str, Any]]:
        """What Stripe tells when the first period of the subscription is paid."""
        start, end = _unix(self.cycle_began), _unix(self.cycle_ends)
        return [
            self.subscription.created(start, end),
            self.subscription.paid(start, end, start, renewal=False, invoice=self.invoice),
            self.subscription.paid_by(self.invoice, start),
        ]


def _unix(at: datetime) -> int:
    return int(at.timestamp())


class Load:
    """Starts stories, and keeps count of how they go."""

    def __init__(
        self,
        servers: Servers,
        stripe: StripeServer,
        record: Record,
        seed: int,
        cycle_seconds: float,
        *,
        reconciles_meanwhile: bool,
    ) -> None:
        """Use the program that runs on `servers`.

        Args:
            servers: the processes.
            stripe: Stripe's API, to be told what happens at Stripe.
            record: what was sent and answered.
            seed: makes ids that other runs do not have.
            cycle_seconds: how soon a friend's billing cycle ends, at least.
            reconciles_meanwhile: whether Stripe's lost events are looked for while faults happen, not only afterwards.
        """
        self._reconciles_meanwhile = reconciles_meanwhile
        self._servers = servers
        self._stripe = stripe
        self._record = record
        self._seed = seed
        self._cycle_seconds = cycle_seconds
        self._http = httpx.AsyncClient(base_url=servers.stack.url, timeout=12, trust_env=False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stars: dict[int, asyncio.Task[tuple[_Person, str]]] = {}
        self._reconciling: set[asyncio.Task[bool]] = set()
        self.losing = False
        self.lost_events = 0
        self.statuses: Counter[str] = Counter()
        self.problems: list[str] = []
        self.started: Counter[Kind] = Counter()

    @property
    def open(self) -> int:
        """How many stories go on."""
        return len(self._tasks)

    def begin(self, step: Step) -> None:
        """Begin the story of a step."""
        self.started[step.kind] += 1
        task = asyncio.create_task(self._guarded(_Story(self, step)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def has_room(self) -> None:
        """Wait while as many stories go on as there may: a program that is slow is not buried."""
        while len(self._tasks) >= MOST_AT_ONCE:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def ends(self) -> None:
        """Wait until all stories are at their ends."""
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*self._reconciling)

    async def close(self) -> None:
        """Leave off."""
        for task in (*self._tasks, *self._stars.values(), *self._reconciling):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._stars.values(), *self._reconciling, return_exceptions=True)
        await self._http.aclose()

    async def _guarded(self, story: "_Story") -> None:
        try:
            async with asyncio.timeout(STORY_SECONDS):
                await story.tell()
        except TimeoutError:
            self.problems.append(
                f"{story.name} ({story.kind}) did not come to its end: it waited for {story.waits_for}"
            )
        except UnexpectedAnswerError as error:
            self.problems.append(f"{story.name} ({story.kind}): {error}")
        except Exception as error:
            self.problems.append(f"{story.name} ({story.kind}) waited for {story.waits_for}: {error!r}")

    # What can be said to the program

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, accept: tuple[int, ...] = (200, 202, 204)
    ) -> httpx.Response:
        """Call the API as the backend does, until there is an answer.

        Raises:
            UnexpectedAnswerError: it is not one of those that are accepted.
        """
        headers = {"Authorization": f"Bearer {self._servers.stack.api_key}"}
        return await self._until_answered(
            lambda: self._http.request(method, path, json=body, headers=headers), f"{method} {path}", accept
        )

    async def follow(self, url: str) -> str:
        """Follow a link as a person does; the token that the signup page is called with."""
        answer = await self._until_answered(
            lambda: self._http.get(
                urlsplit(url).path, headers={"User-Agent": BROWSER, "Sec-Fetch-Mode": "navigate"}, params={"c": "sms"}
            ),
            "GET /r",
            (302,),
        )
        return parse_qs(urlsplit(answer.headers["location"]).query)["ref"][0]

    async def tell(self, *events: dict[str, Any], may_be_lost: bool = False) -> bool:
        """Let Stripe tell of events, until each is acknowledged; false if they got lost on the way."""
        self._stripe.happen(*events)
        for one in events:
            self._record.write("event sent", event=one["id"], type=one["type"])
        if may_be_lost and self.losing:
            for one in events:
                self._record.write("event lost", event=one["id"])
            self.lost_events += len(events)
            return False
        await asyncio.gather(*map(self._tell, events))
        return True

    async def _tell(self, one: dict[str, Any]) -> None:
        def send() -> Coroutine[Any, Any, httpx.Response]:
            body, headers = signed(one, self._servers.stack.stripe_webhook_secret)
            return self._http.post("/stripe/webhooks", content=body, headers=headers)

        answer = await self._until_answered(send, f"event {one['type']}", (200,))
        if answer.json()["handled"]:
            self._record.write("event handled", event=one["id"])

    async def _until_answered(
        self, send: Callable[[], Coroutine[Any, Any, httpx.Response]], what: str, accept: tuple[int, ...]
    ) -> httpx.Response:
        while True:
            try:
                answer = await send()
            except httpx.HTTPError as error:
                self.statuses[type(error).__name__] += 1
            else:
                self.statuses[str(answer.status_code)] += 1
                if answer.status_code in accept:
                    return answer
                if answer.status_code not in (502, 503, 504):
                    raise UnexpectedAnswerError(f"{what} was answered {answer.status_code}: {answer.text[:300]}")
            await asyncio.sleep(AGAIN_SECONDS)

    async def put(self, person: _Person, *, customer: bool = True) -> None:
        """Report an account."""
        body = {"email": person.email, "created_at": person.created_at.isoformat()}
        if customer:
            body["stripe_customer_id"] = person.subscription.customer
        await self.call("PUT", f"/v1/accounts/{person.account}", body)
        self._record.write("account", account=person.account)

    async def erase(self, person: _Person) -> None:
        """Erase an account."""
        await self.call("DELETE", f"/v1/accounts/{person.account}")
        self._record.write("erased", account=person.account)

    async def use(self, account: str, usage_id: str, minutes: int, *, times: int = 1) -> None:
        """Report minutes that were used; said more than once at the same time, it is one use."""
        self._record.write("usage sent", account=account, usage=usage_id)
        body = {"usage_id": usage_id, "minutes": minutes}
        answers = [self.call("POST", f"/v1/accounts/{account}/usage", body) for _ in range(times)]
        for answer in await asyncio.gather(*answers):
            used = answer.json()
            taken = {name: used[name] for name in ("from_bonus", "from_plan", "available")}
            self._record.write("usage", account=account, usage=usage_id, minutes=minutes, **taken)

    async def stage(self, referral_id: str) -> str:
        """How a referral stands."""
        return str((await self.call("GET", f"/v1/referrals/{referral_id}")).json()["stage"])

    async def look(self, referral_id: str) -> None:
        """Write down how a referral stands, as everybody can read it."""
        self._record.write("stage", referral=referral_id, stage=await self.stage(referral_id))

    async def command(self, *words: str) -> tuple[int, str]:
        """Give a command as an operator; its exit status, and what it said."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cli.main",
            *words,
            cwd=PROJECT,
            env=self._servers.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                said, complained = await process.communicate()
        except TimeoutError:
            return -1, f"no answer within {COMMAND_SECONDS} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, (said if process.returncode == 0 else complained or said).decode()

    def reconcile_soon(self) -> None:
        """Reconcile with Stripe beside everything else, where that is wanted."""
        if not self._reconciles_meanwhile:
            return
        task = asyncio.create_task(self.reconcile())
        self._reconciling.add(task)
        task.add_done_callback(self._reconciling.discard)

    async def reconcile(self) -> bool:
        """Reconcile with Stripe, until that comes to its end; whether it did."""
        deadline = time.monotonic() + RECONCILE_SECONDS
        while time.monotonic() < deadline:
            status, _ = await self.command("reconcile")
            if status == 0:
                return True
            await asyncio.sleep(1)
        return False

    async def star(self, number: int) -> tuple[_Person, str]:
        """A referrer of many, whose cycle is far from its end, with the link."""
        if number not in self._stars:
            now = datetime.now(UTC)
            person = self.person(f"star-{number}", "power", now - timedelta(days=3), _MONTH)
            self._stars[number] = asyncio.create_task(self.referrer(person))
        return await asyncio.shield(self._stars[number])

    def person(self, name: str, plan: str, began: datetime, lasts: timedelta) -> _Person:
        """Somebody, with the billing cycle that is told of."""
        began = began.replace(microsecond=0)
        return _Person(f"acct-{name}-s{self._seed}", plan, began + lasts, began)

    async def referrer(self, person: _Person) -> tuple[_Person, str]:
        """Let somebody become a subscriber, and take the link."""
        person.created_at = datetime.now(UTC) - timedelta(days=40)
        await self.put(person)
        self.charge(person)
        self._record.write("period", account=person.account, end=_unix(person.cycle_ends))
        await self.tell(*person.events())
        self._record.write("invoice", invoice=person.invoice)
        answer = await self.call(
            "POST", f"/v1/accounts/{person.account}/referral-link", {"terms_version": TERMS_VERSION}
        )
        return person, str(answer.json()["url"])

    def charge(self, person: _Person) -> None:
        """Let Stripe know by which card somebody paid."""
        invoice = person.invoice
        details = {"type": "card", "card": {"fingerprint": person.card}}
        self._stripe.add(
            {"id": person.subscription.customer, "object": "customer"},
            {
                "id": f"pi_{invoice}",
                "object": "payment_intent",
                "customer": person.subscription.customer,
                "latest_charge": f"ch_{invoice}",
            },
            {
                "id": f"ch_{invoice}",
                "object": "charge",
                "customer": person.subscription.customer,
                "payment_method_details": details,
            },
        )

    async def lapsing(self, referral_id: str, referrer: str, code: str, seconds: float) -> str:
        """A click whose time is over in some seconds, as the starter began it 97 days ago; its token."""
        now = datetime.now(UTC)
        clicked_at = (now - ATTRIBUTION_WINDOW - REPORTING_GRACE + timedelta(seconds=seconds)).replace(microsecond=0)
        window = AttributionWindow(clicked_at, ATTRIBUTION_WINDOW)
        runs = ReferralRuns(await self._servers.client(), "referrals")
        while True:
            with suppress(ReferralOverError):
                try:
                    await runs.clicked(
                        ReferralStart(referral_id, referrer, clicked_at, window.lapses_at), datetime.now(UTC), "sms"
                    )
                except UnreachableError:
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
            tokens = Tokens([self._servers.token_secret], ATTRIBUTION_WINDOW)
            return tokens.sign(ClickedLink(referral_id, code, "sms", window))

    def write(self, what: str, **particulars: Any) -> None:
        """Write down what happened."""
        self._record.write(what, **particulars)

    @property
    def cycle_seconds(self) -> float:
        """How soon a friend's billing cycle ends, at least."""
        return self._cycle_seconds


class _Story:
    """What becomes of one link that is followed."""

    def __init__(self, load: Load, step: Step) -> None:
        self._load = load
        self._chance = random.Random(step.seed)  # noqa: S311 - no secret
        self.kind = step.kind
        self.name = f"s{step.number}"
        self.waits_for = "the referrer's link"
        self._referral = ""

    async def tell(self) -> None:
        """All of it."""
        load, chance = self._load, self._chance
        plan = chance.choice(sorted(PRICES_IN_CENTS))
        now = datetime.now(UTC)
        seconds = load.cycle_seconds * chance.uniform(1.5, 2.0)
        if self.kind is Kind.STAR:
            referrer, link = await load.star(chance.randrange(STARS))
        else:
            lasts = timedelta(days=20, seconds=seconds)
            referrer = load.person(
                f"rita-{self.name}", chance.choice(("starter", "pro")), now - timedelta(days=20), lasts
            )
            referrer, link = await load.referrer(referrer)
        friend = self._friend(referrer, plan)
        load.write(
            "story",
            story=self.name,
            kind=self.kind,
            referrer=referrer.account,
            friend=friend.account,
            plan=plan,
        )
        if self.kind is Kind.LAPSED:
            await self._lapses(referrer, link)
        else:
            await self._signs_up(friend, link)
            await self._goes_on(referrer, friend)
            await load.look(self._referral)
        load.write("finished", story=self.name)

    def _friend(self, referrer: _Person, plan: str) -> _Person:
        if self.kind is Kind.SELF:
            return referrer
        now, load = datetime.now(UTC), self._load
        lasts = timedelta(seconds=round(load.cycle_seconds * self._chance.uniform(1.0, 1.4)))
        friend = load.person(f"fred-{self.name}", plan, now, lasts)
        if self.kind is Kind.SAME_EMAIL:
            friend.email = referrer.email.upper().replace("@EXAMPLE", "@example")
        if self.kind is Kind.HELD_REJECTED:
            friend.card = referrer.card
        return friend

    async def _lapses(self, referrer: _Person, link: str) -> None:
        load, code = self._load, link.rpartition("/")[2]
        self._referral = derived_id(referrer.account, self.name)
        token = await load.lapsing(self._referral, referrer.account, code, self._chance.uniform(3, 8))
        load.write("lapsing", story=self.name, referral=self._referral)
        await self._reaches("lapsed")
        late = {
            "account_id": f"acct-late-{self.name}",
            "email": f"late-{self.name}@example.com",
            "created_at": datetime.now(UTC).isoformat(),
            "referral_token": token,
        }
        await load.call("POST", "/v1/signups", late, accept=(409,))
        await load.look(self._referral)

    async def _signs_up(self, friend: _Person, link: str) -> None:
        load, chance = self._load, self._chance
        self.waits_for = "the click"
        token = await load.follow(link)
        friend.created_at = datetime.now(UTC)
        signup = {
            "account_id": friend.account,
            "email": friend.email,
            "created_at": friend.created_at.isoformat(),
            "referral_token": token,
            "user_agent": BROWSER,
        }
        self.waits_for = "the answer to the signup"
        calls = [load.call("POST", "/v1/signups", signup) for _ in range(2 if chance.random() < 0.3 else 1)]
        for answer in await asyncio.gather(*calls):
            self._referral = str(answer.json()["referral_id"])
            load.write("signup", story=self.name, referral=self._referral)

    async def _goes_on(self, referrer: _Person, friend: _Person) -> None:
        load = self._load
        match self.kind:
            case Kind.SELF | Kind.SAME_EMAIL:
                await self._reaches("refused")
            case Kind.ERASED_BEFORE:
                await load.put(friend)
                await self._reaches("signed_up")
                await load.erase(friend)
                await self._reaches("refused")
            case Kind.REFUNDED_BEFORE:
                await self._pays_before_linked(friend, given_back=1.0)
                await self._reaches("signed_up")
            case Kind.HELD_APPROVED:
                await self._pays_before_linked(friend, given_back=0.3)
                await self._reaches("in_review")
                await self._decides("review", "--approve", reached=("credited", "settled"))
                await self._uses(referrer, friend)
            case Kind.HELD_REJECTED:
                await self._pays(friend)
                await self._reaches("in_review")
                await self._decides("review", "--reject", reached=("refused",))
            case Kind.PAID_BEFORE_LINKED:
                await self._pays_before_linked(friend, given_back=0.0)
                await self._reaches("credited", "settled")
                await self._uses(referrer, friend)
            case _:
                await self._pays_and_is_credited(referrer, friend)

    async def _pays_and_is_credited(self, referrer: _Person, friend: _Person) -> None:
        load = self._load
        if not await self._pays(friend):
            # Only reconciliation brings that to its end.
            return
        await self._reaches("credited", "settled")
        match self.kind:
            case Kind.DISPUTED:
                await load.tell(friend.subscription.disputed(friend.invoice, _unix(datetime.now(UTC))))
                await self._uses(referrer, friend)
            case Kind.VOIDED:
                cents = PRICES_IN_CENTS[friend.plan]
                await load.tell(friend.subscription.refunded(friend.invoice, cents, _unix(datetime.now(UTC))))
                await self._decides("void", reached=())
            case Kind.ERASED_AFTER:
                await load.use(friend.account, f"use-{self.name}-0", 3)
                await load.erase(friend)
            case _:
                if self._chance.random() < 0.25:
                    await self._cycle_moves(friend)
                await self._uses(referrer, friend)

    async def _pays(self, friend: _Person) -> bool:
        """The backend says whose customer it is, and Stripe tells in any order, twice now and then."""
        load, chance = self._load, self._chance
        self.waits_for = "the payment to be taken"
        await load.put(friend)
        return await self._told(friend, chance)

    async def _told(self, friend: _Person, chance: random.Random) -> bool:
        load = self._load
        friend.begins_now()
        load.write("period", account=friend.account, end=_unix(friend.cycle_ends))
        events = friend.events()
        load.charge(friend)
        chance.shuffle(events)
        if chance.random() < 0.5:
            return await self._told_in_turn(friend, events)
        if chance.random() < 0.3:
            # The same one again, at the same moment.
            events.append(chance.choice(events))
        taken = await load.tell(*events, may_be_lost=self.kind is Kind.PLAIN)
        load.write("invoice", invoice=friend.invoice)
        if taken and chance.random() < 0.3:
            # And once more when it was acknowledged.
            await load.tell(events[0])
        return taken

    async def _told_in_turn(self, friend: _Person, events: list[dict[str, Any]]) -> bool:
        """One after the other, the payment last: no other event makes up for one that nobody was told of."""
        taken = True
        for one in sorted(events, key=lambda one: one["type"] == "invoice.paid"):
            taken &= await self._load.tell(one, may_be_lost=self.kind is Kind.PLAIN)
        self._load.write("invoice", invoice=friend.invoice)
        return taken

    async def _pays_before_linked(self, friend: _Person, given_back: float) -> None:
        """Stripe's events are there before anybody knows whose customer it is."""
        load = self._load
        self.waits_for = "the payment to be taken"
        await load.put(friend, customer=False)
        await self._told(friend, self._chance)
        if given_back:
            cents = int(PRICES_IN_CENTS[friend.plan] * given_back)
            refunded = friend.subscription.refunded(friend.invoice, cents, _unix(datetime.now(UTC)))
            await load.tell(refunded)
            load.charge(friend)
        await load.put(friend)

    async def _cycle_moves(self, friend: _Person) -> None:
        """Stripe moves the cycle's end, as when a trial is added (rule 9)."""
        load, start = self._load, datetime.now(UTC).replace(microsecond=0)
        end = friend.cycle_ends + timedelta(seconds=3)
        if start >= friend.cycle_ends:
            return
        load.write("period", account=friend.account, end=_unix(end))
        moved = friend.subscription.created(_unix(start), _unix(end))["data"]["object"]
        await load.tell(event("customer.subscription.updated", moved))

    async def _uses(self, referrer: _Person, friend: _Person) -> None:
        load, chance = self._load, self._chance
        self.waits_for = "the uses to be taken"
        for number in range(chance.randint(1, 3)):
            account = chance.choice((referrer, friend)).account
            usage_id = f"use-{self.name}-{number}"
            await load.use(account, usage_id, chance.randint(1, 40), times=2 if chance.random() < 0.3 else 1)
            await asyncio.sleep(chance.uniform(0.2, 2.0))

    async def _decides(self, *words: str, reached: tuple[str, ...]) -> None:
        """An operator decides, and says it again until it is decided; what is decided already is refused."""
        self.waits_for = "the decision"
        command, *options = words
        while True:
            status, said = await self._load.command(
                command, self._referral, *options, "--by", "ann", "--note", "as seen in the dashboard"
            )
            if status == 0:
                self._load.write("decided", referral=self._referral, decision=command)
                return
            if await self._decided(said, reached):
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def _decided(self, said: str, reached: tuple[str, ...]) -> bool:
        if reached:
            return await self._load.stage(self._referral) in reached
        return "refused:" in said

    async def _reaches(self, *stages: str) -> None:
        self.waits_for = f"stage {' or '.join(stages)}"
        while (stage := await self._load.stage(self._referral)) not in stages:
            if stage in _FINAL:
                raise UnexpectedAnswerError(f"the referral is {stage}, and was to be {' or '.join(stages)}")
            await asyncio.sleep(LOOK_SECONDS)
