"""The ledger and a referral's run, side by side."""

from urllib.parse import quote

from program.referral import Stage
from workflows.client import Run


def waits_for_its_run(stage: Stage, *, voided: bool) -> bool:
    """Whether something can still become of an attributed referral, so that a run has to be open for it."""
    return stage.open and stage is not Stage.CLICKED and not voided


def disagreement(stage: Stage, run: Run | None, *, voided: bool) -> str | None:
    """Where the ledger and a referral's run say different things; none where they agree.

    A step that was just carried out is in the ledger a moment before the run knows.

    Args:
        stage: the referral's stage in the ledger.
        run: how its run stands; none where Temporal knows none.
        voided: whether the referral was voided.
    """
    waits = waits_for_its_run(stage, voided=voided)
    if run is None:
        return f"the ledger waits at {stage}, and Temporal knows no run" if waits or stage is Stage.CLICKED else None
    known = run.stage or Stage.CLICKED
    if not run.open and (waits or stage is Stage.CLICKED):
        return f"the ledger waits at {stage}, and the run is over ({run.status.lower()}, at {known})"
    if run.open and not waits and stage is not Stage.CLICKED:
        return f"the ledger says that it is over ({stage}), and the run is open at {known}"
    if known is not stage:
        return f"the ledger says {stage}, and the run {known}"
    return None


def link(ui_url: str | None, namespace: str, run: Run) -> str | None:
    """The address of a run in Temporal's Web UI; none where nobody said where that is."""
    if ui_url is None:
        return None
    return f"{ui_url}/namespaces/{quote(namespace)}/workflows/{quote(run.workflow_id)}/{quote(run.run_id)}/history"
