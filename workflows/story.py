"""The current details of a run: its story so far in Markdown, for operators who read it in Temporal's Web UI."""

from collections.abc import Iterable
from datetime import datetime

from program.doubts import Action, Doubt, in_words
from program.referral import Role, Stage
from workflows.messages import (
    Bonus,
    Outcome,
    ReferralStart,
    ReferralState,
    Reviewed,
    ReviewStart,
    review_id,
    workflow_id,
)

_NOW = {
    Stage.CLICKED: "waits for the friend's signup",
    Stage.SIGNED_UP: "waits for the friend's first payment",
    Stage.IN_REVIEW: "nobody has a bonus yet; waits for an operator's decision",
    Stage.CREDITED: "both have their bonus; waits for it to expire",
    Stage.SETTLED: "over: both had their bonus, and what was unused has expired",
    Stage.LAPSED: "over without a bonus",
    Stage.REFUSED: "over without a bonus",
    Stage.VOIDED: "over without a bonus",
}
_CANNOT_GO_ON = "cannot go on before this is mended, and looks again within the hour by itself"
_IN_DOUBT = "both have their bonus, which is in doubt; waits for it to expire, or for an operator's decision"
_TAKEN_BACK = "over: both had their bonus, and what was unused was taken back"

_DECIDED = {Action.APPROVE: "approved", Action.REJECT: "rejected", Action.VOID: "voided"}

_REVIEW, _VOID = (f'`{{{before}"by": "your id", "note": "why"}}`' for before in ('"decision": "approve", ', ""))
_HELD = (
    f"To decide: *More Actions*, *Send an Update*, `review` with {_REVIEW} credits both; "
    f'with `"reject"` instead it ends without a bonus. `void` with {_VOID} ends it, too.'
)
_MARKED = (
    f"To decide: *More Actions*, *Send an Update*, `review` with {_REVIEW} lets the bonus stand; "
    f"`void` with {_VOID} takes back what is unused."
)


def _cell(text: str) -> str:
    """What an operator wrote, so that it stays within its line of the list and is no Markdown of ours."""
    return (
        " ".join(text.split()).replace("`", "'").replace("|", "/").replace("<", "(").replace("[", "(").replace("]", ")")
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _bonus(bonus: Bonus) -> str:
    if bonus.voided_minutes is not None:
        return f"{bonus.minutes} minutes, void; {bonus.voided_minutes} unused ones were taken back"
    if bonus.expired_minutes is None:
        return f"{bonus.minutes} minutes, usable until {_time(bonus.expires_at)}"
    return f"{bonus.minutes} minutes, over since {_time(bonus.expires_at)}; {bonus.expired_minutes} expired unused"


def _now(state: ReferralState) -> str:
    if state.stage is Stage.SIGNED_UP and state.needs_attention:
        return _CANNOT_GO_ON
    if state.stage is Stage.CREDITED and state.bonuses and not any(bonus.open for bonus in state.bonuses.values()):
        return _TAKEN_BACK
    if state.stage is Stage.CREDITED and doubts_of(state.review_reasons):
        return _IN_DOUBT
    return _NOW[state.stage]


def _how(referral_id: str, stage: Stage) -> str:
    if stage is Stage.IN_REVIEW:
        return _HELD
    return f"To decide: the run `{review_id(referral_id)}`." if stage is Stage.SETTLED else _MARKED


def _reviewed(review: Reviewed) -> str:
    return f"- {_DECIDED[review.action]}: {_time(review.at)} by `{_cell(review.by)}`, who says: {_cell(review.note)}"


def details(start: ReferralStart, state: ReferralState, failing: str | None = None) -> str:
    """Tell where a referral stands, what happened when, and what it waits for.

    Args:
        start: what the run began with.
        state: what it knows.
        failing: which step keeps failing, in words; none where none does.
    """
    held = state.stage is Stage.IN_REVIEW
    lines = [f"**{state.stage}**: {_now(state)}", ""]
    # What holds it says why as well.
    if state.reason and not (held and state.needs_attention):
        lines += [f"Why: {state.reason}", ""]
    if state.needs_attention:
        lines += [f"**Needs attention**: {state.needs_attention}", ""]
    lines += failing_lines(failing)
    if doubts_of(state.review_reasons):
        lines += [_how(start.referral_id, state.stage), ""]
    # A list: the Web UI shows the cells of a table without a space between them.
    lines += [f"- link of: `{start.referrer}`", f"- clicked: {_time(start.clicked_at)}"]
    if state.stage is Stage.CLICKED:
        lines.append(f"- lapses without a signup: {_time(start.lapses_at)}")
    if state.referee:
        lines.append(f"- friend: `{state.referee}`")
    if state.signed_up_at:
        lines.append(f"- signed up: {_time(state.signed_up_at)}")
    if state.credited_at:
        lines.append(f"- credited: {_time(state.credited_at)}, for plan {state.plan}")
    lines += [_reviewed(review) for review in state.reviews]
    lines += [f"- bonus of the {role}: {_bonus(bonus)}" for role in Role if (bonus := state.bonuses.get(role))]
    return "\n".join(lines)


def failing_lines(failing: str | None) -> list[str]:
    """What is said of a step that keeps failing; nothing where none does."""
    if failing is None:
        return []
    more = "*Pending Activities* has its last failure and its next try; it goes on by itself once that is mended."
    return [f"**Needs attention**: {_cell(failing)}. {more}", ""]


def doubts_of(reasons: Iterable[str]) -> list[Doubt]:
    """Those of the reasons to look at a referral that are for an operator to decide."""
    return [Doubt(reason) for reason in reasons if reason in set(Doubt)]


def review_details(start: ReviewStart, reasons: Iterable[str], failing: str | None = None) -> str:
    """Tell why a referral is looked at whose own run is closed, what can be decided, and which step keeps failing."""
    doubts = doubts_of(reasons)
    lines = [f"**{start.stage}**: waits for an operator's decision", ""]
    if doubts:
        lines += [f"**Needs attention**: {in_words(doubts)}", ""]
    lines += failing_lines(failing)
    return "\n".join([*lines, _own_run(start), "", _MARKED])


def reviewed_details(start: ReviewStart, review: Reviewed, outcome: Outcome) -> str:
    """Tell how such a referral was decided about."""
    lines = [f"**{outcome.stage}**: decided", ""]
    if outcome.reason:
        lines += [f"Why: {outcome.reason}", ""]
    lines += [_own_run(start), "", _reviewed(review)]
    lines += [
        f"- taken back of the {role}: {outcome.minutes_voided.get(role, 0)} minutes"
        for role in Role
        if outcome.minutes_voided
    ]
    return "\n".join(lines)


def _own_run(start: ReviewStart) -> str:
    return f"The referral's own run: `{workflow_id(start.referral_id)}`."
