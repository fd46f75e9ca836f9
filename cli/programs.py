"""The programs of a deployment."""

from enum import StrEnum


class Program(StrEnum):
    """A program that is kept running."""

    WORKER = "worker"
    STARTER = "starter"
