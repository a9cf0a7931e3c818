"""Records, readers and the detector that data sets are built for."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format

from od_finetune.data.writer import LabelledBox, make_example
from od_finetune.fields import Batch
from od_finetune.protos import input_reader_pb2, train_pb2


class FakeDetector:
    """What a data set needs of a detector."""

    num_classes = 2
    context_size = None

    def __init__(self, size: tuple[int, int] | None = (8, 8)):
        self.size = size

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32)
        if self.size:
            image = tf.image.resize(image, self.size)
        return image, tf.shape(image)


def example(number: int, boxes: list[LabelledBox] | None = None) -> tf.train.Example:
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 3, 16, 3), np.uint8)
    encoded = tf.io.encode_png(pixels).numpy()
    if boxes is None:
        boxes = [LabelledBox(0.1, 0.2, 0.5, 0.6, 1, "cat"), LabelledBox(0.1, 0.2, 0.5, 0.6, 2, "dog")]
    return make_example(encoded, "png", *pixels.shape[:2], f"{number}", boxes)


def reader_of(paths: str | list[str], text: str = "") -> Any:
    reader = text_format.Parse(text, input_reader_pb2.InputReader())
    reader.tf_record_input_reader.input_path.extend([paths] if isinstance(paths, str) else paths)
    return reader


def train_config(text: str = "", batch_size: int = 4) -> Any:
    return text_format.Parse(f"batch_size: {batch_size} seed: 5 {text}", train_pb2.TrainConfig())


AUGMENTED = "data_augmentation_options { random_horizontal_flip {} } data_augmentation_options { ssd_random_crop {} }"


def _numpy(value: tf.Tensor | None) -> np.ndarray | None:
    return None if value is None else value.numpy()


def take(dataset: tf.data.Dataset, count: int) -> list[Batch]:
    return [tf.nest.map_structure(_numpy, batch) for batch in dataset.take(count)]
