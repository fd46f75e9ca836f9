"""What the starter keeps of a device and an e-mail address: keyed hashes, where the sign is on (rules 19 and 24)."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from program.signals import DEVICES_KEPT, Handling
from starter.devices import is_disposable
from tests.http_support import IPHONE, TERMS, Starter, assert_problem, person
from tests.support import HASHES

MINUTE = timedelta(minutes=1)
IP = "203.0.113.77"
SAFARI = "Mobile Safari"
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
)
SEEN = {"client_ip": IP, "user_agent": IPHONE}
ON: dict[str, Any] = {"signal_same_device": Handling.MARK}


def devices(owner: psycopg.Connection, account_id: str) -> set[tuple[bytes, bool]]:
    """What is kept of an account's devices: hashes, and whether they are of its signup."""
    rows = owner.execute("SELECT hash, at_signup FROM device WHERE account_id = %s", [account_id])
    return {(bytes(digest), at_signup) for digest, at_signup in rows.fetchall()}


def everything(owner: psycopg.Connection) -> str:
    """All rows of all tables, as text."""
    tables = owner.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return "".join(str(owner.execute(f'SELECT t::text FROM "{table}" t').fetchall()) for (table,) in tables)  # noqa: S608


async def test_rule_19_a_keyed_hash_of_every_device_is_kept_where_the_sign_is_on(
    starter: Starter, owner: psycopg.Connection
) -> None:
    async with starter.another(**ON) as watching:
        rita = await watching.subscriber()
        code = await watching.link(rita)
        assert devices(owner, rita.account_id) == set(), "nothing was passed yet"

        await watching.account(rita, **SEEN)
        body = {"terms_version": TERMS, "client_ip": "2001:db8::1", "user_agent": CHROME}
        assert (await watching.call("POST", f"/v1/accounts/{rita.account_id}/referral-link", body)).status_code == 200
        fred = person("fred")
        await watching.signed_up(fred, referral_code=code, client_ip=f"::ffff:{IP}", user_agent=IPHONE)

    assert devices(owner, rita.account_id) == {
        (HASHES.device(IP, SAFARI), False),
        (HASHES.device("2001:db8::2", "Chrome"), False),
    }
    assert devices(owner, fred.account_id) == {(HASHES.device(IP, SAFARI), True)}


async def test_rule_24_nothing_of_a_device_is_kept_in_the_clear_or_logged(
    starter: Starter, owner: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    async with starter.another(**ON) as watching:
        rita = await watching.subscriber()
        await watching.account(rita, **SEEN)
        fred = person("fred")
        await watching.signed_up(
            fred, referral_code=await watching.link(rita), email=f"{fred.account_id}@mailinator.com", **SEEN
        )
    kept, written = everything(owner), "".join(capsys.readouterr())

    assert fred.account_id in kept, "else this test looks in the wrong place"
    assert "signup reported" in written
    for personal in (IP, "203.0", "iPhone", "Safari", "mailinator"):
        assert personal not in kept
        assert personal not in written


async def test_rule_19_no_hash_is_kept_for_a_sign_that_nobody_looks_at(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    await starter.account(rita, **SEEN)
    fred = person("fred")
    await starter.signed_up(fred, referral_code=await starter.link(rita), **SEEN)

    assert owner.execute("SELECT count(*) FROM device").fetchall() == [(0,)]


@pytest.mark.parametrize(
    "seen",
    [
        {"client_ip": IP},
        {"user_agent": IPHONE},
        {"client_ip": IP, "user_agent": "some app"},
        {**SEEN, "user_agent": ""},
    ],
)
async def test_rule_19_half_a_device_is_nobody_s(
    starter: Starter, owner: psycopg.Connection, seen: dict[str, str]
) -> None:
    async with starter.another(**ON) as watching:
        await watching.account(person("fred"), **seen)

    assert owner.execute("SELECT count(*) FROM device").fetchall() == [(0,)]


async def test_rule_19_only_the_devices_seen_last_are_kept(starter: Starter, owner: psycopg.Connection) -> None:
    async with starter.another(**ON) as watching:
        fred = person("fred")
        for number in (*range(DEVICES_KEPT + 1), 2):
            await watching.account(fred, client_ip=f"203.0.113.{number}", user_agent=IPHONE)
            watching.world.clock.advance(MINUTE)
        await watching.account(fred, client_ip="203.0.113.200", user_agent=IPHONE)

    gone = {0, 1}
    kept = {(HASHES.device(f"203.0.113.{number}", SAFARI), False) for number in range(DEVICES_KEPT + 1)}
    kept -= {(HASHES.device(f"203.0.113.{number}", SAFARI), False) for number in gone}
    assert devices(owner, fred.account_id) == kept | {(HASHES.device("203.0.113.200", SAFARI), False)}


BAD: dict[str, Any] = {
    "no address": "somewhere",
    "an empty one": "",
    "one with a port": f"{IP}:443",
    "two": f"{IP}, 10.0.0.1",
    "one with NUL": f"{IP}\0",
    "a number": 3405803789,
    "a long one": "1" * 65,
}


@pytest.mark.parametrize("signal", list(Handling))
async def test_rule_19_a_bad_address_is_refused_by_every_call_and_not_repeated(
    starter: Starter, signal: Handling
) -> None:
    async with starter.another(signal_same_device=signal) as watching:
        rita = await watching.subscriber()
        code = await watching.link(rita)
        for why, bad in BAD.items():
            seen = {"client_ip": bad, "user_agent": IPHONE}
            link = {"terms_version": TERMS, **seen}
            answers = [
                await watching.put(rita, **seen),
                await watching.call("POST", f"/v1/accounts/{rita.account_id}/referral-link", link),
                await watching.sign_up(person("fred"), referral_code=code, **seen),
            ]
            for answer in answers:
                assert_problem(answer, 422, "invalid-request")
                assert not bad or str(bad) not in answer.text, why
        assert_problem(await watching.put(rita, client_ip=IP, user_agent="x" * 1025), 422, "invalid-request")


@pytest.mark.parametrize(
    ("email", "disposable"),
    [
        ("a@mailinator.com", True),
        ("a@MailInator.COM.", True),
        ("a@inbox.mailinator.com", True),
        ("a@deep.inbox.mailinator.com", True),
        ("a@mailinator.com.example", False),
        ("mailinator.com@people.example", False),
        ("a@gmail.com", False),
        ("a@com", False),
    ],
)
def test_rule_19_throw_away_addresses_are_known_by_their_provider(email: str, disposable: bool) -> None:
    assert is_disposable(email) is disposable


async def test_rule_19_of_an_e_mail_address_only_whether_it_is_a_throw_away_one_is_kept(
    starter: Starter, owner: psycopg.Connection
) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    fred, fiona = person("fred"), person("fiona")
    await starter.signed_up(fred, referral_code=code, email=f"{fred.account_id}@inbox.mailinator.com")
    await starter.signed_up(fiona, referral_code=code)

    def disposable(account_id: str) -> object:
        row = owner.execute("SELECT disposable_email FROM account WHERE account_id = %s", [account_id]).fetchone()
        return row and row[0]

    assert [disposable(member.account_id) for member in (fred, fiona, rita)] == [True, False, False]
    assert "mailinator" not in everything(owner)
    await starter.account(fiona, email=f"{fiona.account_id}@mailinator.com")
    await starter.account(fred)
    assert [disposable(member.account_id) for member in (fred, fiona)] == [False, True], "it goes with the address"
