"""Measuring a training step: time and peak memory of this process."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from od_finetune import fields
from od_finetune.training.trainer import Trainer

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to the present size


class Measurement(NamedTuple):
    """Of one process that trained some steps."""

    seconds: tuple[float, ...]  # of each step, by the clock
    cpu_seconds: tuple[float, ...]  # of each step, over all cores; another load on the machine disturbs it less
    peak_bytes: int  # largest resident size of the process while it stepped
    reference_seconds: tuple[float, ...]  # of each step that trains everything, taken in turns with these

    @property
    def median(self) -> float:
        """Seconds per step."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """CPU seconds per step."""
        return statistics.median(self.cpu_seconds)

    @property
    def relative(self) -> float:
        """Time of a step, 1 being everything trained: the median over the turns, as load changes from turn to turn."""
        return statistics.median(a / b for a, b in zip(self.seconds, self.reference_seconds, strict=True))


class Stepper:
    """Trains on one batch again and again."""

    def __init__(self, trainer: Trainer, batch: fields.Batch, warm_up: int = 2) -> None:
        """Takes the first steps, of which the very first traces."""
        self._trainer = trainer
        trainer.train_dataset = tf.data.Dataset.from_tensors(batch).repeat()
        self._one = tf.constant(1)
        for _ in range(warm_up):
            trainer.train(self._one)
        forget_peak()

    def step(self) -> tuple[float, float]:
        """Takes one step; its seconds by the clock, and of CPU."""
        begun, begun_cpu = time.perf_counter(), time.process_time()
        self._trainer.train(self._one)
        return time.perf_counter() - begun, time.process_time() - begun_cpu


def forget_peak() -> None:
    """Starts `peak_resident` anew, where the system can."""
    try:
        _FORGET.write_text(_RESET_PEAK)
    except OSError:
        pass  # the peak of the whole process then


def peak_resident() -> int:
    """Bytes. From /proc where there is one: getrusage counts what the parent process held before this one's exec."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def random_batch(
    size: int, shape: tuple[int, int], num_classes: int, max_boxes: int = 100, boxes: int = 3
) -> fields.Batch:
    """A batch of noise, of the shapes that training sees.

    Args:
      size: in images.
      shape: height and width of the images.
      max_boxes: how far boxes are padded.
      boxes: how many of them are real, in each image.
    """
    draws = np.random.default_rng(0)
    corners = np.sort(draws.random([size, boxes, 2, 2], np.float32), axis=2).reshape(size, boxes, 4)
    rest = [[0, 0], [0, max(max_boxes - boxes, 0)]]
    flags = tf.zeros([size, max(max_boxes, boxes)], tf.bool)
    classes = tf.one_hot(draws.integers(0, num_classes, [size, boxes]), num_classes)
    return fields.Batch(
        images=tf.constant(draws.random([size, *shape, 3], np.float32) * 255),
        true_shapes=tf.constant([[*shape, 3]] * size),
        groundtruth=fields.Groundtruth(
            boxes=tf.pad(corners, [*rest, [0, 0]]),
            classes=tf.pad(classes, [*rest, [0, 0]]),
            weights=tf.pad(tf.ones([size, boxes]), rest),
            num_boxes=tf.fill([size], boxes),
            is_crowd=flags,
            difficult=flags,
            group_of=flags,
            area=tf.zeros(flags.shape),
        ),
        keys=tf.constant(["noise"] * size),
        source_ids=tf.constant(["noise"] * size),
        original_shapes=tf.constant([shape] * size),
    )
