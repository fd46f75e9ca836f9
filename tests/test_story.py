"""What a run says of itself in the Web UI: that it is true at every end, and can be acted upon as it stands."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter

from program.doubts import Action
from program.referral import Role, Stage
from workflows import story
from workflows.decisions import check_review, check_void
from workflows.messages import Bonus, Outcome, ReferralStart, ReferralState, Review, Reviewed, ReviewStart, Void

CLICKED = datetime(2026, 6, 1, 9, 30, tzinfo=UTC)
START = ReferralStart("0123456789abcdef01234567", "acct-rita", CLICKED, CLICKED + timedelta(days=97))
ENDS = CLICKED + timedelta(days=30)


def state(stage: Stage, **known: object) -> ReferralState:
    return ReferralState(stage, referee="acct-fred", **known)  # type: ignore[arg-type]


def both(**ended: int) -> dict[Role, Bonus]:
    return {role: Bonus(90, ENDS, **ended) for role in Role}


@pytest.mark.parametrize("stage", Stage)
def test_facts_stand_in_a_list_for_the_web_ui_shows_tables_without_spaces(stage: Stage) -> None:
    text = story.details(START, state(stage))
    assert text.startswith(f"**{stage}**: ")
    assert "|" not in text
    assert "\n- clicked: 2026-06-01 09:30:00 UTC\n" in text


def test_what_is_paid_and_cannot_be_credited_does_not_wait_for_a_payment() -> None:
    text = story.details(START, state(Stage.SIGNED_UP, needs_attention="Paid, but no plan is known for price_x."))
    assert "waits for the friend's first payment" not in text
    assert "cannot go on" in text.partition("\n")[0]


def test_what_was_voided_waits_for_nothing() -> None:
    text = story.details(START, state(Stage.CREDITED, bonuses=both(voided_minutes=90)))
    assert text.startswith("**credited**: over")
    assert text.count("90 minutes, void") == 2
    one_left = both(voided_minutes=90) | {Role.REFEREE: Bonus(90, ENDS)}
    assert "waits for it to expire" in story.details(START, state(Stage.CREDITED, bonuses=one_left))


def test_why_it_is_held_is_said_once() -> None:
    held = state(
        Stage.IN_REVIEW,
        reason="A part of the friend's payment was refunded.",
        needs_attention="Held for review: A part of the friend's payment was refunded.",
        review_reasons=["refunded-in-part"],
    )
    assert story.details(START, held).count("A part of the friend's payment was refunded.") == 1


@pytest.mark.parametrize("stage", [Stage.IN_REVIEW, Stage.CREDITED])
def test_what_can_be_decided_can_be_sent_as_it_stands(stage: Stage) -> None:
    bonuses = both() if stage is Stage.CREDITED else {}
    text = story.details(START, state(stage, review_reasons=["refunded"], bonuses=bonuses))
    review, void = (json.loads(each) for each in re.findall(r"`({[^`]+})`", text))
    check_review(TypeAdapter(Review).validate_python(review), stage, ["refunded"])
    check_void(TypeAdapter(Void).validate_python(void), stage)
    # Once credited it cannot be rejected.
    assert ("reject" in text) is (stage is Stage.IN_REVIEW)


def test_once_it_is_settled_another_run_takes_the_decision() -> None:
    text = story.details(START, state(Stage.SETTLED, review_reasons=["refunded"], bonuses=both(expired_minutes=90)))
    assert "To decide: the run `referral-0123456789abcdef01234567-review`." in text


def test_a_review_says_how_it_was_decided() -> None:
    review = ReviewStart(START.referral_id, "acct-rita", "acct-fred")
    assert "waits for an operator's decision" in story.review_details(review, ["refunded"])
    decided = Reviewed(Action.VOID, "ann", "chargeback | `lost`", ENDS)
    text = story.reviewed_details(review, decided, Outcome(Stage.SETTLED, "Voided.", {Role.REFERRER: 12}))
    assert "waits" not in text
    assert "- voided: 2026-07-01 09:30:00 UTC by `ann`, who says: chargeback / 'lost'" in text
    assert "- taken back of the referrer: 12 minutes\n- taken back of the referee: 0 minutes" in text
