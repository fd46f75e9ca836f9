"""How payloads are written and read: pydantic's JSON, as the SDK has it, with what reads them made once."""

from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
)

_reader = lru_cache(maxsize=256)(TypeAdapter)
"""Reads a type. It takes a millisecond to make one, more than a run needs for all the rest of a step."""


class _Json(PydanticJSONPlainPayloadConverter):
    """The SDK's own, which keeps its readers for itself alone: and every run has a converter of its own."""

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        """Read a payload.

        Raises:
            ValidationError: it is no such thing.
        """
        return _reader(Any if type_hint is None else type_hint).validate_json(payload.data)


_json = _Json()


class PayloadConverter(CompositePayloadConverter):
    """The SDK's converters, with pydantic's in the place of plain JSON."""

    def __init__(self) -> None:
        """Make one."""
        plain = DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(*(_json if isinstance(each, JSONPlainPayloadConverter) else each for each in plain))


DATA_CONVERTER = DataConverter(payload_converter_class=PayloadConverter)
