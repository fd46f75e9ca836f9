"""What those who use the program sent, and what they were answered: for the tally, which knows nothing else of them."""

import json
import threading
from pathlib import Path
from typing import Any


class Record:
    """Lines of JSON in a file, each a thing that was sent or answered."""

    def __init__(self, path: Path) -> None:
        """Write to a new file."""
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("x", encoding="utf-8")
        self.lines = 0

    def write(self, what: str, **particulars: Any) -> None:
        """Write down one thing, at once."""
        with self._lock:
            self._file.write(json.dumps({"what": what, **particulars}) + "\n")
            self._file.flush()
            self.lines += 1

    def close(self) -> None:
        """Write no more."""
        self._file.close()
