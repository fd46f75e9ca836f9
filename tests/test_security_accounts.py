"""Nobody reads or gets what is another's: tokens in other places, cookies across accounts, rings (docs/security.md)."""

from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from ledger.portal_sessions import Session
from starter import cursors
from starter.live import TooManyStreamsError
from starter.sharing import address, qr_svg
from starter.tokens import InvalidTokenError
from tests.http_support import API_KEYS, IPHONE, PUBLIC_URL, TERMS, Starter, assert_problem, person, tokens
from tests.support import Member
from tests.test_http_portal import assert_ended, browse, opened, portal_url, press, shows, token_in


async def with_a_link(starter: Starter, name: str) -> tuple[Member, str, str]:
    """A member with a link; the link's code, and a cursor of the list of its referrals."""
    member = await starter.subscriber(name)
    place = (datetime.now(UTC), "0123456789abcdef01234567")
    cursor = cursors.cursor(starter.app.state.services, cursors.of_referrals(member.account_id), place)
    assert cursor is not None
    await starter.get(f"/v1/accounts/{member.account_id}/referrals", cursor=cursor)
    return member, await starter.link(member), cursor


async def test_what_is_signed_or_given_for_one_place_opens_no_other(starter: Starter) -> None:
    rita, code, cursor = await with_a_link(starter, "rita")
    visit = await starter.click(code)
    session = token_in(await portal_url(starter, rita))
    cookie = await opened(starter, rita)
    keys = {
        "click": visit.token,
        "cursor": cursor,
        "session": session,
        "cookie": cookie,
        "key": API_KEYS[0],
        "code": code,
    }
    path = f"/v1/accounts/{rita.account_id}"
    for name, key in keys.items():
        if name != "click":
            with pytest.raises(InvalidTokenError):
                tokens().read(key)
            answer = await starter.sign_up(person("fred"), referral_token=key)
            assert_problem(answer, 422, "invalid-referral-token")
            assert (await starter.click(code, cookie=key)).referral_id != visit.referral_id
        if name != "cursor":
            answer = await starter.call("GET", f"{path}/referrals?cursor={quote(key)}")
            assert_problem(answer, 422, "invalid-cursor")
        if name != "session":
            assert_ended(await browse(starter, f"/portal?session={quote(key)}"))
        if name != "cookie":
            assert_ended(await browse(starter, "/portal", key.replace(" ", "+")))
        if name != "key":
            assert_problem(await starter.call("GET", f"{path}/referrals", key=key), 401, "unauthorized")
        if name != "code":
            answer = await starter.sign_up(person("fred"), referral_code=key[:64])
            assert_problem(answer, 422, "invalid-referral-code")
            assert (await starter.follow(quote(key))).status_code == 404


async def test_a_token_belongs_to_the_click_that_it_was_made_for_wherever_it_is_sent(starter: Starter) -> None:
    rita, rob = await starter.subscriber("rita"), await starter.subscriber("rob")
    visit = await starter.click(await starter.link(rita))
    fred = person("fred")
    # Whoever brings a token of another's link brings it to that other's account.
    referral_id = await starter.signed_up(fred, referral_token=visit.token)
    assert (await starter.referral(referral_id))["referrer_account_id"] == rita.account_id
    for cookie in (visit.cookie, visit.token):
        other = await starter.click(await starter.link(rob), cookie=cookie, headers={"Cookie": f"kally_visit={cookie}"})
        assert other.referral_id != visit.referral_id
        assert (await starter.referral(other.referral_id))["referrer_account_id"] == rob.account_id


async def test_an_open_dashboard_shows_its_own_account_whatever_else_is_asked_for(starter: Starter) -> None:
    rita, code, _ = await with_a_link(starter, "rita")
    rob, others_code, others_cursor = await with_a_link(starter, "rob")
    cookie, others_cookie = await opened(starter, rita), await opened(starter, rob)
    others = {rob.account_id, others_code, others_cookie}
    asked = (
        f"account_id={rob.account_id}",
        f"account={rob.account_id}&member={rob.account_id}",
        f"cursor={others_cursor}",
        f"code={others_code}",
        f"session={others_cookie}",
    )
    for query in ("", *asked):
        for path in (
            "/portal",
            "/portal/qr.svg",
            "/portal/link",
            f"/portal/{rob.account_id}",
            f"/portal/../{others_code}",
        ):
            answer = await browse(starter, f"{path}?{query}", cookie, headers={"X-Account-Id": rob.account_id})
            assert not [secret for secret in others if secret in answer.text], (path, query)
            assert answer.status_code in (200, 303, 401, 404), (path, query)
    assert code in (await browse(starter, f"/portal?account_id={rob.account_id}", cookie)).text
    # Two cookies of one name: one session is looked at, and none is mixed with the other.
    both = await starter.send(
        "GET",
        "/portal",
        headers={"User-Agent": IPHONE, "Cookie": f"kally_portal={cookie}; kally_portal={others_cookie}"},
    )
    assert (code in both.text) != (others_code in both.text)
    # Forms act on the account of the session, whoever else they name.
    await press(starter, "/portal/link", cookie, terms_version=TERMS, account_id=rob.account_id)
    await press(starter, "/portal/sign-out", cookie, session=others_cookie, account_id=rob.account_id)
    assert_ended(await browse(starter, "/portal", cookie))
    await shows(starter, others_cookie)


async def test_the_picture_and_the_news_of_an_open_dashboard_are_of_its_own_account(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rita, code, _ = await with_a_link(starter, "rita")
    rob, others_code, _ = await with_a_link(starter, "rob")
    cookie = await opened(starter, rita)
    anothers = f"account_id={rob.account_id}&code={others_code}"

    picture = await browse(starter, f"/portal/qr.svg?{anothers}", cookie)

    assert picture.content == qr_svg(address(PUBLIC_URL, code, "qr"))

    watched: list[str] = []

    def watch(session: Session, _: str | None) -> None:
        watched.append(session.account_id)
        raise TooManyStreamsError

    # The stream itself has no end: who is watched is seen where it begins.
    monkeypatch.setattr(starter.app.state.services.live, "watch", watch)
    await browse(starter, f"/portal/events?{anothers}", cookie, headers={"X-Account-Id": rob.account_id})
    assert watched == [rita.account_id]


async def test_a_dashboards_cookie_is_no_key_to_the_api(starter: Starter) -> None:
    rita = await starter.subscriber()
    cookie = await opened(starter, rita)
    document = (await starter.send("GET", "/openapi.json")).json()
    tried = 0
    for path, methods in document["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method in methods:
            address = path.format(account_id=rita.account_id, referral_id="none")
            headers = {"Cookie": f"kally_portal={cookie}; kally_ref={cookie}", "Origin": PUBLIC_URL}
            assert_problem(await starter.send(method.upper(), address, headers=headers), 401, "unauthorized")
            tried += 1
    assert tried >= 10


async def test_rules_10_and_18_a_ring_of_members_who_refer_each_other_gains_nothing(whole_program: Starter) -> None:
    ring = [await whole_program.subscriber(name) for name in ("ann", "bob", "cid")]
    codes = [await whole_program.link(member) for member in ring]
    referrals = []
    for number, member in enumerate(ring):
        token = (await whole_program.click(codes[(number + 1) % 3])).token
        referrals.append(await whole_program.signed_up(member, referral_token=token))
    for referral_id in referrals:
        shown = await whole_program.reaches(referral_id, "refused")
        assert shown["reason"]
    for member in ring:
        await whole_program.pay(member)
        assert (await whole_program.bonus(member))["grants"] == []
        assert (await whole_program.summary(member))["invited"] == 0


async def test_rule_18_a_ring_of_new_accounts_of_one_person_gains_nothing(whole_program: Starter) -> None:
    ann = await whole_program.subscriber("ann")
    code = await whole_program.link(ann)
    name, _, domain = ann.email.partition("@")
    same_mailbox = person("ann-again")
    ways = [
        {"account_id": ann.account_id, "email": ann.email, "created_at": ann.created_at.isoformat()},
        {"account_id": same_mailbox.account_id, "email": f"{name.upper()}@{domain.upper()}"},
    ]
    for way in ways:
        token = (await whole_program.click(code)).token
        now = datetime.now(UTC).isoformat()
        body = {"created_at": now, **way, "referral_token": token}
        answer = await whole_program.call("POST", "/v1/signups", body)
        assert answer.status_code == 202, answer.text
        assert (await whole_program.reaches(answer.json()["referral_id"], "refused"))["reason"]
    same_customer = person("ann-once-more")
    referral_id = await whole_program.signed_up(same_customer, referral_token=(await whole_program.click(code)).token)
    await whole_program.account(same_customer, stripe_customer_id=ann.customer_id)
    await whole_program.pay(ann)
    assert "same customer as the referrer" in (await whole_program.reaches(referral_id, "refused"))["reason"]
    assert (await whole_program.bonus(ann))["grants"] == []
    assert (await whole_program.bonus(same_customer))["grants"] == []
