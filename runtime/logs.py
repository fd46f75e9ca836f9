"""Structured logs: one JSON object a line on standard error, with the ids of what it is about and no personal data."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_TELLING_TOO_MUCH = ("httpx", "stripe")
"""They log whole addresses, and what Stripe's errors repeat of what was sent: not below a warning (rule 24)."""


def configure_logs(program: str, level: int = logging.INFO) -> None:
    """Send this process's log lines, its libraries' included, to standard error as JSON.

    Args:
        program: the name that each line carries as ``program``.
        level: lines below it are dropped.
    """

    def name_program(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["program"] = program
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        name_program,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # It tells the address of every request, and some of ours hold secrets.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    silence_libraries()


def silence_libraries() -> None:
    """Let libraries that would log personal data say only what is wrong."""
    for name in _TELLING_TOO_MUCH:
        logging.getLogger(name).setLevel(logging.WARNING)
