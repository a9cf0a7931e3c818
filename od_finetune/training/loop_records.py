"""How a training loop is to run, and how it ended."""

from __future__ import annotations

from typing import NamedTuple

COMPLETED = "completed"
EARLY_STOPPING = "early stopping"
END_OF_DATA = "end of data"
SIGNALLED = "signal"


class LoopSettings(NamedTuple):
    """When to stop, save, log and evaluate; steps."""

    num_steps: int = 0  # 0: until interrupted
    batch_size: int = 1  # to report images/s
    checkpoint_every: int = 1000  # 0: only at the end
    keep_checkpoints: int = 5  # 0: all
    keep_every_n_hours: float | None = None
    log_every: int = 100
    evaluate_every: int = 0  # 0: at every checkpoint
    evaluate_averages: bool = False  # evaluate the moving averages of the weights
    summaries: bool = True  # write TensorBoard events


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    reason: str
    exit_code: int  # 0, or 128 + signal number as shells report it (SIGINT 130, SIGTERM 143)
    results: dict[str, float]  # of the last evaluation
    checkpoint: str
