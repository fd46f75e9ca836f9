"""How a run takes a step: locally first, then as a regular activity; one that keeps failing is shown to operators."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

from workflows import policies

Answer = TypeVar("Answer")


async def perform(
    step: Callable[[Any, Any], Coroutine[Any, Any, Answer]],
    about: object,
    summary: str,
    show: Callable[[str | None], None],
) -> Answer:
    """Take a step: locally, which is quick; one that fails becomes a regular activity, which operators see.

    Args:
        step: which.
        about: what it is about.
        summary: what it does, for operators.
        show: is told in words that the step keeps failing, once it has not answered for a while; and with none that it
            has succeeded after all.
    """
    answer: Answer
    try:
        answer = await workflow.execute_local_activity_method(step, about, summary=summary, **policies.LOCAL_STEP)
    except FailureError as error:  # what a local activity raised comes as it is, not wrapped in an ActivityError
        if is_cancelled_exception(error):
            raise
        return await _visibly(step, about, summary, show, _words(summary, error))
    return answer


async def _visibly(
    step: Callable[[Any, Any], Coroutine[Any, Any, Answer]],
    about: object,
    summary: str,
    show: Callable[[str | None], None],
    words: str,
) -> Answer:
    under_way: Coroutine[Any, Any, Answer] = workflow.execute_activity_method(
        step, about, summary=summary, **policies.VISIBLE_STEP
    )
    shown = False

    async def show_late() -> None:
        nonlocal shown
        await workflow.sleep(policies.SHOWN_AS_FAILING, summary="does the step keep failing?")
        shown = True
        show(words)

    watch = asyncio.create_task(show_late())
    try:
        answer = await under_way
    finally:
        watch.cancel()
    if shown:
        show(None)
    return answer


def _words(summary: str, error: FailureError) -> str:
    """What is known of why a step fails: its first error; a later one stands with the pending activity."""
    kind = error.type if isinstance(error, ApplicationError) and error.type else type(error).__name__
    what = summary.partition("(")[0].strip()
    return f"a step keeps failing and is tried again and again: {what}. At first by {kind}: {error.message}"
