"""`PUT /v1/accounts/{id}` and the member's link: standing, keys, what is refused (rules 1, 10, 13 and 18)."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from temporalio.client import Client

from ledger.tables import account, identity, terms_acceptance
from tests.conftest import free_port
from tests.http_support import API_KEYS, PUBLIC_URL, TERMS, Starter, assert_problem, paid, person
from tests.stripe_events import subscription
from tests.support import MONTH

KEYED = (
    ("PUT", "/v1/accounts/acct-1"),
    ("POST", "/v1/accounts/acct-1/referral-link"),
    ("POST", "/v1/signups"),
    ("GET", "/v1/referrals/0123456789abcdef"),
    ("GET", "/v1/accounts/acct-1/referrals"),
    ("GET", "/v1/accounts/acct-1/referral-summary"),
    ("GET", "/v1/accounts/acct-1/bonus-minutes"),
    ("POST", "/v1/accounts/acct-1/usage"),
)


async def test_without_an_api_key_nothing_under_v1_is_answered(starter: Starter) -> None:
    for method, path in KEYED:
        answers = [
            await starter.call(method, path, key=None),
            await starter.call(method, path, key="some other key of nobody's"),
            await starter.call(method, path, key=API_KEYS[0][:-1]),
            await starter.call(method, path, key=API_KEYS[0] + "x"),
            await starter.call(method, path, key=",".join(API_KEYS)),
            await starter.send(method, path, headers={"Authorization": f"Basic {API_KEYS[0]}"}),
            await starter.send(method, path, headers={"Authorization": API_KEYS[0]}),
            await starter.send(method, path, headers={"Authorization": "Bearer "}),
            await starter.send(method, path, headers={"Authorization": b"Bearer \xe9"}),
            await starter.send(method, path, params={"api_key": API_KEYS[0]}),
        ]
        for answer in answers:
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_each_of_several_api_keys_lets_in(starter: Starter) -> None:
    for key in API_KEYS:
        assert_problem(await starter.call("GET", "/v1/accounts/acct-1/bonus-minutes", key=key), 404, "unknown-account")


async def test_a_new_account_stands_unpaid(starter: Starter) -> None:
    fred = person("fred")
    answer = await starter.put(fred)
    assert answer.status_code == 200
    assert answer.json() == {"account_id": fred.account_id, "paid": False, "plan": None, "cycle": None}


async def test_a_subscriber_stands_with_plan_and_cycle(starter: Starter) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(days=10))
    standing = (await starter.put(rita)).json()
    assert (standing["paid"], standing["plan"]) == (True, "pro")
    start, end = (datetime.fromisoformat(standing["cycle"][name]) for name in ("start", "end"))
    assert end - start == MONTH
    assert abs(end - datetime.now(UTC) - timedelta(days=10)) < timedelta(minutes=1)


async def test_rule_1_a_subscriber_stays_paid_for_three_days_after_the_period(starter: Starter) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(hours=1))
    starter.world.clock.advance(timedelta(days=2))
    standing = (await starter.put(rita)).json()
    assert (standing["paid"], standing["cycle"]) == (True, None)
    starter.world.clock.advance(timedelta(days=2))
    assert not (await starter.put(rita)).json()["paid"]


async def test_rule_1_an_ended_subscription_ends_with_its_period(starter: Starter) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(hours=1))
    now = datetime.now(UTC)
    over = subscription(
        rita.customer_id,
        rita.subscription_id,
        now - MONTH,
        now + timedelta(hours=1),
        status="canceled",
        ended_at=now + timedelta(hours=1),
        type_="customer.subscription.deleted",
    )
    assert (await starter.stripe(over)).status_code == 200
    assert (await starter.put(rita)).json()["paid"], "until its paid period is over"
    starter.world.clock.advance(timedelta(hours=2))
    assert not (await starter.put(rita)).json()["paid"]


async def test_saying_an_account_again_changes_nothing(starter: Starter) -> None:
    fred = person("fred")
    first = await starter.put(fred, first_name="Fred", show_first_name=True)
    again = await starter.put(fred, created_at=(fred.created_at + timedelta(days=1, minutes=-1)).isoformat())
    assert_problem(again, 422, "invalid-request")
    later = await starter.put(fred, created_at=(fred.created_at + timedelta(minutes=2)).isoformat())
    assert later.json() == first.json()
    async with starter.world.database.transaction() as transaction:
        row = (await transaction.execute(select(account))).one()
        identities = (await transaction.execute(select(identity.c.kind))).scalars().all()
    assert row.created_at == fred.created_at, "rule 10: the earliest time stays"
    assert (row.first_name, row.show_first_name) == ("Fred", True)
    assert sorted(identities) == ["customer", "email"]


async def test_nothing_personal_is_kept_but_the_first_name(starter: Starter, owner: Any) -> None:
    fred = await starter.account(person("fred"), first_name="Frederick")
    kept = ""
    for (table,) in owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
        kept += str(owner.execute(f'SELECT t::text FROM "{table}" t').fetchall())  # noqa: S608
    assert "Frederick" in kept, "else this test looks in the wrong place"
    assert fred.email not in kept
    assert fred.email.partition("@")[0] not in kept


async def test_rule_18_a_customer_once_linked_stays_with_its_first_account(starter: Starter) -> None:
    rita = await starter.subscriber()
    second = person("second", customer=False)
    answer = await starter.put(second, stripe_customer_id=rita.customer_id)
    assert answer.status_code == 200
    assert not answer.json()["paid"], "a second account on one customer never takes its payments"
    assert (await starter.put(rita)).json()["paid"]


REFUSED_ACCOUNTS: dict[str, dict[str, Any]] = {
    "no e-mail": {"email": None},
    "an e-mail without @": {"email": "fred"},
    "an e-mail with NUL": {"email": "fr\0ed@people.example"},
    "an e-mail that is too long": {"email": "f" * 400 + "@people.example"},
    "an e-mail that cannot be normalised": {"email": "fred@א1.com"},
    "an e-mail with half a character": {"email": "fred\ud800@people.example"},
    "no time": {"created_at": None},
    "a time without a zone": {"created_at": "2026-01-01T00:00:00"},
    "a time in the future": {"created_at": "2999-01-01T00:00:00Z"},
    "a time that was never set": {"created_at": "0001-01-01T00:00:00Z"},
    "the last second of all": {"created_at": "9999-12-31T23:59:59.999999-14:00"},
    "a number for a time": {"created_at": 1e300},
    "no customer's id": {"stripe_customer_id": "sub_123"},
    "a customer's id with NUL": {"stripe_customer_id": "cus_\0"},
    "a customer's id that is too long": {"stripe_customer_id": "cus_" + "a" * 300},
    "a first name with control characters": {"first_name": "Fr\x00ed"},
    "a first name of two lines": {"first_name": "Fred\nRita"},
    "a first name that is too long": {"first_name": "F" * 100},
    "a first name that is a list": {"first_name": ["Fred"]},
    "show_first_name as a text": {"show_first_name": "perhaps"},
    "something unknown": {"last_name": "Smith"},
    "something unknown that cannot be written": {"\ud800": "x"},
}


async def test_what_is_no_account_is_refused(starter: Starter) -> None:
    for why, change in REFUSED_ACCOUNTS.items():
        answer = await starter.put(person("fred"), **change)
        assert 400 <= answer.status_code < 500, f"{why}: {answer.text}"
        assert_problem(answer, 422, "invalid-request")
    assert (await starter.call("GET", "/v1/accounts/acct-fred-1/bonus-minutes")).status_code == 404


async def test_what_is_refused_is_not_repeated(starter: Starter) -> None:
    """Rule 24: whoever logs the answer logs no personal data."""
    fred = person("fred")
    for change in ({"email": "fred.smith@people@example"}, {"first_name": "Frederick\n"}, {"created_at": "Frederick"}):
        answer = await starter.put(fred, **change)
        if answer.status_code != 200:
            assert "fred.smith" not in answer.text
            assert "Frederick" not in answer.text


ACCOUNT_IDS = ["fred@people.example", "a" * 200, "%00", "a%00b", "a%0A", "%20", "-a", "%F0%9F%98%80", "a%2Fb", "a b"]


async def test_rule_24_an_account_id_that_could_be_personal_or_cannot_be_stored_is_refused(starter: Starter) -> None:
    fred = person("fred")
    for account_id in ACCOUNT_IDS:
        answer = await starter.call(
            "PUT", f"/v1/accounts/{account_id}", {"email": fred.email, "created_at": fred.created_at.isoformat()}
        )
        assert answer.status_code in (404, 422), f"{account_id}: {answer.text}"
        assert answer.headers["content-type"] == "application/problem+json"
        assert "@" not in answer.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"email": ' + b"9" * 5000 + b"}"],
    ids=repr,
)
async def test_a_body_that_is_no_account_at_all_is_refused(starter: Starter, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {API_KEYS[0]}", "Content-Type": "application/json"}
    answer = await starter.send("PUT", "/v1/accounts/acct-1", content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_rule_1_a_subscriber_has_one_link_always_the_same(starter: Starter) -> None:
    rita = await starter.subscriber()
    path = f"/v1/accounts/{rita.account_id}/referral-link"
    answers = [await starter.call("POST", path, {"terms_version": TERMS}) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    link = answers[0].json()
    assert set(link) == {"code", "url"}
    assert link["url"] == f"{PUBLIC_URL}/r/{link['code']}"
    assert re.fullmatch(r"[0-9a-z]{6,32}", link["code"])
    assert (await starter.send("GET", link["url"], headers={"User-Agent": "curl/8"})).status_code == 200


async def test_rule_13_every_version_of_the_terms_that_was_accepted_is_recorded(starter: Starter) -> None:
    rita = await starter.subscriber()
    path = f"/v1/accounts/{rita.account_id}/referral-link"
    for version in ("2026-01", "2026-01", "2026-07"):
        assert (await starter.call("POST", path, {"terms_version": version})).status_code == 200
    async with starter.world.database.transaction() as transaction:
        rows = (await transaction.execute(select(terms_acceptance))).all()
    assert {row.terms_version for row in rows} == {"2026-01", "2026-07"}
    assert all(abs(row.accepted_at - datetime.now(UTC)) < timedelta(minutes=1) for row in rows)


async def test_rule_1_only_a_paid_subscriber_is_given_a_link(starter: Starter) -> None:
    free = await starter.account(person("free"))
    trial = await starter.account(person("trial"))
    now = datetime.now(UTC)
    for event in paid(trial, now, now + timedelta(days=14), amount_paid=0, total=0):
        assert (await starter.stripe(event)).status_code == 200
    for member in (free, trial):
        answer = await starter.call("POST", f"/v1/accounts/{member.account_id}/referral-link", {"terms_version": TERMS})
        assert_problem(answer, 403, "not-a-paid-subscriber")


async def test_rule_1_a_link_once_given_is_returned_also_to_a_lapsed_owner(starter: Starter) -> None:
    rita = await starter.subscriber(cycle_ends_in=timedelta(hours=1))
    code = await starter.link(rita)
    starter.world.clock.advance(timedelta(days=30))
    assert await starter.link(rita) == code


async def test_a_link_for_nobody(starter: Starter) -> None:
    answer = await starter.call("POST", "/v1/accounts/acct-nobody/referral-link", {"terms_version": TERMS})
    assert_problem(answer, 404, "unknown-account")


async def test_what_is_no_version_of_the_terms_is_refused(starter: Starter) -> None:
    rita = await starter.subscriber()
    for version in (None, "", "a b", "\0", "a" * 100, 7, ["2026-01"]):
        answer = await starter.call("POST", f"/v1/accounts/{rita.account_id}/referral-link", {"terms_version": version})
        assert_problem(answer, 422, "invalid-request")
    answer = await starter.call("POST", f"/v1/accounts/{rita.account_id}/referral-link")
    assert_problem(answer, 422, "invalid-request")


async def test_with_temporal_away_a_put_that_has_news_is_told_to_come_again_and_nothing_is_lost(
    whole_program: Starter,
) -> None:
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    fred = person("fred")
    await whole_program.signed_up(fred, referral_token=visit.token)
    await whole_program.reaches(visit.referral_id, "signed_up")
    await whole_program.pay(fred)
    assert (await whole_program.referral(visit.referral_id))["stage"] == "signed_up", "nobody knows whose payment it is"
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        assert_problem(await cut_off.put(fred), 503, "temporarily-unavailable")
        assert (await cut_off.put(rita)).status_code == 200, "no run has to hear of her"
    assert (await whole_program.put(fred)).status_code == 200
    shown = await whole_program.reaches(visit.referral_id, "credited")
    assert (shown["plan"], shown["bonus_minutes"]) == ("pro", 90)


async def test_with_postgres_away_the_backend_is_told_to_come_again(starter: Starter) -> None:
    url = re.sub(r":\d+/", f":{free_port()}/", starter.urls.app)
    fred = person("fred")
    async with starter.another(database_url=url) as cut_off:
        answers = [
            await cut_off.put(fred),
            await cut_off.call("POST", f"/v1/accounts/{fred.account_id}/referral-link", {"terms_version": TERMS}),
            await cut_off.sign_up(fred, referral_code="abcdefghjk"),
            await cut_off.call("GET", "/v1/referrals/0123456789abcdef"),
            await cut_off.call("GET", f"/v1/accounts/{fred.account_id}/referrals"),
            await cut_off.call("GET", f"/v1/accounts/{fred.account_id}/referral-summary"),
            await cut_off.call("GET", f"/v1/accounts/{fred.account_id}/bonus-minutes"),
            await cut_off.stripe(paid(fred, fred.created_at, fred.created_at + MONTH)[0]),
        ]
    for answer in answers:
        assert_problem(answer, 503, "temporarily-unavailable")
        assert int(answer.headers["retry-after"]) > 0
