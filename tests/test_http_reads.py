"""What the backend reads: a referral, the list, the summary, the bonus minutes (rules 7, 12 and 22)."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from itsdangerous import URLSafeSerializer
from temporalio.client import Client

from tests.conftest import free_port
from tests.http_support import PUBLIC_URL, TOKEN_SECRETS, Starter, assert_problem, paid, person, tokens
from tests.support import MONTH, Member, until
from workflows.messages import ReferralStart

REFERRAL = {
    "referral_id",
    "stage",
    "reason",
    "referrer_account_id",
    "referee_account_id",
    "plan",
    "bonus_minutes",
    "needs_attention",
    "review_reasons",
    "clicked_at",
    "signed_up_at",
    "credited_at",
    "expires_at",
}
GRANT = {"grant_id", "referral_id", "role", "minutes", "remaining", "expires_at", "state"}
SUMMARY = {"clicks", "invited", "subscribed", "bonus_minutes_earned", "bonus_minutes_available", "next_expiry"}


async def referred(starter: Starter, rita: Member, *names: str) -> list[str]:
    """Friends who signed up by a member's link, one after the other, and their referrals."""
    code = await starter.link(rita)
    ids = []
    for name in names:
        visit = await starter.click(code)
        ids.append(await starter.signed_up(await starter.account(person(name)), referral_token=visit.token))
        await starter.reaches(ids[-1], "signed_up")
    return ids


async def credited(starter: Starter, cycle_ends_in: timedelta = MONTH / 2) -> tuple[Member, Member, str]:
    """A referrer, a friend who has paid for Pro, and their referral."""
    rita = await starter.subscriber(cycle_ends_in=cycle_ends_in)
    visit = await starter.click(await starter.link(rita))
    fred = await starter.account(person("fred"))
    await starter.signed_up(fred, referral_token=visit.token)
    await starter.pay(fred)
    await starter.reaches(visit.referral_id, "credited")
    return rita, fred, visit.referral_id


async def test_a_mere_click_shows_what_temporal_holds_of_it(starter: Starter) -> None:
    rita = await starter.subscriber()
    visit = await starter.click(await starter.link(rita))
    shown = await starter.referral(visit.referral_id)
    assert shown.keys() >= REFERRAL
    assert (shown["referral_id"], shown["stage"], shown["reason"]) == (visit.referral_id, "clicked", None)
    assert shown["referrer_account_id"] == rita.account_id
    assert datetime.fromisoformat(shown["clicked_at"]) == tokens().read(visit.token).window.clicked_at
    for nothing in ("referee_account_id", "plan", "bonus_minutes", "signed_up_at", "credited_at"):
        assert shown[nothing] is None
    assert (shown["needs_attention"], shown["review_reasons"]) == (False, [])
    assert shown["expires_at"] == {"referrer": None, "referee": None}


async def test_rule_22_a_click_that_lapsed_says_why(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    now = datetime.now(UTC)
    lapsing = ReferralStart("4" * 24, rita.account_id, now - timedelta(days=97), now + timedelta(seconds=5))
    await whole_program.world.runs.clicked(lapsing, now)
    assert (await whole_program.referral("4" * 24))["stage"] == "clicked"
    shown = await whole_program.reaches("4" * 24, "lapsed")
    assert shown["reason"]
    assert shown["referrer_account_id"] == rita.account_id


async def test_a_click_whose_run_was_ended_from_outside_has_lapsed(starter: Starter) -> None:
    visit = await starter.click(await starter.link(await starter.subscriber()))
    await starter.world.handle(visit.referral_id).terminate()
    shown = await starter.referral(visit.referral_id)
    assert shown["stage"] == "lapsed"
    assert shown["reason"], "rule 22"


async def test_a_referral_that_nobody_knows(starter: Starter) -> None:
    for referral_id in ("f" * 24, "a", "-"):
        assert_problem(await starter.call("GET", f"/v1/referrals/{referral_id}"), 404, "unknown-referral")
    for referral_id in ("%00", "a%00", "a" * 200, "%F0%9F%98%80", "a.b", "%0A"):
        answer = await starter.call("GET", f"/v1/referrals/{referral_id}")
        assert_problem(answer, 422, "invalid-request")


async def test_with_temporal_away_signed_up_referrals_are_shown_and_clicks_later(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    visit = await whole_program.click(await whole_program.link(rita))
    (signed_up,) = await referred(whole_program, rita, "fred")
    dead = await Client.connect(f"127.0.0.1:{free_port()}", lazy=True)
    async with whole_program.another(temporal=dead) as cut_off:
        assert (await cut_off.referral(signed_up))["stage"] == "signed_up"
        answer = await cut_off.call("GET", f"/v1/referrals/{visit.referral_id}")
        assert_problem(answer, 503, "temporarily-unavailable")
        assert len((await cut_off.get(f"/v1/accounts/{rita.account_id}/referrals"))["referrals"]) == 1


async def test_a_credited_referral_shows_the_whole_story(whole_program: Starter) -> None:
    rita, fred, referral_id = await credited(whole_program, cycle_ends_in=timedelta(days=9))
    shown = await whole_program.referral(referral_id)
    assert shown.keys() >= REFERRAL
    assert (shown["stage"], shown["reason"], shown["plan"], shown["bonus_minutes"]) == ("credited", None, "pro", 90)
    assert (shown["referrer_account_id"], shown["referee_account_id"]) == (rita.account_id, fred.account_id)
    assert (shown["needs_attention"], shown["review_reasons"]) == (False, [])
    times = [datetime.fromisoformat(shown[name]) for name in ("clicked_at", "signed_up_at", "credited_at")]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times), "UTC"
    now = datetime.now(UTC)
    ends = {role: datetime.fromisoformat(at) for role, at in shown["expires_at"].items()}
    assert abs(ends["referrer"] - now - timedelta(days=9)) < timedelta(minutes=1), "rule 7: its own cycle's end"
    assert abs(ends["referee"] - now - timedelta(days=30)) < timedelta(minutes=1)


async def test_rule_12_the_summary_counts_invited_subscribed_and_earned(whole_program: Starter) -> None:
    rita = await whole_program.subscriber(cycle_ends_in=timedelta(days=9))
    code = await whole_program.link(rita)
    summary = await whole_program.summary(rita)
    assert summary.keys() >= SUMMARY
    assert [summary[name] for name in sorted(SUMMARY)] == [0, 0, 0, 0, None, 0]
    friends = {name: await whole_program.account(person(name)) for name in ("one", "two", "three", "four")}
    ids = {}
    for name, friend in friends.items():
        visit = await whole_program.click(code)
        ids[name] = await whole_program.signed_up(friend, referral_token=visit.token)
        await whole_program.reaches(ids[name], "signed_up")
    await whole_program.click(code)
    old = person("old", created_at=datetime.now(UTC) - timedelta(days=30))
    refused = await whole_program.signed_up(old, referral_code=code)
    await whole_program.reaches(refused, "refused")
    for name, plan in (("one", "pro"), ("two", "power"), ("three", "starter")):
        await whole_program.pay(friends[name], plan=plan)
        await whole_program.reaches(ids[name], "credited")
    summary = await whole_program.summary(rita)
    assert (summary["clicks"], summary["invited"], summary["subscribed"]) == (5, 4, 3)
    assert (summary["bonus_minutes_earned"], summary["bonus_minutes_available"]) == (412, 412)
    assert abs(datetime.fromisoformat(summary["next_expiry"]) - datetime.now(UTC) - timedelta(days=9)) < timedelta(
        minutes=1
    )
    summary = await whole_program.summary(friends["two"])
    assert (summary["invited"], summary["bonus_minutes_earned"]) == (0, 300), "rule 12: in either role"


async def test_rule_22_a_signup_that_was_refused_at_once_is_in_the_list_and_says_why(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    code = await whole_program.link(rita)
    waiting = await whole_program.signed_up(await whole_program.account(person("new")), referral_code=code)
    await whole_program.reaches(waiting, "signed_up")
    old = person("old", created_at=datetime.now(UTC) - timedelta(days=30))
    refused = await whole_program.signed_up(old, referral_code=code)
    await whole_program.reaches(refused, "refused")
    page = await whole_program.get(f"/v1/accounts/{rita.account_id}/referrals")
    assert [(each["referral_id"], each["stage"]) for each in page["referrals"]] == [
        (refused, "refused"),
        (waiting, "signed_up"),
    ]
    assert "existed before" in page["referrals"][0]["reason"]
    assert (await whole_program.summary(rita))["invited"] == 1, "rule 12: it counts for nothing"


async def test_the_list_has_the_signed_up_referrals_newest_first(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    await whole_program.click(await whole_program.link(rita))
    ids = await referred(whole_program, rita, "one", "two", "three")
    page = await whole_program.get(f"/v1/accounts/{rita.account_id}/referrals")
    assert [each["referral_id"] for each in page["referrals"]] == ids[::-1]
    assert page["next_cursor"] is None
    assert all(each.keys() >= REFERRAL for each in page["referrals"])
    assert page["referrals"][0] == await whole_program.referral(ids[2]), "the same in the list as on its own"
    fred = await whole_program.account(person("fred"))
    assert await whole_program.get(f"/v1/accounts/{fred.account_id}/referrals") == {
        "referrals": [],
        "next_cursor": None,
    }


async def pages(starter: Starter, path: str, limit: int) -> list[list[Any]]:
    """All pages of a list."""
    seen, cursor = [], None
    while True:
        page = await starter.get(path, limit=limit, **({"cursor": cursor} if cursor else {}))
        seen.append(page.get("referrals", page.get("grants")))
        cursor = page["next_cursor"]
        if cursor is None:
            return seen


async def test_a_list_pages_by_cursor_and_newcomers_do_not_shift_it(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    ids = (await referred(whole_program, rita, "one", "two", "three", "four"))[::-1]
    path = f"/v1/accounts/{rita.account_id}/referrals"
    for limit, sizes in ((1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (4, [4]), (100, [4])):
        seen = await pages(whole_program, path, limit)
        assert [len(page) for page in seen] == sizes
        assert [each["referral_id"] for page in seen for each in page] == ids
    first = await whole_program.get(path, limit=2)
    await referred(whole_program, rita, "five")
    second = await whole_program.get(path, limit=2, cursor=first["next_cursor"])
    assert [each["referral_id"] for each in second["referrals"]] == ids[2:]
    again = await whole_program.get(path, limit=2, cursor=first["next_cursor"])
    assert again == second


async def test_a_cursor_is_good_for_its_own_list_and_unchanged(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    await referred(whole_program, rita, "one", "two")
    rob = await whole_program.subscriber("rob")
    path = f"/v1/accounts/{rita.account_id}/referrals"
    cursor = (await whole_program.get(path, limit=1))["next_cursor"]
    forged = URLSafeSerializer("a secret of somebody else's", salt=f"cursor-referrals {rita.account_id}")
    signed_nonsense = URLSafeSerializer(TOKEN_SECRETS[0], salt=f"cursor-referrals {rita.account_id}")
    wrong = [
        cursor[:-9] + cursor[-8:],
        "x" + cursor,
        "nonsense",
        "",
        "\0",
        str(forged.dumps([datetime.now(UTC).isoformat(), "x"])),
        str(signed_nonsense.dumps(["yesterday", "x"])),
        str(signed_nonsense.dumps([1])),
        str(signed_nonsense.dumps(None)),
    ]
    for each in wrong:
        answer = await whole_program.call("GET", path, params={"limit": 1, "cursor": each})
        assert_problem(answer, 422, "invalid-cursor")
    for elsewhere in (f"/v1/accounts/{rob.account_id}/referrals", f"/v1/accounts/{rita.account_id}/bonus-minutes"):
        answer = await whole_program.call("GET", elsewhere, params={"cursor": cursor})
        assert_problem(answer, 422, "invalid-cursor")
    for limit in ("0", "-1", "many", "1e9", "100000000000000000000"):
        answer = await whole_program.call("GET", path, params={"limit": limit})
        assert_problem(answer, 422, "invalid-request")
    answer = await whole_program.call("GET", path, params={"cursor": "a" * 5000})
    assert_problem(answer, 422, "invalid-request")


async def test_a_cursor_of_before_the_secrets_were_rotated_is_good(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    ids = await referred(whole_program, rita, "one", "two")
    path = f"/v1/accounts/{rita.account_id}/referrals"
    async with whole_program.another(token_secrets=[TOKEN_SECRETS[1]]) as before:
        cursor = (await before.get(path, limit=1))["next_cursor"]
    page = await whole_program.get(path, cursor=cursor)
    assert [each["referral_id"] for each in page["referrals"]] == ids[:1]


async def test_of_an_account_that_nobody_knows_nothing_is_shown(starter: Starter) -> None:
    for what in ("referrals", "referral-summary", "bonus-minutes"):
        answer = await starter.call("GET", f"/v1/accounts/acct-nobody/{what}")
        assert_problem(answer, 404, "unknown-account")


async def test_rule_7_bonus_minutes_before_and_after_their_end(whole_program: Starter) -> None:
    rita, fred, referral_id = await credited(whole_program, cycle_ends_in=timedelta(days=9))
    for member, role in ((rita, "referrer"), (fred, "referee")):
        bonus = await whole_program.bonus(member)
        (grant,) = bonus["grants"]
        assert grant.keys() >= GRANT
        assert bonus["available"] == 90
        assert (grant["referral_id"], grant["role"], grant["state"]) == (referral_id, role, "active")
        assert (grant["minutes"], grant["remaining"], grant["expired"]) == (90, 90, 0)
    end = datetime.fromisoformat((await whole_program.bonus(rita))["grants"][0]["expires_at"])
    clock = whole_program.world.clock
    clock.advance(end - datetime.now(UTC) - timedelta(seconds=20))
    assert (await whole_program.bonus(rita))["available"] == 90
    clock.advance(timedelta(seconds=20))
    # Its run still sleeps, in Temporal's own time: what is over is over, also where its sweep is late.
    bonus = await whole_program.bonus(rita)
    (grant,) = bonus["grants"]
    assert (bonus["available"], grant["state"], grant["remaining"], grant["expired"]) == (0, "expired", 0, 90)
    summary = await whole_program.summary(rita)
    assert (summary["bonus_minutes_available"], summary["next_expiry"]) == (0, None)
    assert summary["bonus_minutes_earned"] == 90, "rule 12: earned in all"
    assert (await whole_program.bonus(fred))["available"] == 90, "the two ends differ"
    assert (await whole_program.referral(referral_id))["stage"] == "credited"


async def test_both_bonuses_expire_in_real_time_and_the_referral_is_settled(whole_program: Starter) -> None:
    # Her cycle is over, and is renewed when he pays: both end some seconds after that, on a slow machine later.
    began = datetime.now(UTC)
    rita = await whole_program.subscriber(cycle_ends_in=-timedelta(hours=1))
    visit = await whole_program.click(await whole_program.link(rita))
    fred = await whole_program.account(person("fred"))
    await whole_program.signed_up(fred, referral_token=visit.token)
    await whole_program.reaches(visit.referral_id, "signed_up")
    now = datetime.now(UTC)
    slack = timedelta(seconds=math.ceil(3 * (now - began).total_seconds()))
    for event in paid(rita, now, now + timedelta(seconds=4) + slack):
        assert (await whole_program.stripe(event)).status_code == 200
    await whole_program.pay(fred, length=timedelta(seconds=6) + slack)
    first = await until(
        lambda: whole_program.bonus(rita),
        lambda seen: bool(seen["grants"]) and seen["grants"][0]["state"] == "expired",
        60 + slack.total_seconds(),
    )
    assert first["grants"][0]["expired"] == 90
    shown = await whole_program.reaches(visit.referral_id, "settled")
    assert (await whole_program.bonus(fred))["grants"][0]["state"] == "expired"
    assert datetime.fromisoformat(shown["expires_at"]["referrer"]) < datetime.fromisoformat(
        shown["expires_at"]["referee"]
    )


async def test_grants_page_too(whole_program: Starter) -> None:
    rita = await whole_program.subscriber()
    code = await whole_program.link(rita)
    for name in ("one", "two", "three"):
        friend = await whole_program.account(person(name))
        visit = await whole_program.click(code)
        await whole_program.signed_up(friend, referral_token=visit.token)
        await whole_program.pay(friend)
        await whole_program.reaches(visit.referral_id, "credited")
    path = f"/v1/accounts/{rita.account_id}/bonus-minutes"
    whole = (await whole_program.get(path))["grants"]
    times = [grant["credited_at"] for grant in whole]
    assert times == sorted(times, reverse=True)
    seen = await pages(whole_program, path, 2)
    assert [len(page) for page in seen] == [2, 1]
    assert [grant for page in seen for grant in page] == whole
    assert (await whole_program.get(path, limit=1))["available"] == 270, "all of it, whatever the page"


async def test_many_reads_at_once(whole_program: Starter) -> None:
    rita, _, referral_id = await credited(whole_program)
    paths = [f"/v1/referrals/{referral_id}", f"/v1/accounts/{rita.account_id}/bonus-minutes", f"{PUBLIC_URL}/readyz"]
    answers = await asyncio.gather(*(whole_program.call("GET", path) for path in paths * 20))
    assert {answer.status_code for answer in answers} == {200}
