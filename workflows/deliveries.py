"""What is said to the delivery of a message: names and payloads. Nothing personal, and no addresses."""

from dataclasses import dataclass, field

from workflows.policies import delivery_queue

__all__ = ["WORKFLOW", "DeliveryOrder", "DeliveryOutcome", "Parcel", "delivery_queue", "run_id"]

WORKFLOW = "DeliveryWorkflow"


def run_id(message_id: str) -> str:
    """The id of the run that delivers a message."""
    return f"delivery-{message_id}"


@dataclass(frozen=True)
class DeliveryOrder:
    """What a delivery begins with.

    Args:
        message_id: which message of the outbox.
        again: send it also where it was taken, given up or held back before, because somebody asks for it.
        endpoints: ask that of these alone, by name; none for all.
    """

    message_id: str
    again: bool = False
    endpoints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parcel:
    """A message on its way to one endpoint, by the endpoint's name: an address may hold secrets."""

    message_id: str
    endpoint: str


@dataclass(frozen=True)
class DeliveryOutcome:
    """How a delivery ended.

    Args:
        message_id: which message.
        given_up: the endpoints that have not taken it, each with the reason.
    """

    message_id: str
    given_up: dict[str, str]
