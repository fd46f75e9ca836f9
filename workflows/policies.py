"""Timeouts, retries, waits and queues of all runs, in one place."""

from datetime import timedelta
from typing import NamedTuple, TypedDict

from temporalio.common import RetryPolicy


class _StepOptions(TypedDict):
    start_to_close_timeout: timedelta
    retry_policy: RetryPolicy


class _HeartbeatingStepOptions(_StepOptions):
    heartbeat_timeout: timedelta


class _DeliveryOptions(_StepOptions):
    schedule_to_close_timeout: timedelta


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

SHOWN_AS_FAILING = timedelta(seconds=30)
"""How long a step may fail before operators are shown that it does: well within a minute."""

SHORTEST_SLEEP = timedelta(seconds=1)
"""How long to sleep at least when the database says that a bonus is not due yet."""

SHORTEST_TIMER = timedelta(milliseconds=1)
"""A timer for a time that has come already: a timer there must be, or a replay might miss it."""

LOOK_AGAIN = timedelta(hours=1)
"""How often a referral that needs attention looks whether it can go on by itself."""


def upkeep_queue(task_queue: str) -> str:
    """The queue of what is done beside the referrals' own runs, so that nothing of it takes a slot from a credit."""
    return f"{task_queue}-upkeep"


def delivery_queue(upkeep: str, endpoint: str) -> str:
    """The queue of what is sent to one endpoint: one that does not answer keeps no other waiting."""
    return f"{upkeep}-{endpoint}"


class JobTimes(NamedTuple):
    """When a Schedule starts a job, and how long one run of it may take.

    Args:
        every: how often.
        offset: how long after the start of that span, which is counted from the epoch (UTC).
        catch_up: how late a run may still begin that was missed while Temporal was away.
        at_most: after this long a run is ended, so that one that hangs does not keep the next from starting.
    """

    every: timedelta
    offset: timedelta
    catch_up: timedelta
    at_most: timedelta


SWEEP = JobTimes(
    every=timedelta(minutes=1), offset=timedelta(0), catch_up=timedelta(seconds=10), at_most=timedelta(minutes=5)
)
"""Each looks through everything that is left over, so a missed one need not be made up for."""

REMINDERS = JobTimes(
    every=timedelta(days=1), offset=timedelta(hours=6), catch_up=timedelta(hours=12), at_most=timedelta(hours=1)
)
"""Once a day, before people come to work."""

UPKEEP_STEP = _HeartbeatingStepOptions(
    start_to_close_timeout=timedelta(minutes=15),
    heartbeat_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(minutes=1),
    ),
)
"""A step of a daily job, which works through many rows in small transactions and tells that it is alive after each."""

RECONCILIATION = JobTimes(
    every=timedelta(hours=1), offset=timedelta(minutes=17), catch_up=timedelta(hours=1), at_most=timedelta(minutes=55)
)
"""Every hour: what no webhook told is known within an hour and a quarter."""

RECONCILIATION_STEP = _HeartbeatingStepOptions(
    start_to_close_timeout=timedelta(minutes=15),
    heartbeat_timeout=timedelta(minutes=2),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(minutes=1),
    ),
)
"""A page of what Stripe lists; tried again while the run may last, for Stripe may be away for a while."""

EVENTS_SPAN = timedelta(hours=6)
"""How much time events are read of before the cursor moves on."""

SWEEP_STEP = _HeartbeatingStepOptions(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=timedelta(seconds=20),
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=2),
)
"""A step of the sweep; the next sweep is never far."""

BOOKKEEPING = _StepOptions(
    start_to_close_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2.0,
        maximum_interval=timedelta(minutes=1),
        non_retryable_error_types=["UnknownMessageError"],
    ),
)
"""What a delivery reads and writes in the ledger."""

DELIVERY = _DeliveryOptions(
    start_to_close_timeout=timedelta(seconds=40),
    schedule_to_close_timeout=timedelta(hours=76),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(seconds=5), backoff_coefficient=6.0, maximum_interval=timedelta(hours=14)
    ),
)
"""One message to one endpoint: again after 5 seconds, 30 seconds, 3, 18 and 108 minutes, 11 hours, then every 14 hours.

Eleven attempts in three days, much as the Standard Webhooks specification suggests; the step varies each wait a little.
"""
