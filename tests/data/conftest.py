"""Tiny records."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from od_finetune.data.writer import LabelledBox, make_example


def _encoded(number: int = 0, size: tuple[int, int] = (24, 32), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An image of `size` (height, width) whose mean tells the number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """(number, size, kind, mode) -> bytes of an image."""
    return _encoded


@pytest.fixture(scope="session")
def example(encoded: Callable[..., bytes]) -> Callable[..., tf.train.Example]:
    """(number, boxes) -> a sound example; the boxes are LabelledBox or left to a default of two."""

    def build(number: int = 0, boxes: list[LabelledBox] | None = None) -> tf.train.Example:
        if boxes is None:
            boxes = [LabelledBox(0.1, 0.2, 0.5, 0.6, 1, "cat"), LabelledBox(0.3, 0.0, 1.0, 0.7, 2, "dog")]
        return make_example(encoded(number), "png", 24, 32, f"image{number}.png", boxes)

    return build


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """(name, examples) -> path of a record file."""

    def write_file(name: str, examples: list[tf.train.Example]) -> str:
        path = str(tmp_path / name)
        with tf.io.TFRecordWriter(path) as writer:
            for item in examples:
                writer.write(item.SerializeToString())
        return path

    return write_file
