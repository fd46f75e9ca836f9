"""`POST /v1/signups`: tokens, codes, windows, repeats (rules 2, 10, 15, 16 and 22)."""

from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client

from program.referral import Stage
from tests.conftest import free_port
from tests.http_support import (
    API_KEYS,
    GRACE,
    TOKEN_SECRETS,
    WINDOW,
    Endless,
    Starter,
    assert_problem,
    person,
    token_of,
    tokens,
)
from tests.support import Member

SECOND = timedelta(seconds=1)


async def clicked(starter: Starter) -> tuple[Member, str, str]:
    """A referrer, and the token and referral of a click on its link."""
    rita = await starter.subscriber()
    visit = await starter.click(await starter.link(rita))
    return rita, visit.token, visit.referral_id


def stop_the_clock(starter: Starter, at: datetime) -> None:
    """Let it be that time, to within the test's own running time."""
    starter.world.clock.advance(at - datetime.now(UTC) - starter.world.clock.offset())


async def test_rule_2_whoever_follows_the_link_and_signs_up_is_the_referrers_referral(whole_program: Starter) -> None:
    rita, token, referral_id = await clicked(whole_program)
    fred = person("fred")
    answer = await whole_program.sign_up(
        fred, referral_token=token, client_ip="203.0.113.7", user_agent="Mozilla/5.0 (iPhone)"
    )
    assert answer.status_code == 202
    assert answer.json() == {"referral_id": referral_id}
    shown = await whole_program.reaches(referral_id, "signed_up")
    assert (shown["referrer_account_id"], shown["referee_account_id"]) == (rita.account_id, fred.account_id)
    assert datetime.fromisoformat(shown["signed_up_at"]) >= fred.created_at


async def test_rule_2_so_is_whoever_gives_the_code_at_signup(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    code = await whole_program.link(rita)
    fred = person("fred")
    first = await whole_program.signed_up(fred, referral_code=f" {code.upper()} ")
    shown = await whole_program.reaches(first, "signed_up")
    assert (shown["referrer_account_id"], shown["referee_account_id"]) == (rita.account_id, fred.account_id)
    assert await whole_program.signed_up(fred, referral_code=code) == first


async def test_a_signup_is_durable_also_with_no_worker_up(starter: Starter) -> None:
    _, token, referral_id = await clicked(starter)
    assert await starter.signed_up(person("fred"), referral_token=token) == referral_id
    assert (await starter.referral(referral_id))["stage"] == "clicked", "nobody has looked at it yet"
    async with starter.world.worker():
        await starter.reaches(referral_id, "signed_up")


async def test_the_same_call_again_is_the_same_referral(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    fred = person("fred")
    ids = {await whole_program.signed_up(fred, referral_token=token) for _ in range(3)}
    await whole_program.reaches(referral_id, "signed_up")
    ids.add(await whole_program.signed_up(fred, referral_token=token))
    assert ids == {referral_id}
    assert await whole_program.world.story(referral_id) == [Stage.SIGNED_UP]


async def test_rule_16_a_second_person_with_the_same_token_is_a_referral_of_its_own(whole_program: Starter) -> None:
    rita, token, referral_id = await clicked(whole_program)
    fred, fiona = person("fred"), person("fiona")
    assert await whole_program.signed_up(fred, referral_token=token) == referral_id
    second = await whole_program.signed_up(fiona, referral_token=token)
    assert second != referral_id
    assert await whole_program.signed_up(fiona, referral_token=token) == second
    shown = await whole_program.reaches(second, "signed_up")
    assert (shown["referrer_account_id"], shown["referee_account_id"]) == (rita.account_id, fiona.account_id)
    assert (await whole_program.reaches(referral_id, "signed_up"))["referee_account_id"] == fred.account_id


async def test_rule_10_an_account_that_is_older_than_the_click_ends_refused(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    clicked_at = tokens().read(token).window.clicked_at
    old = person("old", created_at=clicked_at - timedelta(minutes=2, seconds=1))
    assert await whole_program.signed_up(old, referral_token=token) == referral_id
    shown = await whole_program.reaches(referral_id, "refused", "signed_up")
    assert shown["stage"] == "refused"
    assert "existed before" in shown["reason"], "rule 22: in words that a support agent can read out"


async def test_rule_10_two_minutes_between_the_clocks_are_no_matter(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    clicked_at = tokens().read(token).window.clicked_at
    fred = person("fred", created_at=clicked_at - timedelta(minutes=2))
    await whole_program.signed_up(fred, referral_token=token)
    assert (await whole_program.reaches(referral_id, "refused", "signed_up"))["stage"] == "signed_up"


async def test_rule_10_a_code_for_an_old_account_ends_refused(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    old = await whole_program.account(person("old", created_at=datetime.now(UTC) - timedelta(days=30)))
    referral_id = await whole_program.signed_up(old, referral_code=await whole_program.link(rita))
    shown = await whole_program.reaches(referral_id, "refused", "signed_up")
    assert shown["stage"] == "refused"
    assert "existed before" in shown["reason"]


async def test_rule_18_nobody_refers_themselves(whole_program: Starter) -> None:
    rita, token, referral_id = await clicked(whole_program)
    assert await whole_program.signed_up(rita, referral_token=token) == referral_id
    shown = await whole_program.reaches(referral_id, "refused", "signed_up")
    assert shown["stage"] == "refused"
    assert "refer themselves" in shown["reason"]


async def test_rule_18_not_with_another_account_on_the_same_address_either(whole_program: Starter) -> None:
    rita, token, referral_id = await clicked(whole_program)
    twin = person("twin")
    await whole_program.signed_up(twin, referral_token=token, email=rita.email.upper())
    assert (await whole_program.reaches(referral_id, "refused", "signed_up"))["stage"] == "refused"


async def test_rule_10_an_account_belongs_to_one_referral(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    rob = await whole_program.subscriber("rob")
    other = await whole_program.click(await whole_program.link(rob))
    fred = person("fred")
    await whole_program.signed_up(fred, referral_token=token)
    await whole_program.reaches(referral_id, "signed_up")
    second = await whole_program.signed_up(fred, referral_token=other.token)
    assert second == other.referral_id
    assert "already" in (await whole_program.reaches(second, "refused", "signed_up"))["reason"]


async def test_neither_or_both_of_token_and_code_are_refused(starter: Starter) -> None:
    rita, token, _ = await clicked(starter)
    code = await starter.link(rita)
    fred = person("fred")
    assert_problem(await starter.sign_up(fred), 422, "invalid-request")
    assert_problem(await starter.sign_up(fred, referral_token=token, referral_code=code), 422, "invalid-request")
    assert_problem(await starter.sign_up(fred, referral_token=None, referral_code=None), 422, "invalid-request")


async def test_what_was_not_signed_here_is_refused(starter: Starter) -> None:
    rita, token, referral_id = await clicked(starter)
    code = await starter.link(rita)
    now = datetime.now(UTC)
    bad = [
        token[:-9] + token[-8:],
        "x" + token,
        "nonsense",
        "a.b.c",
        "\0",
        "é",
        token_of(code, now, referral_id, "a secret of somebody else's"),
        token_of("nosuchcode", now, referral_id),
    ]
    for each in bad:
        answer = await starter.sign_up(person("fred"), referral_token=each)
        assert_problem(answer, 422, "invalid-referral-token")
    assert await starter.metric("referrals_signups_total", answer="invalid") == len(bad)


async def test_an_unknown_code_is_refused(starter: Starter) -> None:
    for code in ("nosuchcode", "'--", "é", "-", "%"):
        assert_problem(await starter.sign_up(person("fred"), referral_code=code), 422, "invalid-referral-code")


async def test_a_token_of_before_the_rotation_is_good_until_its_secret_is_removed(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    async with starter.another(token_secrets=[TOKEN_SECRETS[1]]) as before:
        visit = await before.click(code)
    fred = person("fred")
    async with starter.another(token_secrets=[TOKEN_SECRETS[0]]) as after:
        assert_problem(await after.sign_up(fred, referral_token=visit.token), 422, "invalid-referral-token")
    assert await starter.signed_up(fred, referral_token=visit.token) == visit.referral_id


async def test_rule_15_an_account_of_the_last_second_counts_and_one_of_the_next_does_not(starter: Starter) -> None:
    rita, token, referral_id = await clicked(starter)
    closes_at = tokens().read(token).window.closes_at
    stop_the_clock(starter, closes_at + timedelta(minutes=1))
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with starter.another(temporal=dead) as cut_off:
        late = await cut_off.sign_up(person("late", created_at=closes_at), referral_token=token)
        assert_problem(late, 409, "referral-lapsed")
        assert await cut_off.metric("referrals_signups_total", answer="lapsed") == 1
    fred = person("fred", created_at=closes_at - SECOND)
    assert await starter.signed_up(fred, referral_token=token) == referral_id
    assert (await starter.summary(rita))["invited"] == 0, "no worker has looked at it yet"


async def test_rule_15_the_call_may_come_seven_days_late_and_no_later(starter: Starter) -> None:
    rita = await starter.subscriber()
    code = await starter.link(rita)
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    now = datetime.now(UTC)
    fred, flo = (person(name, created_at=now - GRACE - timedelta(days=1)) for name in ("fred", "flo"))
    in_time = token_of(code, now - WINDOW - GRACE + timedelta(minutes=1), "0" * 24)
    too_late = token_of(code, now - WINDOW - GRACE, "1" * 24)
    async with starter.another(temporal=dead) as cut_off:
        # Before Temporal is asked: nobody knows whether its id could be taken once more.
        assert_problem(await cut_off.sign_up(fred, referral_token=too_late), 409, "referral-lapsed")
        assert_problem(await cut_off.sign_up(flo, referral_token=in_time), 503, "temporarily-unavailable")
    assert await starter.signed_up(flo, referral_token=in_time) == "0" * 24
    assert (await starter.call("GET", f"/v1/accounts/{fred.account_id}/referrals")).status_code == 404


async def test_rule_15_another_window_is_another_window(starter: Starter) -> None:
    code = await starter.link(await starter.subscriber())
    async with starter.another(attribution_window=timedelta(minutes=30)) as short:
        clicked_at = datetime.now(UTC) - timedelta(hours=1)
        token = token_of(code, clicked_at, "2" * 24)
        late = person("late", created_at=clicked_at + timedelta(minutes=30))
        assert_problem(await short.sign_up(late, referral_token=token), 409, "referral-lapsed")
        soon = person("soon", created_at=clicked_at + timedelta(minutes=30) - SECOND)
        assert (await short.sign_up(soon, referral_token=token)).status_code == 202


async def test_rule_15_a_signup_whose_run_was_over_before_it_came_has_lapsed(starter: Starter) -> None:
    rita, token, referral_id = await clicked(starter)
    await starter.world.handle(referral_id).terminate()
    fred = person("fred")
    for _ in range(2):
        assert_problem(await starter.sign_up(fred, referral_token=token), 409, "referral-lapsed")
    shown = await starter.referral(referral_id)
    assert shown["stage"] == "lapsed"
    assert shown["reason"], "rule 22"
    assert (await starter.summary(rita))["invited"] == 0


async def test_a_signup_that_is_told_again_after_the_end_gets_its_stored_answer(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    old = person("old", created_at=datetime.now(UTC) - timedelta(days=30))
    await whole_program.signed_up(old, referral_token=token)
    await whole_program.world.outcome(referral_id)
    answer = await whole_program.sign_up(old, referral_token=token)
    assert (answer.status_code, answer.json()) == (202, {"referral_id": referral_id})
    # Also when Temporal has long forgotten the run: the ledger is asked, and nobody else.
    stop_the_clock(whole_program, datetime.now(UTC) + WINDOW + 2 * GRACE)
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        answer = await cut_off.sign_up(old, referral_token=token)
    assert (answer.status_code, answer.json()) == (202, {"referral_id": referral_id})
    answer = await whole_program.sign_up(old, referral_token=token)
    assert (answer.status_code, answer.json()) == (202, {"referral_id": referral_id})


async def test_with_temporal_away_a_signup_is_told_to_come_again_and_nothing_is_lost(whole_program: Starter) -> None:
    _, token, referral_id = await clicked(whole_program)
    fred = person("fred")
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        answer = await cut_off.sign_up(fred, referral_token=token)
    assert_problem(answer, 503, "temporarily-unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert await whole_program.signed_up(fred, referral_token=token) == referral_id
    await whole_program.reaches(referral_id, "signed_up")


async def test_a_payment_starts_the_run_of_a_signup_that_was_cut_short(whole_program: Starter) -> None:
    code = await whole_program.link(await whole_program.subscriber())
    never_started = token_of(code, datetime.now(UTC), "3" * 24)
    flo = await whole_program.account(person("flo"))
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        assert (await cut_off.sign_up(flo, referral_token=never_started)).status_code == 503
    await whole_program.pay(flo)
    await whole_program.reaches("3" * 24, "credited")


REFUSED_SIGNUPS: dict[str, dict[str, Any]] = {
    "an e-mail address for an id": {"account_id": "fred@people.example"},
    "no id": {"account_id": ""},
    "an id with NUL": {"account_id": "acct\0"},
    "an id of two lines": {"account_id": "acct-1\n"},
    "an id that is too long": {"account_id": "a" * 200},
    "no e-mail": {"email": ""},
    "no e-mail address": {"email": "fred"},
    "an e-mail that is too long": {"email": "f" * 400 + "@people.example"},
    "an e-mail that cannot be normalised": {"email": "fred@א1.com"},
    "a time in the future": {"created_at": "2999-01-01T00:00:00Z"},
    "a time without a zone": {"created_at": "2026-01-01T00:00:00"},
    "a time that was never set": {"created_at": "0001-01-01T00:00:00+14:00"},
    "the last second of all": {"created_at": "9999-12-31T23:59:59.999999-14:00"},
    "a code with NUL": {"referral_token": None, "referral_code": "a\0b"},
    "a code with half a character": {"referral_token": None, "referral_code": "a\ud800b"},
    "a code of blanks": {"referral_token": None, "referral_code": "  "},
    "a code that is too long": {"referral_token": None, "referral_code": "a" * 5000},
    "a token that is too long": {"referral_token": "a" * 5000},
    "an address that is too long": {"client_ip": "1" * 5000},
    "a user agent that is too long": {"user_agent": "a" * 50_000},
    "something unknown": {"first_name": "Fred"},
}


async def test_what_is_no_signup_is_refused(starter: Starter) -> None:
    _, token, referral_id = await clicked(starter)
    for why, change in REFUSED_SIGNUPS.items():
        answer = await starter.sign_up(person("fred"), **{"referral_token": token} | change)
        assert answer.status_code == 422, f"{why}: {answer.status_code} {answer.text}"
        assert_problem(answer, 422, "invalid-request")
    description = await starter.world.handle(referral_id).describe()
    assert description.history_length == 1, "none of them reached the run"


async def test_clocks_may_differ_by_minutes(starter: Starter) -> None:
    _, token, referral_id = await clicked(starter)
    ahead = person("ahead", created_at=datetime.now(UTC) + timedelta(minutes=4))
    assert await starter.signed_up(ahead, referral_token=token) == referral_id


async def test_rule_24_what_is_refused_is_not_repeated(starter: Starter) -> None:
    _, token, _ = await clicked(starter)
    for change in ({"email": "fred.smith@people@example"}, {"account_id": "fred.smith@people.example"}):
        answer = await starter.sign_up(person("fred"), **{"referral_token": token} | change)
        assert answer.status_code == 422
        assert "fred.smith" not in answer.text


async def test_a_body_without_end_is_refused(starter: Starter) -> None:
    headers = {"Authorization": f"Bearer {API_KEYS[0]}", "Content-Type": "application/json"}
    body = Endless()
    assert_problem(await starter.send("POST", "/v1/signups", content=body, headers=headers), 413, "content-too-large")
    assert body.taken < 1_000_000, "it was not read to its end"
    assert_problem(
        await starter.send("POST", "/v1/signups", content=b" " * 200_000, headers={"Content-Type": "application/json"}),
        413,
        "content-too-large",
    )
