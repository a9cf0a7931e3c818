"""Losses of CenterNet's heads. A network with several outputs (Hourglass) has a prediction for each; its loss is their
mean. The loss functions are those of `losses`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from od_finetune.boxes.center_grid import flatten, gather_cells

ElementLoss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def pixel_loss(predictions: Sequence[tf.Tensor], targets: tf.Tensor, weights: tf.Tensor, loss: ElementLoss,
               normalizer: tf.Tensor) -> tf.Tensor:
    """Loss of maps whose every cell has a target: heat maps, masks.

    Args:
        predictions: logits `[B, height, width, C]`, one per output of the network.
        targets: `[B, height, width, C]`.
        weights: `[B, height, width, 1]` or `[B, height, width, C]`.
        loss: `([B, P, C], [B, P, C], [B, P, 1 or C]) ->` whatever sums up to the loss.
        normalizer: what the sum is divided by.

    Returns:
        A scalar.
    """
    total = tf.add_n([tf.reduce_sum(loss(flatten(maps), flatten(targets), flatten(weights))) for maps in predictions])
    return total / (len(predictions) * normalizer)


def cell_loss(predictions: Sequence[tf.Tensor], cells: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor,
              loss: ElementLoss, normalizer: tf.Tensor) -> tf.Tensor:
    """Loss of maps that have a target in some cells only: sizes, offsets.

    Args:
        predictions: `[B, height, width, C]`, one per output of the network.
        cells: int32 `[B, N, 2]`.
        targets: `[B, N, C]`.
        weights: `[B, N]`.
        loss: `([B, N, C], [B, N, C], [B, N]) ->` whatever sums up to the loss.
        normalizer: what the sum is divided by.

    Returns:
        A scalar.
    """
    return gathered_loss([gather_cells(maps, cells) for maps in predictions], targets, weights, loss, normalizer)


def gathered_loss(predictions: Sequence[tf.Tensor], targets: tf.Tensor, weights: tf.Tensor, loss: ElementLoss,
                  normalizer: tf.Tensor) -> tf.Tensor:
    """As `cell_loss`, of what has been gathered already: `predictions` are `[B, N, C]`."""
    total = tf.add_n([tf.reduce_sum(loss(predicted, targets, weights)) for predicted in predictions])
    return total / (len(predictions) * normalizer)
