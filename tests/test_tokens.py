"""Signed link tokens (rules 15 and 16)."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from ledger.referrals import ClickedLink
from program.referral import AttributionWindow
from starter.tokens import InvalidTokenError, Tokens

NOW = datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC)
WINDOW = timedelta(days=90)
OLD, CURRENT, NEXT = "the secret of last year", "the secret in use now", "the secret of next year"


def click(at: datetime = NOW, channel: str = "whatsapp") -> ClickedLink:
    return ClickedLink("0123456789abcdef01234567", "abcdefghjk", channel, AttributionWindow(at, WINDOW))


def test_a_token_tells_the_whole_click() -> None:
    tokens = Tokens([CURRENT], WINDOW)
    assert tokens.read(tokens.sign(click())) == click()


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_the_time_of_a_click_is_kept_to_the_second(at: datetime) -> None:
    tokens = Tokens([CURRENT], WINDOW)
    assert tokens.read(tokens.sign(click(at))).window.clicked_at == at.replace(microsecond=0)


def test_a_token_is_fit_for_a_url_and_short() -> None:
    token = Tokens([CURRENT], WINDOW).sign(click(channel="a" * 32))
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=")
    assert len(token) < 200


def test_a_token_tells_nothing_personal_and_nothing_of_the_referrer() -> None:
    """Rule 24: a token travels in URLs. What it holds is all there is in it."""
    token = Tokens([CURRENT], WINDOW).sign(click())
    _, payload = URLSafeSerializer(CURRENT).loads_unsafe(token)
    assert payload == ["0123456789abcdef01234567", "abcdefghjk", int(NOW.timestamp()), "whatsapp"]


def test_of_several_secrets_the_first_signs_and_all_verify() -> None:
    before, during, after = Tokens([OLD], WINDOW), Tokens([CURRENT, OLD], WINDOW), Tokens([CURRENT], WINDOW)
    assert during.read(before.sign(click())) == click()
    assert after.read(during.sign(click())) == click()


def test_a_secret_that_was_removed_verifies_no_more() -> None:
    with pytest.raises(InvalidTokenError):
        Tokens([NEXT, CURRENT], WINDOW).read(Tokens([OLD], WINDOW).sign(click()))


def test_the_window_is_the_readers_setting() -> None:
    token = Tokens([CURRENT], WINDOW).sign(click())
    assert Tokens([CURRENT], timedelta(days=7)).read(token).window.closes_at == NOW + timedelta(days=7)


@given(st.text(max_size=200))
def test_what_was_never_signed_is_refused(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        Tokens([CURRENT], WINDOW).read(text)


@given(st.data())
def test_a_token_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    tokens = Tokens([CURRENT], WINDOW)
    token = tokens.sign(click())
    place = data.draw(st.integers(0, len(token) - 2))
    letter = data.draw(st.sampled_from(sorted(set("abcXYZ019-_.") - {token[place]})))
    with pytest.raises(InvalidTokenError):
        tokens.read(token[:place] + letter + token[place + 1 :])


@pytest.mark.parametrize(
    "payload",
    [[], ["id", "code", 1], ["id", "code", "soon", "link"], ["id", "code", 10**30, "link"], {"a": 1}, None, 7],
    ids=str,
)
def test_what_was_signed_but_is_no_click_is_refused(payload: object) -> None:
    tokens = Tokens([CURRENT], WINDOW)
    with pytest.raises(InvalidTokenError):
        tokens.read(str(tokens._serializer.dumps(payload)))


def test_what_was_signed_for_something_else_is_refused() -> None:
    tokens = Tokens([CURRENT], WINDOW)
    ways = tokens._serializer.signer_kwargs
    payload = ["0123456789abcdef01234567", "abcdefghjk", 1, "link"]
    for salt in ("cursor-referrals acct-1", "cursor-grants acct-1", ""):
        other = URLSafeSerializer(CURRENT, salt=salt, signer_kwargs=ways)
        with pytest.raises(InvalidTokenError):
            tokens.read(str(other.dumps(payload)))
