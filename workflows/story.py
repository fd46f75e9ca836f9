"""The current details of a run: its story so far in Markdown, for operators who read it in Temporal's Web UI."""

from datetime import datetime

from program.referral import Role, Stage
from workflows.messages import Bonus, ReferralStart, ReferralState

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


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _bonus(bonus: Bonus) -> str:
    if bonus.expired_minutes is None:
        return f"{bonus.minutes} minutes, usable until {_time(bonus.expires_at)}"
    return f"{bonus.minutes} minutes, over since {_time(bonus.expires_at)}; {bonus.expired_minutes} expired unused"


def details(start: ReferralStart, state: ReferralState) -> str:
    """Tell where a referral stands, what happened when, and what it waits for."""
    lines = [f"**{state.stage}**: {_NOW[state.stage]}", ""]
    if state.reason:
        lines += [f"Why: {state.reason}", ""]
    if state.needs_attention:
        lines += [f"**Needs attention**: {state.needs_attention}", ""]
    lines += ["| | |", "|---|---|", f"| link of | `{start.referrer}` |", f"| clicked | {_time(start.clicked_at)} |"]
    if state.stage is Stage.CLICKED:
        lines.append(f"| lapses without a signup | {_time(start.lapses_at)} |")
    if state.referee:
        lines.append(f"| friend | `{state.referee}` |")
    if state.signed_up_at:
        lines.append(f"| signed up | {_time(state.signed_up_at)} |")
    if state.credited_at:
        lines.append(f"| credited | {_time(state.credited_at)}, for plan {state.plan} |")
    lines += [f"| bonus of the {role} | {_bonus(bonus)} |" for role in Role if (bonus := state.bonuses.get(role))]
    return "\n".join(lines)
