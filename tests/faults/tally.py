"""Counts everything up again, from what was sent, was answered, and stands in PostgreSQL. Imports nothing of ours.

Whatever the program believes of itself, this one does not: its rules stand here a second time, as few as are needed to
tell that nobody was credited twice, or on one side, or not at all, and that nothing acknowledged is missing.

    python -m tests.faults.tally RECORD POSTGRESQL_URL
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

BONUS = {"starter": 22, "pro": 90, "power": 300}
"""The page's table: minutes for each side."""

LONGEST = timedelta(days=31)

WAITED_FOR = timedelta(minutes=30)
"""A lot that is due within this time is waited for; others end long after the run."""

CREDITED = frozenset({"credited", "settled"})

OUTCOMES: dict[str, tuple[bool, frozenset[str]]] = {
    "plain": (True, CREDITED),
    "paid before the customer was linked": (True, CREDITED),
    "one of many friends of one referrer": (True, CREDITED),
    "self-referral: the referrer's own account": (False, frozenset({"refused"})),
    "self-referral: the referrer's e-mail address": (False, frozenset({"refused"})),
    "wholly refunded before the credit": (False, frozenset({"signed_up"})),
    "refunded in part, held, approved": (True, CREDITED),
    "paid with the referrer's card, held, rejected": (False, frozenset({"refused"})),
    "disputed after the credit": (True, CREDITED),
    "refunded after the credit, voided": (True, CREDITED),
    "the friend was erased before the payment": (False, frozenset({"refused"})),
    "the friend was erased after the credit": (True, CREDITED),
    "lapsed": (False, frozenset({"lapsed"})),
}
"""Of each kind of story: whether both sides have to be credited, and how the referral may stand at the end."""

Row = dict[str, Any]


@dataclass
class Tally:
    """What was counted, and what is not as it has to be.

    Args:
        counted: how many there were of everything.
        wrong: one sentence for each thing that is wrong, and will not mend itself.
        pending: one for each that is late only: at the end there may be none.
    """

    counted: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong, and nothing is left to come."""
        return not self.wrong and not self.pending


@dataclass
class _Said:
    """What was sent and answered, by what it is about."""

    stories: dict[str, Row] = field(default_factory=dict)
    signups: dict[str, str] = field(default_factory=dict)
    accounts: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    ends: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    sent_events: set[str] = field(default_factory=set)
    handled_events: set[str] = field(default_factory=set)
    lost_events: set[str] = field(default_factory=set)
    invoices: set[str] = field(default_factory=set)
    uses: dict[tuple[str, str], list[Row]] = field(default_factory=lambda: defaultdict(list))
    sent_uses: set[tuple[str, str]] = field(default_factory=set)
    lapsing: dict[str, str] = field(default_factory=dict)
    seen_stages: dict[str, str] = field(default_factory=dict)
    voided: set[str] = field(default_factory=set)
    received: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    finished: set[str] = field(default_factory=set)


def tally(record: Path, url: str) -> Tally:
    """Count everything up.

    Args:
        record: the lines that those who used the program wrote.
        url: a connection to the database that may read it all.
    """
    said, books = _at_one_moment(record, url)
    counts = Tally()
    _stories(said, books, counts)
    _journal(books, counts)
    _ends(said, books, counts)
    _uses(said, books, counts)
    _events(said, books, counts)
    _accounts(said, books, counts)
    _messages(said, books, counts)
    return counts


def _at_one_moment(record: Path, url: str) -> tuple[_Said, "_Books"]:
    """What was written down and what PostgreSQL holds, of one moment: messages still arrive while this is read.

    Read before the books, the record lacks what arrived meanwhile and is said to be delivered in them; read after them,
    it has what they do not know yet.
    """
    while True:
        lines = record.read_text(encoding="utf-8")
        with psycopg.connect(url, row_factory=dict_row) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            books = _Books(connection)
        if record.read_text(encoding="utf-8") == lines:
            return _read(lines), books


class _Books:
    """All that PostgreSQL holds, read in one snapshot."""

    def __init__(self, connection: "psycopg.Connection[Row]") -> None:
        def rows(query: str) -> list[Row]:
            return connection.execute(query).fetchall()

        self.now: datetime = rows("SELECT clock_timestamp() AS now")[0]["now"]
        self.referrals = {row["referral_id"]: row for row in rows("SELECT * FROM referral")}
        self.lots = {row["grant_id"]: row for row in rows("SELECT * FROM grant_lot")}
        self.entries: dict[str, list[Row]] = defaultdict(list)
        for row in rows("SELECT * FROM entry ORDER BY entry_id"):
            self.entries[row["grant_id"]].append(row)
        self.operations = {(row["account_id"], row["usage_id"]): row for row in rows("SELECT * FROM operation")}
        self.events = {row["event_id"]: row for row in rows("SELECT * FROM stripe_event")}
        self.invoices = {row["invoice_id"] for row in rows("SELECT invoice_id FROM paid_period")}
        self.accounts = {row["account_id"]: row for row in rows("SELECT * FROM account")}
        self.outbox = {row["message_id"]: row for row in rows("SELECT * FROM outbox")}
        self.deliveries = {row["message_id"]: row for row in rows("SELECT * FROM delivery")}

    def lots_of(self, referral_id: str) -> list[Row]:
        return [lot for lot in self.lots.values() if lot["referral_id"] == referral_id]


def _read(lines: str) -> _Said:
    said = _Said()
    for line in lines.splitlines():
        one: Row = json.loads(line)
        match one["what"]:
            case "story":
                said.stories[one["story"]] = one
            case "finished":
                said.finished.add(one["story"])
            case "signup":
                said.signups[one["story"]] = one["referral"]
            case "account":
                said.accounts.add(one["account"])
            case "erased":
                said.erased.add(one["account"])
            case "period":
                said.ends[one["account"]].add(one["end"])
            case "event sent":
                said.sent_events.add(one["event"])
            case "event handled":
                said.handled_events.add(one["event"])
            case "event lost":
                said.lost_events.add(one["event"])
            case "invoice":
                said.invoices.add(one["invoice"])
            case "usage sent":
                said.sent_uses.add((one["account"], one["usage"]))
            case "usage":
                said.uses[one["account"], one["usage"]].append(one)
            case "lapsing":
                said.lapsing[one["story"]] = one["referral"]
            case "stage":
                said.seen_stages[one["referral"]] = one["stage"]
            case "decided" if one["decision"] == "void":
                said.voided.add(one["referral"])
            case "received":
                said.received[one["message"]].add(one["body"])
    return said


def _stories(said: _Said, books: _Books, counts: Tally) -> None:
    """Every payer credited once, both sides or neither, and every acknowledged signup there, and decided."""
    told = Counter(said.signups.values())
    for name, story in said.stories.items():
        credited, stages = OUTCOMES[story["kind"]]
        if name not in said.finished:
            counts.pending.append(f"story {name} ({story['kind']}) has not come to its end")
            continue
        counts.counted["stories"] += 1
        if name in said.lapsing:
            _lapsed(said, books, counts, name)
            continue
        if name not in said.signups:
            counts.wrong.append(f"story {name} is finished, and no signup of it was acknowledged")
            continue
        referral_id = said.signups[name]
        row = books.referrals.get(referral_id)
        if row is None:
            counts.wrong.append(f"the acknowledged signup of referral {referral_id} is nowhere ({name})")
            continue
        counts.counted["acknowledged signups"] += 1
        sides = (row["referrer_id"], row["referee_id"])
        if sides != (story["referrer"], story["friend"]):
            counts.wrong.append(f"referral {referral_id} is of {sides}, not of {story['referrer']}, {story['friend']}")
        if row["stage"] not in stages:
            counts.pending.append(f"referral {referral_id} ({story['kind']}) is {row['stage']}, not {_or(stages)}")
        if seen := said.seen_stages.get(referral_id):
            # What was read over HTTP may be behind by then, and never before.
            _not_back(counts, referral_id, seen, row["stage"])
        if referral_id in said.voided and row["voided_at"] is None:
            counts.wrong.append(f"the acknowledged void of referral {referral_id} is nowhere")
        if row["stage"] in ("refused", "voided", "lapsed") and not row["reason"]:
            counts.wrong.append(f"referral {referral_id} ended without a bonus and does not say why")
        _sides(books, counts, story, referral_id, credited)
    counts.wrong += [f"referral {one} was answered to {number} signups" for one, number in told.items() if number > 1]
    counts.wrong += [f"nobody signed up with referral {one}" for one in set(books.referrals) - set(told)]


def _or(stages: Iterable[str]) -> str:
    return " or ".join(sorted(stages))


def _lapsed(said: _Said, books: _Books, counts: Tally, name: str) -> None:
    referral_id = said.lapsing[name]
    if referral_id in books.referrals:
        counts.wrong.append(f"referral {referral_id} lapsed without a signup, and has a row")
    if said.seen_stages.get(referral_id) != "lapsed":
        counts.pending.append(f"referral {referral_id} has to have lapsed, not {said.seen_stages.get(referral_id)}")
    counts.counted["lapsed clicks"] += 1


_ORDER = ("clicked", "signed_up", "in_review", "credited", "settled", "refused", "voided", "lapsed")


def _not_back(counts: Tally, referral_id: str, seen: str, stage: str) -> None:
    if _ORDER.index(stage) < _ORDER.index(seen):
        counts.wrong.append(f"referral {referral_id} was {seen} when it was read, and is {stage} now")


def _sides(books: _Books, counts: Tally, story: Row, referral_id: str, credited: bool) -> None:
    lots = books.lots_of(referral_id)
    roles = sorted(lot["role"] for lot in lots)
    if roles not in ([], ["referee", "referrer"]):
        counts.wrong.append(f"referral {referral_id} credited {roles}: both sides or neither, and each once")
        return
    if lots and not credited:
        counts.wrong.append(f"referral {referral_id} ({story['kind']}) was credited, and must not be")
        return
    if credited and not lots:
        counts.pending.append(f"referral {referral_id} ({story['kind']}) was paid for, and nobody is credited")
        return
    if not lots:
        return
    counts.counted["payers credited once, both sides"] += 1
    by_role = {lot["role"]: lot for lot in lots}
    for role, account in (("referrer", story["referrer"]), ("referee", story["friend"])):
        lot = by_role[role]
        if lot["account_id"] != account:
            counts.wrong.append(f"the {role}'s grant of referral {referral_id} is of {lot['account_id']}")
        if lot["minutes"] != BONUS[story["plan"]]:
            counts.wrong.append(f"referral {referral_id}: {lot['minutes']} minutes for {story['plan']}")
    if by_role["referrer"]["credited_at"] != by_role["referee"]["credited_at"]:
        counts.wrong.append(f"the sides of referral {referral_id} were credited at two moments")
    over = [bool(lot["expired_at"] or lot["voided_at"]) for lot in lots]
    row = books.referrals[referral_id]
    stage = row["stage"]
    if stage == "settled" and not all(over):
        counts.wrong.append(f"referral {referral_id} is settled, and a grant of it is open")
    # One that was voided stays at its stage, though the two may have been due by then, and have expired.
    if stage == "credited" and all(lot["expired_at"] for lot in lots) and not row["voided_at"]:
        counts.pending.append(f"both grants of referral {referral_id} have expired, and it is not settled")
    if story["kind"] == "refunded after the credit, voided" and not all(over):
        counts.pending.append(f"referral {referral_id} was voided, and a grant of it is open")


def _journal(books: _Books, counts: Tally) -> None:
    """Every journal sums, every lot is within its bounds, nobody is credited twice as the friend."""
    friends = Counter(lot["account_id"] for lot in books.lots.values() if lot["role"] == "referee")
    counts.wrong += [f"{account} was credited {n} times as the friend" for account, n in friends.items() if n > 1]
    for grant_id, lot in books.lots.items():
        counts.counted["lots"] += 1
        entries = books.entries[grant_id]
        counts.counted["entries"] += len(entries)
        if lot["referral_id"] not in books.referrals:
            counts.wrong.append(f"lot {grant_id} is of no referral")
        balance = 0
        for entry in entries:
            balance += entry["delta"]
            if not 0 <= balance <= lot["minutes"]:
                counts.wrong.append(f"the journal of lot {grant_id} comes to {balance} of {lot['minutes']}")
            if entry["account_id"] != lot["account_id"]:
                counts.wrong.append(f"the journal of lot {grant_id} has an entry of another account")
        if balance != lot["remaining"]:
            counts.wrong.append(f"lot {grant_id} has {lot['remaining']} left, its journal sums to {balance}")
        kinds = Counter(entry["kind"] for entry in entries)
        if kinds["credit"] != 1 or not entries or entries[0]["delta"] != lot["minutes"]:
            counts.wrong.append(f"lot {grant_id} was not credited once, with all of its minutes: {dict(kinds)}")
        if kinds["expiry"] + kinds["void"] > 1:
            counts.wrong.append(f"lot {grant_id} ended more than once: {dict(kinds)}")
        if not 0 <= lot["remaining"] <= lot["minutes"]:
            counts.wrong.append(f"lot {grant_id} is out of its bounds: {lot['remaining']} of {lot['minutes']}")
    counts.wrong += [f"lot {grant_id} has a journal and no row" for grant_id in set(books.entries) - set(books.lots)]


def _ends(said: _Said, books: _Books, counts: Tally) -> None:
    """Every due lot expired once, at an end that Stripe told of or after 31 days; none before."""
    for grant_id, lot in books.lots.items():
        kinds = Counter(entry["kind"] for entry in books.entries[grant_id])
        expires_at, credited_at = lot["expires_at"], lot["credited_at"]
        ends = {datetime.fromtimestamp(end, UTC) for end in said.ends[lot["account_id"]]}
        # A cycle that goes on at the credit is known by then; only without one it is 31 days.
        known = {end for end in ends if credited_at < end <= credited_at + LONGEST} or {credited_at + LONGEST}
        if expires_at not in known or not credited_at < expires_at <= credited_at + LONGEST:
            counts.wrong.append(f"lot {grant_id} ends at {expires_at}, which is the end of no cycle of its account")
        if bool(lot["expired_at"]) != bool(kinds["expiry"]) or bool(lot["voided_at"]) != bool(kinds["void"]):
            counts.wrong.append(f"lot {grant_id} and its journal do not agree whether it is over: {dict(kinds)}")
        over = lot["expired_at"] or lot["voided_at"]
        if over and lot["remaining"]:
            counts.wrong.append(f"lot {grant_id} is over, with {lot['remaining']} minutes left")
        if lot["expired_at"] and lot["expired_at"] < expires_at:
            counts.wrong.append(f"lot {grant_id} expired at {lot['expired_at']}, before its end at {expires_at}")
        if expires_at <= books.now:
            counts.counted["due lots"] += 1
            counts.counted["due lots expired once"] += kinds["expiry"] == 1
        if expires_at <= books.now + WAITED_FOR and not over:
            counts.pending.append(f"lot {grant_id} is due at {expires_at} and has not expired")
        for entry in books.entries[grant_id]:
            if entry["kind"] == "usage" and over and entry["entry_id"] > _end_of(books.entries[grant_id]):
                counts.wrong.append(f"lot {grant_id} was used after its end")


def _end_of(entries: list[Row]) -> int:
    return max((int(entry["entry_id"]) for entry in entries if entry["kind"] in ("expiry", "void")), default=0)


def _uses(said: _Said, books: _Books, counts: Tally) -> None:
    """Every acknowledged use is there once, with the answer that was given."""
    taken: Counter[tuple[str, str]] = Counter()
    for entries in books.entries.values():
        for entry in entries:
            if entry["kind"] == "usage":
                taken[entry["account_id"], entry["operation_key"].removeprefix("usage:")] -= entry["delta"]
    for key, answers in said.uses.items():
        counts.counted["acknowledged uses"] += 1
        first = answers[0]
        if any((a["from_bonus"], a["from_plan"]) != (first["from_bonus"], first["from_plan"]) for a in answers):
            counts.wrong.append(f"the use {key} was answered in different ways: {answers}")
        row = books.operations.get(key)
        if row is None:
            counts.wrong.append(f"the acknowledged use {key} is nowhere")
        elif (row["minutes"], row["from_bonus"]) != (first["minutes"], first["from_bonus"]):
            counts.wrong.append(
                f"the use {key} was answered with {first['from_bonus']} minutes of the bonus, not {row}"
            )
        if taken[key] != first["from_bonus"]:
            counts.wrong.append(f"the use {key} took {taken[key]} minutes, and {first['from_bonus']} were answered")
    for key in {*books.operations, *taken} - said.sent_uses:
        counts.wrong.append(f"nobody sent the use {key}")


def _events(said: _Said, books: _Books, counts: Tally) -> None:
    """Every acknowledged event is stored, and whoever it concerns was told; lost ones were found."""
    for event in said.handled_events:
        counts.counted["acknowledged events"] += 1
        row = books.events.get(event)
        if row is None:
            counts.wrong.append(f"the acknowledged event {event} is nowhere")
        elif row["signalled_at"] is None:
            counts.wrong.append(f"the acknowledged event {event} is stored, and nobody was told of it")
    for event in said.lost_events:
        counts.counted["lost events found"] += 1
        if event not in books.events or books.events[event]["signalled_at"] is None:
            counts.pending.append(f"the event {event}, which did not arrive, was not found")
    for event in said.sent_events - said.handled_events - said.lost_events:
        counts.pending.append(f"the event {event} was sent, and never acknowledged")
    # What reconciliation finds without its event is known by the ids of the invoice and of its payment.
    found = said.invoices | {f"inpay_{invoice}" for invoice in said.invoices}
    counts.wrong += [f"nobody sent the event {event}" for event in set(books.events) - said.sent_events - found]
    counts.pending += [f"the paid invoice {one} is nowhere" for one in said.invoices - books.invoices]


def _accounts(said: _Said, books: _Books, counts: Tally) -> None:
    """Every acknowledged account is there; of erased ones nothing is left to use, or to know them by."""
    counts.wrong += [f"the acknowledged account {one} is nowhere" for one in said.accounts - set(books.accounts)]
    counts.counted["accounts"] = len(said.accounts)
    for account in said.erased:
        counts.counted["erased accounts"] += 1
        row = books.accounts.get(account)
        if row is None or row["erased_at"] is None or row["email_hash"] is not None:
            counts.wrong.append(f"the account {account} was erased, and is not")
        if any(lot["account_id"] == account and lot["remaining"] for lot in books.lots.values()):
            counts.wrong.append(f"the erased account {account} has minutes left")


def _messages(said: _Said, books: _Books, counts: Tally) -> None:
    """The backend is told of each credit and each end once, and of nothing that did not happen."""
    told: Counter[tuple[str, str]] = Counter()
    of_referrals = Counter((row["type"], row["referral_id"]) for row in books.outbox.values())
    for message, row in books.outbox.items():
        counts.counted["messages"] += 1
        told[row["type"], str(row["data"].get("grant_id"))] += 1
        state = (books.deliveries.get(message) or {}).get("state")
        if state == "delivered" and message not in said.received:
            counts.wrong.append(f"message {message} is said to be delivered, and never arrived")
        if state == "given_up":
            counts.wrong.append(f"message {message} was given up")
        if state is None and row["due_at"] is None:
            counts.wrong.append(f"message {message} was not delivered, and nobody has it in hand")
        counts.counted["messages received"] += message in said.received
        if message not in said.received:
            counts.pending.append(f"message {message} ({row['type']}) has not arrived")
    for message, bodies in said.received.items():
        if len(bodies) > 1:
            counts.wrong.append(f"message {message} arrived with {len(bodies)} different bodies")
        if message not in books.outbox:
            counts.wrong.append(f"message {message} arrived, and was never written")
    for referral_id, row in books.referrals.items():
        kind = "referral.refused" if row["stage"] in ("refused", "voided") else "referral.signed_up"
        if row["signed_up_at"] and of_referrals[kind, referral_id] != 1:
            counts.wrong.append(f"of referral {referral_id}, {of_referrals[kind, referral_id]} messages say {kind}")
    for grant_id in books.lots:
        ends = Counter(entry["kind"] for entry in books.entries[grant_id])
        for kind, number in (("credited", 1), ("expired", ends["expiry"]), ("voided", ends["void"])):
            if told[f"bonus.{kind}", grant_id] != number:
                counts.wrong.append(f"of lot {grant_id}, {told[f'bonus.{kind}', grant_id]} messages say {kind}")


def _lines(counts: Tally) -> Iterator[str]:
    yield ", ".join(f"{number} {name}" for name, number in counts.counted.items())
    yield from (f"wrong: {one}" for one in counts.wrong)
    yield from (f"never came: {one}" for one in counts.pending)


if __name__ == "__main__":
    found = tally(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.writelines(f"{line}\n" for line in _lines(found))
    sys.exit(0 if found.holds else 1)
