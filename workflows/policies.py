"""Timeouts, retries and waits of a referral's run, all in one place."""

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy


class _StepOptions(TypedDict):
    start_to_close_timeout: timedelta
    retry_policy: RetryPolicy


LOCAL_STEP = _StepOptions(
    start_to_close_timeout=timedelta(seconds=2),
    retry_policy=RetryPolicy(maximum_attempts=1),
)
"""The quick way: within the workflow task, one attempt."""

VISIBLE_STEP = _StepOptions(
    start_to_close_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(seconds=30),
    ),
)
"""The way for a step that failed: a regular activity, tried for as long as it takes. No bonus is given up."""

SHORTEST_SLEEP = timedelta(seconds=1)
"""How long to sleep at least when the database says that a bonus is not due yet."""

LOOK_AGAIN = timedelta(hours=1)
"""How often a referral that needs attention looks whether it can go on by itself."""
