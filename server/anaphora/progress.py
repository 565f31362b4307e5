"""Events for the launcher: one JSON object per line on stdout. Log lines go to stderr.

{"event": "phase", "phase": "load", "done": 12, "total": 272, "unit": "tensors"}
{"event": "listening"}
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

_MIN_INTERVAL_S: Final = 0.1


class Progress:
    """Writes events. A phase is reported about ten times a second at most; its first and its last event always are."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`out` is stdout unless a test says otherwise; `clock` counts seconds."""
        self._out = out if out is not None else sys.stdout
        self._clock = clock
        self._phase = ""
        self._reported_at = 0.0

    def event(self, name: str, **fields: Any) -> None:
        """Writes one event at once."""
        # One write per line: ranks and threads may share the pipe.
        self._out.write(json.dumps({"event": name, **fields}) + "\n")
        self._out.flush()

    def phase(self, phase: str, done: int, total: int, unit: str = "") -> None:
        """`done` of `total` units of a phase; `done == total` ends it."""
        now = self._clock()
        if phase == self._phase and done < total and now - self._reported_at < _MIN_INTERVAL_S:
            return
        self._phase, self._reported_at = phase, now
        self.event("phase", phase=phase, done=done, total=total, **({"unit": unit} if unit else {}))
