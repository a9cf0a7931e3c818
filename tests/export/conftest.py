"""A detector small enough to trace in a moment, with the control flow that real ones have."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from od_finetune.fields import Detections

SIZE = 24
CLASSES = 2
DETECTIONS = 5


class TinyDetector:
    """One convolution over a 6 by 6 grid, one anchor per cell, per-image non-max suppression in a loop."""

    num_classes = CLASSES
    context_size = None

    def __init__(self, seed: int = 0):
        self._conv = tf_keras.layers.Conv2D(4 + CLASSES + 1, 4, strides=4, name="BoxPredictor/Conv")
        self._seed = seed

    def build(self) -> None:
        if self._conv.built:
            return
        self._conv.build((None, SIZE, SIZE, 3))
        generator = np.random.default_rng(self._seed)
        self._conv.kernel.assign(generator.normal(0, 0.3, self._conv.kernel.shape))
        self._conv.bias.assign(generator.normal(0, 0.3, self._conv.bias.shape))

    def named_variables(self) -> dict[str, tf.Variable]:
        self.build()
        return {"BoxPredictor/Conv/weights": self._conv.kernel, "BoxPredictor/Conv/biases": self._conv.bias}

    def resize(self, image):
        return tf.image.resize(image, [SIZE, SIZE]), tf.constant([SIZE, SIZE, 3])

    def normalize(self, images):
        return images * (2.0 / 255.0) - 1.0

    def preprocess(self, images):
        shapes = tf.tile(tf.constant([[SIZE, SIZE, 3]]), [tf.shape(images)[0], 1])
        return self.normalize(tf.image.resize(images, [SIZE, SIZE])), shapes

    def predict(self, inputs, true_shapes, training=False):
        raw = tf.reshape(self._conv(inputs), [tf.shape(inputs)[0], -1, 4 + CLASSES + 1])
        return {"box_encodings": raw[..., :4], "class_predictions_with_background": raw[..., 4:]}

    def postprocess(self, predictions, true_shapes):
        codes = tf.sigmoid(predictions["box_encodings"])
        boxes = tf.concat([codes[..., :2] * 0.5, 0.5 + codes[..., 2:] * 0.5], -1)
        scores = tf.sigmoid(predictions["class_predictions_with_background"])
        best = tf.reduce_max(scores[..., 1:], -1)
        tf.debugging.assert_all_finite(best, "scores")
        tf.debugging.assert_greater_equal(tf.reduce_min(best), 0.0)

        def select(boxes_and_scores):
            indices, valid = tf.image.non_max_suppression_padded(
                *boxes_and_scores, DETECTIONS, iou_threshold=0.9, pad_to_max_output_size=True)
            return tf.ensure_shape(indices, [DETECTIONS]), valid

        indices, valid = tf.map_fn(select, (boxes, best), fn_output_signature=(tf.int32, tf.int32))
        mask = tf.sequence_mask(valid, DETECTIONS)
        multiclass = tf.gather(scores, indices, batch_dims=1)
        return Detections(
            boxes=tf.gather(boxes, indices, batch_dims=1),
            scores=tf.where(mask, tf.gather(best, indices, batch_dims=1), 0.0),
            classes=tf.argmax(multiclass[..., 1:], -1, output_type=tf.int32),
            num_detections=valid,
            multiclass_scores=multiclass,
            anchor_indices=indices,
            raw_boxes=boxes,
            raw_scores=scores,
        )


@pytest.fixture(scope="session")
def tiny_detector() -> TinyDetector:
    detector = TinyDetector()
    detector.build()
    return detector


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """uint8 [2, 30, 40, 3]."""
    return np.random.default_rng(1).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def png() -> Callable[[np.ndarray], bytes]:
    """Encodes uint8 pixels without loss."""

    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def encoded(images, png) -> list[bytes]:
    """The same images as PNG files."""
    return [png(image) for image in images]


@pytest.fixture(scope="session")
def feeds(images, encoded) -> dict[str, np.ndarray | list[bytes]]:
    """The same two images in every form that an export takes."""

    def example(string: bytes) -> bytes:
        feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[string]))}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    return {"images": images, "float_images": images.astype(np.float32), "encoded": encoded,
            "examples": [example(string) for string in encoded]}


@pytest.fixture(scope="session")
def expected(tiny_detector, images) -> dict[str, np.ndarray]:
    """What the detector itself says of the images, under the exported names."""
    inputs, shapes = tiny_detector.preprocess(tf.constant(images, tf.float32))
    found = tiny_detector.postprocess(tiny_detector.predict(inputs, shapes), shapes)
    return {
        "detection_boxes": found.boxes.numpy(), "detection_scores": found.scores.numpy(),
        "detection_classes": found.classes.numpy() + 1, "num_detections": found.num_detections.numpy(),
        "raw_detection_boxes": found.raw_boxes.numpy(), "raw_detection_scores": found.raw_scores.numpy(),
        "detection_multiclass_scores": found.multiclass_scores.numpy(),
        "detection_anchor_indices": found.anchor_indices.numpy(),
    }
