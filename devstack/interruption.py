"""Ctrl-C and its kin, noted by a signal handler and acted on where the stack is ready for it."""

import signal
import time
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STEP_SECONDS = 0.1


class Interrupted(Exception):  # noqa: N818 - asked for, no error
    """Somebody asked the stack to stop."""


class Interruption:
    """Whether somebody asked to stop. The handler only takes a note: no work is cut in half by it."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.received: signal.Signals | None = None
        self._again: Callable[[], None] | None = None

    def listen(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP from here on; main thread only."""
        for each in _SIGNALS:
            signal.signal(each, self._note)

    def when_repeated(self, action: Callable[[], None]) -> None:
        """What is done, right in the handler, when somebody asks once more from now on."""
        self._again = action

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._again is not None:
            self._again()
        self.received = signal.Signals(number)

    def check(self) -> None:
        """Go on, unless somebody asked to stop.

        Raises:
            Interrupted: somebody did.
        """
        if self.received is not None:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Sleep, at most that long.

        Raises:
            Interrupted: somebody asked to stop.
        """
        until = time.monotonic() + seconds
        self.check()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _STEP_SECONDS))
            self.check()
