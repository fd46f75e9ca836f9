"""The current details of a run: its story so far in Markdown, for operators who read it in Temporal's Web UI."""

from collections.abc import Iterable
from datetime import datetime

from program.doubts import Action, Doubt, in_words
from program.referral import Role, Stage
from workflows.messages import Bonus, ReferralStart, ReferralState, ReviewStart

_NOW = {
    Stage.CLICKED: "waits for the friend's signup",
    Stage.SIGNED_UP: "waits for the friend's first payment",
    Stage.IN_REVIEW: "waits for an operator's decision",
    Stage.CREDITED: "both have their bonus; waits for it to expire",
    Stage.SETTLED: "over: both had their bonus, and what was unused has expired",
    Stage.LAPSED: "over without a bonus",
    Stage.REFUSED: "over without a bonus",
    Stage.VOIDED: "over without a bonus",
}


_DECIDED = {Action.APPROVE: "approved", Action.REJECT: "rejected", Action.VOID: "voided"}

_HOW = (
    'Decide by an update of this run: `review` with `{"decision": "approve" or "reject", "by": …, "note": …}`, '
    'or `void` with `{"by": …, "note": …}`.'
)


def _cell(text: str) -> str:
    """What an operator wrote, so that it stays within its cell of the table and is no Markdown of ours."""
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


def details(start: ReferralStart, state: ReferralState, failing: str | None = None) -> str:
    """Tell where a referral stands, what happened when, and what it waits for.

    Args:
        start: what the run began with.
        state: what it knows.
        failing: which step keeps failing, in words; none where none does.
    """
    lines = [f"**{state.stage}**: {_NOW[state.stage]}", ""]
    if state.reason:
        lines += [f"Why: {state.reason}", ""]
    if state.needs_attention:
        lines += [f"**Needs attention**: {state.needs_attention}", ""]
    lines += failing_lines(failing)
    if doubts_of(state.review_reasons):
        lines += [_HOW, ""]
    lines += ["| | |", "|---|---|", f"| link of | `{start.referrer}` |", f"| clicked | {_time(start.clicked_at)} |"]
    if state.stage is Stage.CLICKED:
        lines.append(f"| lapses without a signup | {_time(start.lapses_at)} |")
    if state.referee:
        lines.append(f"| friend | `{state.referee}` |")
    if state.signed_up_at:
        lines.append(f"| signed up | {_time(state.signed_up_at)} |")
    if state.credited_at:
        lines.append(f"| credited | {_time(state.credited_at)}, for plan {state.plan} |")
    lines += [
        f"| {_DECIDED[each.action]} | {_time(each.at)} by `{_cell(each.by)}`: {_cell(each.note)} |"
        for each in state.reviews
    ]
    lines += [f"| bonus of the {role} | {_bonus(bonus)} |" for role in Role if (bonus := state.bonuses.get(role))]
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
    return "\n".join([*lines, f"The referral's own run: `referral-{start.referral_id}`.", "", _HOW])
