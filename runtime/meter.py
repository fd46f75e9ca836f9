"""The SDK's meter, as the ledger's counters want it: what they count is on the worker's page beside the SDK's own."""

from collections.abc import Callable, Mapping, Sequence

from temporalio.common import MetricMeter

Add = Callable[[float, Mapping[str, str]], None]


class SdkMeter:
    """The numbers of the worker, which its SDK shows beside its own."""

    def __init__(self, meter: MetricMeter) -> None:
        """Keep them in `meter`."""
        self._meter = meter

    def counter(self, name: str, description: str, labels: Sequence[str]) -> Add:  # noqa: ARG002
        """Make a counter of whole numbers."""
        made = self._meter.create_counter(name, description)
        return lambda number, labels: made.add(int(number), dict(labels))

    def histogram(self, name: str, description: str) -> Add:
        """Make a histogram, whose buckets the runtime was told of."""
        made = self._meter.create_histogram_float(name, description, "s")
        return lambda number, labels: made.record(number, dict(labels))
