"""Whose signup counts: rules 10 and 18, what erasing does (rule 23), and the words for every end (rule 22)."""

import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from program.eligibility import LAPSED_WORDS, Refusal, Signup, refusal_before_credit, refusal_of_signup
from program.referral import Stage

INSTANT = timedelta(microseconds=1)
CLICK = datetime(2027, 3, 1, 9, 30, tzinfo=UTC)

GOOD = Signup(
    created_at=CLICK + timedelta(minutes=5),
    clicked_at=CLICK,
    same_account=False,
    same_email=False,
    same_customer=False,
    erased=False,
    already_referred=False,
    known_email=False,
    known_customer=False,
    first_paid_at=None,
)

REASONS: dict[Refusal, dict[str, object]] = {
    Refusal.SAME_ACCOUNT: {"same_account": True},
    Refusal.SAME_EMAIL: {"same_email": True},
    Refusal.SAME_CUSTOMER: {"same_customer": True},
    Refusal.ACCOUNT_ERASED: {"erased": True},
    Refusal.EXISTING_ACCOUNT: {"created_at": CLICK - timedelta(minutes=2) - INSTANT},
    Refusal.ALREADY_REFERRED: {"already_referred": True},
    Refusal.KNOWN_EMAIL: {"known_email": True},
    Refusal.KNOWN_CUSTOMER: {"known_customer": True},
    Refusal.PAID_BEFORE: {"first_paid_at": CLICK - INSTANT},
}
"""What alone makes for each refusal, in the order in which the checks are made."""

SELF_REFERRAL = [Refusal.SAME_ACCOUNT, Refusal.SAME_EMAIL, Refusal.SAME_CUSTOMER]
NEW_CUSTOMER = [Refusal.KNOWN_CUSTOMER, Refusal.PAID_BEFORE]
AGAIN_BEFORE_CREDIT = [*SELF_REFERRAL, Refusal.ACCOUNT_ERASED, *NEW_CUSTOMER]


def signup_with(*reasons: Refusal) -> Signup:
    """A signup that is good but for these reasons."""
    return replace(GOOD, **{field: value for reason in reasons for field, value in REASONS[reason].items()})  # type: ignore[arg-type]


def test_rule_10_a_new_signup_counts() -> None:
    assert refusal_of_signup(GOOD) is None
    assert refusal_before_credit(GOOD) is None


def test_rule_10_every_refusal_is_tried_here_and_everything_known_of_a_signup() -> None:
    assert list(REASONS) == [reason for reason in Refusal if reason is not Refusal.DECLINED]
    decisive = {field for reason in REASONS.values() for field in reason}
    assert decisive | {"clicked_at"} == {field.name for field in fields(Signup)}


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason not in AGAIN_BEFORE_CREDIT])
def test_rule_10_each_reason_alone_refuses_the_signup_and_no_credit_later(reason: Refusal) -> None:
    assert refusal_of_signup(signup_with(reason)) is reason
    assert refusal_before_credit(signup_with(reason)) is None


@pytest.mark.parametrize("reason", NEW_CUSTOMER)
def test_rule_10_a_customer_that_is_known_only_after_the_signup_is_looked_at_before_the_credit(reason: Refusal) -> None:
    assert refusal_of_signup(signup_with(reason)) is reason
    assert refusal_before_credit(signup_with(reason)) is reason


@pytest.mark.parametrize("reason", SELF_REFERRAL)
def test_rule_18_a_self_referral_is_refused_at_signup_and_again_before_the_credit(reason: Refusal) -> None:
    assert refusal_of_signup(signup_with(reason)) is reason
    assert refusal_before_credit(signup_with(reason)) is reason


def test_rule_23_an_erased_account_is_refused_at_signup_and_before_the_credit() -> None:
    erased = signup_with(Refusal.ACCOUNT_ERASED)

    assert refusal_of_signup(erased) is Refusal.ACCOUNT_ERASED
    assert refusal_before_credit(erased) is Refusal.ACCOUNT_ERASED
    assert Refusal.ACCOUNT_ERASED.words.startswith("Account erased")


@given(st.sets(st.sampled_from(list(REASONS))))
@settings(max_examples=200, deadline=None)
def test_rule_22_of_several_reasons_the_first_in_order_is_given(reasons: set[Refusal]) -> None:
    in_order = [reason for reason in REASONS if reason in reasons]
    signup = signup_with(*in_order)

    assert refusal_of_signup(signup) is next(iter(in_order), None)
    again = [reason for reason in in_order if reason in AGAIN_BEFORE_CREDIT]
    assert refusal_before_credit(signup) is next(iter(again), None)


@pytest.mark.parametrize(
    ("created_at", "refused"),
    [
        (CLICK - timedelta(minutes=2) - INSTANT, True),
        (CLICK - timedelta(minutes=2), False),
        (CLICK, False),
        (CLICK + timedelta(days=89), False),
    ],
)
def test_rule_10_an_account_more_than_two_minutes_older_than_the_click_is_refused(
    created_at: datetime, refused: bool
) -> None:
    expected = Refusal.EXISTING_ACCOUNT if refused else None
    assert refusal_of_signup(replace(GOOD, created_at=created_at)) is expected


@pytest.mark.parametrize(
    ("paid_at", "refused"),
    [
        (CLICK - timedelta(days=365), True),
        (CLICK - INSTANT, True),
        (CLICK, False),
        (CLICK + INSTANT, False),
        (CLICK + timedelta(days=1), False),
    ],
)
def test_rule_10_a_customer_who_paid_before_the_click_is_refused(paid_at: datetime, refused: bool) -> None:
    expected = Refusal.PAID_BEFORE if refused else None
    assert refusal_of_signup(replace(GOOD, first_paid_at=paid_at)) is expected


def test_rule_10_a_refused_or_lapsed_referral_does_not_count_as_one() -> None:
    attributed = {stage for stage in Stage if stage.attributed}

    assert attributed == {Stage.SIGNED_UP, Stage.IN_REVIEW, Stage.CREDITED, Stage.SETTLED, Stage.VOIDED}


def test_rule_22_the_stages_and_which_of_them_are_ends() -> None:
    assert [str(stage) for stage in Stage] == [
        *("clicked", "signed_up", "in_review", "credited"),
        *("settled", "lapsed", "refused", "voided"),
    ]
    assert [stage.open for stage in Stage] == [True] * 4 + [False] * 4


def test_rule_14_a_payment_can_bring_a_bonus_only_before_the_credit() -> None:
    assert {stage for stage in Stage if stage.awaits_payment} == {Stage.CLICKED, Stage.SIGNED_UP, Stage.IN_REVIEW}


SENTENCES = {refusal.name: refusal.words for refusal in Refusal} | {"LAPSED": LAPSED_WORDS}


@pytest.mark.parametrize("words", SENTENCES.values(), ids=SENTENCES.keys())
def test_rule_22_every_end_has_words_that_can_be_read_out(words: str) -> None:
    assert re.fullmatch(r"[A-Z][^.]+\.", words), "one whole sentence"
    assert 4 <= len(words.split()) <= 25
    # Neither our own names for things nor anything that is filled in, let alone an address or an id.
    assert not re.search(r"[_@{}<>%\d\n]|\brule\b|\bNone\b|kally_", words)
    assert not any(str(name) in words for name in [*Refusal, Stage.SIGNED_UP, Stage.IN_REVIEW])


def test_rule_22_no_two_ends_have_the_same_words() -> None:
    assert len(set(SENTENCES.values())) == len(SENTENCES) == len(Refusal) + 1
