"""Whether traces are wanted, by OpenTelemetry's own settings (`OTEL_…`). Unless they are, nothing of it is imported."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime.settings import SettingsError

if TYPE_CHECKING:
    from runtime.spans import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether spans go anywhere: an address is named, and nothing says that they shall not.

    Raises:
        SettingsError: they are to go by a way that is not spoken here.
    """
    if not any(environment.get(name) for name in _ENDPOINTS):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    if exporter != "otlp":
        raise SettingsError(f"OTEL_TRACES_EXPORTER must be otlp or none, not {exporter}")
    for name in _PROTOCOLS:
        if environment.get(name, _SPOKEN) != _SPOKEN:
            raise SettingsError(f"{name} must be {_SPOKEN}, not {environment[name]}")
    return True


def tracing(program: str, environment: Mapping[str, str] = os.environ) -> "Tracing | None":
    """What traces this program; none unless that is wanted.

    Args:
        program: which, for the service's name: `kallyai-referrals-worker`, unless `OTEL_SERVICE_NAME` says another.
        environment: what says where spans go to.

    Raises:
        SettingsError: they are to go by a way that is not spoken here.
    """
    if not wanted(environment):
        return None
    from runtime.spans import Tracing

    return Tracing(f"kallyai-referrals-{program}")
