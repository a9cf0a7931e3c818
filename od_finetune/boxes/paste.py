"""Masks within boxes -> masks of the image, in numpy, one at a time: an image has a hundred and rarely room for all."""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = THRESHOLD) -> np.ndarray:
    """Where a mask within a box exceeds `threshold`, on the image.

    The mask's outermost values lie on the box's sides, as those of `tf.image.crop_and_resize`, which cuts the targets
    of mask heads: pixel 0 of the image is its coordinate 0, the last pixel 1. Between them it is bilinear.

    Args:
      mask: `[h, w]`, probabilities or 0 and 1.
      box: `[4]`, normalised ymin, xmin, ymax, xmax; parts outside of the image are cut off.
      size: height and width of the image.

    Returns:
      uint8 `[height, width]`, 0 or 1, column by column in memory as COCO's run-length code is.
    """
    image = np.zeros(size, np.uint8, order="F")
    ymin, xmin, ymax, xmax = (float(side) for side in box)
    if not (ymax > ymin and xmax > xmin):
        return image
    rows, row, row_share = _samples(ymin, ymax, size[0], mask.shape[0])
    columns, column, column_share = _samples(xmin, xmax, size[1], mask.shape[1])
    # so that the last value has a neighbour, of no weight, and a single one fills its box
    mask = np.pad(np.asarray(mask, np.float32), [(0, 2), (0, 2)], mode="edge")
    lines = mask[row] * (1 - row_share)[:, None] + mask[row + 1] * row_share[:, None]
    values = lines[:, column] * (1 - column_share) + lines[:, column + 1] * column_share
    image[rows, columns] = values > threshold
    return image


def _samples(low: float, high: float, length: int, count: int) -> tuple[slice, np.ndarray, np.ndarray]:
    """Along one axis: which pixels lie in the box, and for each the value before it and the share of the next."""
    last = max(count - 1, 1)
    places = (np.arange(length) / max(length - 1, 1) - low) / (high - low) * last
    inside = np.flatnonzero((places >= 0) & (places <= last))
    if not len(inside):
        return slice(0, 0), np.zeros(0, int), np.zeros(0, np.float32)
    places = places[inside]
    before = places.astype(int)
    return slice(inside[0], inside[-1] + 1), before, (places - before).astype(np.float32)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask `[h, w]` at another size to the nearest pixel, first and last ones kept; column by column in memory."""
    rows, columns = (
        np.rint(np.arange(new) * ((old - 1) / max(new - 1, 1))).astype(int)
        for old, new in zip(mask.shape, size, strict=True)
    )
    return np.asfortranarray(mask[rows[:, None], columns])
