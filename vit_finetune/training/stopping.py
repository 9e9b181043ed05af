"""Ending a run early and whole: a signal or a time limit lets the step end, saves, and says how to go on.

    SIGTERM, SIGUSR1 (batch systems), SIGINT (Ctrl-C) once    the step ends, the run is saved, exit code 3
    SIGINT again                                              the process ends at once; what was saved before is whole

Processes that share a step must stop after the same one, so each adds what it heard to the reduction of the loss, which
they wait for anyway. What a run computes does not change: it goes on by --resume as if nothing had been.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(each for each in signal.Signals if each.name in ("SIGTERM", "SIGUSR1", "SIGINT"))
_SAME_PRESS = 1.0  # a launcher passes Ctrl-C on to processes that the terminal told already
_LEAST_RESERVE = 2.0


class StopRequest:
    """Whether, and why, a run is to end after the step that it is in.

    Args:
        time_limit: seconds from now on after which the run must be saved; None knows no limit.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self.reason: str | None = None
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._time_limit = time_limit
        self._longest_step = self._longest_save = 0.0
        self._interrupted_at: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals as requests while the block runs; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self._interrupted_at is not None and now - self._interrupted_at > _SAME_PRESS:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._interrupted_at is None:
            self._interrupted_at = now
        self.ask(signal.Signals(number).name)

    def ask(self, reason: str) -> None:
        """Ask for the end of the run after this step; from any thread."""
        self.reason = self.reason or reason

    def took(self, *, step: float = 0.0, save: float = 0.0) -> None:
        """Note the seconds of a step with its evaluation, or of a save: what has to fit once more before the limit."""
        self._longest_step = max(self._longest_step, step)
        self._longest_save = max(self._longest_save, save)

    def is_wanted(self) -> bool:
        """Say whether this process was asked to stop, or has no time for another step."""
        if self.reason is None and self._end is not None:
            reserve = max(_LEAST_RESERVE, 2 * self._longest_step + 2 * self._longest_save)
            if time.monotonic() + reserve >= self._end:
                self.reason = f"the time limit of {self._time_limit:g} s"
        return self.reason is not None
