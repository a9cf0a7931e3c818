"""The line that says how training goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO


class Progress:
    """Rate, remaining time and loss: a line that is rewritten on a terminal, one line per log interval elsewhere."""

    def __init__(self, num_steps: int, batch_size: int, stream: TextIO | None = None) -> None:
        self.num_steps = num_steps
        self.batch_size = batch_size
        self._stream = stream if stream is not None else sys.stderr
        self._tty = self._stream.isatty()
        self._since = (0, time.perf_counter())
        self._width = 0

    def start(self, step: int) -> None:
        """Measures the rate from here."""
        self._since = (step, time.perf_counter())

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` (of evaluating or saving) out of the rate."""
        self._since = (self._since[0], self._since[1] + seconds)

    def steps_per_second(self, step: int) -> float:
        """Mean rate since `start`."""
        first, begun = self._since
        return (step - first) / max(time.perf_counter() - begun, 1e-9)

    def show(self, step: int, values: Mapping[str, float], last: bool) -> None:
        """Shows the state; `last` ends the line (a log interval is complete)."""
        if not (last or self._tty):
            return
        line = self.line(step, values)
        if self._tty:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = 0 if last else len(line)
        else:
            self._stream.write(line)
        self._stream.write("\n" if last else "")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Writes a line of its own."""
        self._stream.write(("\n" if self._width else "") + text + "\n")
        self._width = 0
        self._stream.flush()

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """E.g. `step 120/600  loss 2.3121  lr 0.004  5.1 images/s  ETA 0:12:34`."""
        rate = self.steps_per_second(step)
        total = f"/{self.num_steps}" if self.num_steps else ""
        parts = [f"step {step}{total}", *(f"{name} {value:.5g}" for name, value in values.items())]
        parts.append(f"{rate * self.batch_size:.1f} images/s")
        if self.num_steps and rate > 0:
            parts.append(f"ETA {_clock((self.num_steps - step) / rate)}")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
