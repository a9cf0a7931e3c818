"""Ground truth by hand for the maths of CenterNet's tasks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from od_finetune import fields


def truth(weights=((1, 1, 0),), classes=(((1, 0), (0, 1), (0, 0)),), **more):
    """Of one image: three places, the last without an object. `more`: further fields."""
    weights = tf.constant(weights, tf.float32)
    false = tf.zeros(tf.shape(weights), tf.bool)
    return fields.Groundtruth(tf.zeros([*weights.shape, 4]), tf.constant(classes, tf.float32), weights,
                              tf.constant([2]), false, false, false, weights, **more)


def masks_of(*regions, size=16):
    """`[1, N, size, size]` with each a rectangle (top, left, bottom, right in pixels)."""
    masks = np.zeros([1, len(regions), size, size], np.uint8)
    for row, (top, left, bottom, right) in enumerate(regions):
        masks[0, row, top:bottom, left:right] = 1
    return tf.constant(masks)
