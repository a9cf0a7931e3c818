"""Stopping when asked to, at a moment at which nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Within it, SIGTERM and SIGINT ask for a stop instead of killing; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only; elsewhere the host program keeps its own.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """0, or 128 + signal number as shells report it (SIGINT 130, SIGTERM 143)."""
        return 128 + self.signal if self.signal is not None else 0

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
