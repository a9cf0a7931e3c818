"""Batches of ground truth and detections from short lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from od_finetune import fields


class Picture(NamedTuple):
    """One image: boxes in original pixels (ymin, xmin, ymax, xmax), classes 0-based."""

    boxes: list = []
    classes: list = []
    found: list = []
    found_classes: list = []
    scores: list = []
    crowd: list = []
    difficult: list = []
    group_of: list = []
    area: list = []
    shape: tuple = (100, 200)
    source_id: str = "same"


def make_batch(pictures: list[Picture], num_classes: int = 3) -> tuple[fields.Batch, fields.Detections]:
    """Pads the pictures to one batch, with junk in the padding."""
    size, n = len(pictures), max(len(p.boxes) for p in pictures) + 2
    d = max(len(p.found) for p in pictures) + 2

    def padded(values: list[list], length: int, shape: tuple, dtype: type, junk: float) -> np.ndarray:
        out = np.full((size, length, *shape), junk, dtype)
        for row, value in zip(out, values, strict=True):
            row[: len(value)] = np.asarray(value, dtype).reshape(-1, *shape)
        return out

    def normal(boxes: list, shape: tuple) -> np.ndarray:
        return np.asarray(boxes, np.float32).reshape(-1, 4) / np.tile(shape, 2)

    def flags(name: str) -> np.ndarray:
        return padded([getattr(p, name) or [0] * len(p.boxes) for p in pictures], n, (), bool, True)

    one_hot = [np.eye(num_classes)[p.classes] if p.classes else np.zeros((0, num_classes)) for p in pictures]
    truth = fields.Groundtruth(
        boxes=padded([normal(p.boxes, p.shape) for p in pictures], n, (4,), np.float32, 0.3),
        classes=padded(one_hot, n, (num_classes,), np.float32, 1.0),
        weights=padded([[1] * len(p.boxes) for p in pictures], n, (), np.float32, 0.0),
        num_boxes=np.array([len(p.boxes) for p in pictures], np.int32),
        is_crowd=flags("crowd"),
        difficult=flags("difficult"),
        group_of=flags("group_of"),
        area=padded([p.area or [0] * len(p.boxes) for p in pictures], n, (), np.float32, 7.0),
    )
    detections = fields.Detections(
        boxes=padded([normal(p.found, p.shape) for p in pictures], d, (4,), np.float32, 0.4),
        scores=padded([p.scores for p in pictures], d, (), np.float32, 0.99),
        classes=padded([p.found_classes for p in pictures], d, (), np.int32, 0),
        num_detections=np.array([len(p.found) for p in pictures], np.int32),
        multiclass_scores=None,
        anchor_indices=None,
        raw_boxes=None,
        raw_scores=None,
    )
    batch = fields.Batch(
        images=np.zeros((size, 8, 8, 3), np.float32),
        true_shapes=np.tile(np.int32([8, 8, 3]), (size, 1)),
        groundtruth=truth,
        keys=np.array([b"key"] * size),
        source_ids=np.array([p.source_id.encode() for p in pictures]),
        original_shapes=np.array([p.shape for p in pictures], np.int32),
    )
    return batch, detections


def random_pictures(count: int, seed: int, num_classes: int = 3, distinct_scores: bool = True) -> list[Picture]:
    """Scenes with hits, near misses, duplicates, crowds, difficult boxes and empty images."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        n = int(rng.integers(0, 7))
        shape = (int(rng.integers(150, 400)), int(rng.integers(150, 400)))
        low = rng.uniform(0, 0.7, (n, 2))
        boxes = np.concatenate([low, low + np.exp(rng.uniform(-4, -1.2, (n, 2)))], 1) * np.tile(shape, 2)
        classes = rng.integers(0, num_classes, n)
        source = np.repeat(np.arange(n), rng.integers(0, 4, n))
        size = (boxes[:, 2:] - boxes[:, :2])[source]
        found = boxes[source] + rng.normal(0, 0.12, (len(source), 4)) * np.tile(size, 2)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        wrong = rng.random(len(source)) < 0.2
        scores = rng.random(len(source))
        pictures.append(
            Picture(
                boxes=boxes.tolist(), classes=classes.tolist(), found=found.tolist(), shape=shape,
                found_classes=np.where(wrong, rng.integers(0, num_classes, len(source)), classes[source]).tolist(),
                scores=(scores if distinct_scores else np.round(scores, 1)).tolist(),
                crowd=(rng.random(n) < 0.15).tolist(), difficult=(rng.random(n) < 0.2).tolist(),
                group_of=(rng.random(n) < 0.15).tolist(),
                area=(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.choice([0.0, 0.6, 1.0], n)).tolist(),
            )
        )  # fmt: skip
    return pictures


@pytest.fixture(scope="session")
def picture() -> type[Picture]:
    return Picture


@pytest.fixture(scope="session")
def batch_of():
    return make_batch


@pytest.fixture(scope="session")
def pictures_of():
    return random_pictures
