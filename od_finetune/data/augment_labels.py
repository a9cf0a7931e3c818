"""Augmentation steps that change boxes or labels and leave the image alone."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.data import sample as s
from od_finetune.data.draws import uniform
from od_finetune.data.sample import Sample

# How the one to four numbers drawn per box (each -1..1, or 0..1 for growing and shrinking) move
# (ymin, xmin, ymax, xmax), as shares of the box's (height, width): columns of draws, sign per side.
JITTER_MODES = {
    "DEFAULT": ((0, 1, 2, 3), (1, 1, 1, 1), -1.0),
    "EXPAND": ((0, 1, 2, 3), (-1, -1, 1, 1), 0.0),
    "SHRINK": ((0, 1, 2, 3), (1, 1, -1, -1), 0.0),
    "EXPAND_SYMMETRIC": ((0, 1, 0, 1), (-1, -1, 1, 1), 0.0),
    "SHRINK_SYMMETRIC": ((0, 1, 0, 1), (1, 1, -1, -1), 0.0),
    "EXPAND_SYMMETRIC_XY": ((0, 0, 0, 0), (-1, -1, 1, 1), 0.0),
    "SHRINK_SYMMETRIC_XY": ((0, 0, 0, 0), (1, 1, -1, -1), 0.0),
}


def random_jitter_boxes(sample: Sample, seed: tf.Tensor, ratio: float = 0.05, jitter_mode: str = "DEFAULT") -> Sample:
    """Moves each side of each box by up to `ratio` of the box's height or width, then clips to the image.

    A side that would pass its opposite one (shrinking by half or more) leaves the box as it was.
    """
    columns, signs, low = JITTER_MODES[jitter_mode]
    draws = uniform(seed, low * ratio, ratio, [tf.shape(sample.boxes)[0], 4])
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    shift = tf.gather(draws, columns, axis=1) * tf.constant(signs, tf.float32) * tf.tile(sides, [1, 2])
    moved = tf.clip_by_value(sample.boxes + shift, 0.0, 1.0)
    sound = tf.reduce_all(moved[:, 2:] > moved[:, :2], axis=-1, keepdims=True)
    return sample._replace(boxes=tf.where(sound, moved, sample.boxes))


def drop_label_probabilistically(
    sample: Sample, seed: tf.Tensor, label: int = 0, drop_probability: float = 1.0
) -> Sample:
    """Drops each box with this label id with `drop_probability`."""
    classes = sample.objects[s.CLASSES]
    dropped = (classes == label) & (uniform(seed, shape=tf.shape(classes)) < drop_probability)
    return sample.select(tf.logical_not(dropped))


def remap_labels(sample: Sample, seed: tf.Tensor, original_labels: tuple[int, ...], new_label: int) -> Sample:
    """Gives every box whose label id is among `original_labels` the id `new_label`."""
    del seed
    classes = sample.objects[s.CLASSES]
    listed = tf.reduce_any(classes[:, None] == tf.constant(original_labels, tf.int32, [len(original_labels)]), axis=-1)
    remapped = tf.where(listed, new_label, classes)
    return sample._replace(objects={**sample.objects, s.CLASSES: remapped})
