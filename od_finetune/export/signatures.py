"""What goes into an exported detector and what comes out: one table, one function to trace.

Names follow the classical exported graphs of the TensorFlow detection zoo, so that code written against those
(`graph.get_tensor_by_name("detection_boxes:0")`) runs on ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.types.experimental import ConcreteFunction

from od_finetune.errors import UserError
from od_finetune.fields import CONTEXT_KEY, CONTEXT_LENGTH_KEY, ContextBank, Detections, Detector

IMAGE_TENSOR = "image_tensor"
FLOAT_IMAGE_TENSOR = "float_image_tensor"
ENCODED_IMAGE = "encoded_image_string_tensor"
TF_EXAMPLE = "tf_example"

LABEL_ID_OFFSET = 1  # label map ids start at 1, a detector's classes at 0
_MAP_PARALLELISM = 32
_CHANNELS = 3

CONTEXT_FEATURES, CONTEXT_SIZE = "context_features", "valid_context_size"
SIDE_INPUTS = (CONTEXT_FEATURES, CONTEXT_SIZE)  # of detectors that look at a context bank

ServingFunction = Callable[..., dict[str, tf.Tensor]]


class InputType(NamedTuple):
    """One way to feed an exported detector."""

    tensor_name: str  # name of the placeholder in a frozen graph, without ":0"
    dtype: tf.DType
    shape: tuple[int | None, ...]  # None where any size goes
    images: Callable[[Detector, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]  # -> network inputs, true shapes
    holds_context: bool = False  # whether a context bank comes with the images


def _from_pixels(detector: Detector, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return detector.preprocess(tf.cast(images, tf.float32))


def _from_encoded(detector: Detector, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and resizes image by image, so that one batch may mix photographs of different sizes."""

    def decode(string: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(string, channels=_CHANNELS, expand_animations=False)
        image.set_shape([None, None, _CHANNELS])
        return detector.resize(tf.cast(image, tf.float32))

    resized = tf.function(decode).get_concrete_function(tf.TensorSpec([], tf.string)).structured_outputs[0]
    images, true_shapes = tf.map_fn(
        decode,
        encoded,
        # The static size is stated because map_fn forgets it and a detector may rely on it.
        fn_output_signature=(tf.TensorSpec(resized.shape, tf.float32), tf.TensorSpec([3], tf.int32)),
        parallel_iterations=_MAP_PARALLELISM,
    )
    return detector.normalize(images), true_shapes


def _from_examples(detector: Detector, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    return _from_encoded(detector, tf.io.parse_example(serialized, features)["image/encoded"])


def _context_of_examples(serialized: tf.Tensor, length: int) -> ContextBank:
    """The banks in records, as `data.context_features` has them: rows of `length` numbers one after the other."""
    parsed = tf.io.parse_example(serialized, {
        CONTEXT_KEY: tf.io.RaggedFeature(tf.float32),
        CONTEXT_LENGTH_KEY: tf.io.FixedLenFeature([], tf.int64, length),
    })  # fmt: skip
    values = parsed[CONTEXT_KEY]
    numbers = tf.cast(values.row_lengths(), tf.int32)
    message = f"numbers in {CONTEXT_KEY}, which are rows of {length}"
    stated = parsed[CONTEXT_LENGTH_KEY]
    checks = [
        tf.debugging.assert_equal(numbers % length, 0, message=message),
        tf.debugging.assert_equal(stated, tf.constant(length, tf.int64), message=CONTEXT_LENGTH_KEY),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):  # eagerly they have raised by now
        filled = values.to_tensor()
    bank = tf.reshape(filled, [tf.shape(filled)[0], tf.shape(filled)[1] // length, length])
    return ContextBank(bank, numbers // length)


INPUT_TYPES: dict[str, InputType] = {
    IMAGE_TENSOR: InputType(IMAGE_TENSOR, tf.uint8, (None, None, None, _CHANNELS), _from_pixels),
    FLOAT_IMAGE_TENSOR: InputType(FLOAT_IMAGE_TENSOR, tf.float32, (None, None, None, _CHANNELS), _from_pixels),
    ENCODED_IMAGE: InputType(ENCODED_IMAGE, tf.string, (None,), _from_encoded),
    TF_EXAMPLE: InputType(TF_EXAMPLE, tf.string, (None,), _from_examples, holds_context=True),
}


def parse_shape(text: str) -> tuple[int | None, ...] | None:
    """`"1,300,300,3"` -> `(1, 300, 300, 3)`; `-1`, `None` and `?` leave a size open; empty text gives None.

    Raises:
      UserError: for anything else.
    """
    if not text.strip():
        return None
    sizes: list[int | None] = []
    for word in text.strip(" []()").split(","):
        word = word.strip()
        if word.lower() in ("-1", "none", "?"):
            sizes.append(None)
        elif word.isdigit() and int(word) > 0:
            sizes.append(int(word))
        else:
            raise UserError(f"--input_shape={text}: {word!r} is no size; give e.g. 1,300,300,3, with -1 for any size")
    return tuple(sizes)


def input_spec(input_type: str, input_shape: tuple[int | None, ...] | None = None) -> tf.TensorSpec:
    """The placeholder of `input_type`, with the sizes of `input_shape` where one is given.

    Raises:
      UserError: for an unknown type, or a shape that does not fit it.
    """
    if input_type not in INPUT_TYPES:
        raise UserError(f"input_type {input_type!r} is unknown; choose one of {', '.join(INPUT_TYPES)}")
    row = INPUT_TYPES[input_type]
    shape = tf.TensorShape(row.shape)
    if input_shape is not None:
        wanted = tf.TensorShape(input_shape)
        if not shape.is_compatible_with(wanted):
            raise UserError(f"input_shape {list(input_shape)} does not fit input_type {input_type}, whose shape is "
                            f"{list(row.shape)} (None: any size)")
        shape = shape.merge_with(wanted)
    return tf.TensorSpec(shape, row.dtype, name=row.tensor_name)


def side_input_specs(detector: Detector, input_type: str) -> list[tf.TensorSpec]:
    """What an exported detector takes beside the images; of most nothing.

    Of one that looks at a context bank, under the names that the OD API's exporters document: `context_features`,
    float32 [B, M, F], and `valid_context_size`, int32 [B], how many of the M rows are real. Records hold theirs.
    """
    if detector.context_size is None or INPUT_TYPES[input_type].holds_context:
        return []
    _, length = detector.context_size
    return [
        tf.TensorSpec([None, None, length], tf.float32, name=CONTEXT_FEATURES),
        tf.TensorSpec([None], tf.int32, name=CONTEXT_SIZE),
    ]


def named_outputs(detections: Detections) -> dict[str, tf.Tensor]:
    """Detections as float32 tensors under the classical names; classes become label ids (1-based).

    A field that the detector leaves None is left out.
    """
    values = {
        "detection_boxes": detections.boxes,
        "detection_scores": detections.scores,
        "detection_classes": tf.cast(detections.classes, tf.float32) + LABEL_ID_OFFSET,
        "num_detections": detections.num_detections,
        "raw_detection_boxes": detections.raw_boxes,
        "raw_detection_scores": detections.raw_scores,
        "detection_multiclass_scores": detections.multiclass_scores,
        "detection_anchor_indices": detections.anchor_indices,
        "detection_masks": detections.masks,
        "detection_keypoints": detections.keypoints,
        "detection_keypoint_scores": detections.keypoint_scores,
        "detection_keypoint_depths": detections.keypoint_depths,
        "detection_surface_coords": detections.surface_coords,
        "detection_embeddings": detections.embeddings,
        "detection_temporal_offsets": detections.temporal_offsets,
    }
    return {name: tf.cast(value, tf.float32) for name, value in values.items() if value is not None}


def serving_function(detector: Detector, input_type: str) -> ServingFunction:
    """The whole of inference as one function of the input tensor, and of `side_input_specs`, to named outputs."""
    row = INPUT_TYPES[input_type]

    def serve(tensor: tf.Tensor, *side: tf.Tensor) -> dict[str, tf.Tensor]:
        context = {"context": ContextBank(*side)} if side else {}
        with tf.name_scope("Preprocessor"):
            inputs, true_shapes = row.images(detector, tensor)
            if detector.context_size is not None and row.holds_context:
                context = {"context": _context_of_examples(tensor, detector.context_size[1])}
        predictions = detector.predict(inputs, true_shapes, training=False, **context)
        with tf.name_scope("Postprocessor"):
            detections = detector.postprocess(predictions, true_shapes)
            outputs = named_outputs(detections)
        # Outside every scope: these identities carry the public names.
        return {name: tf.identity(value, name=name) for name, value in outputs.items()}

    return serve


def trace(
    detector: Detector, input_type: str, input_shape: tuple[int | None, ...] | None = None
) -> ConcreteFunction:
    """Inference of a detector as a graph whose placeholder is named as `INPUT_TYPES` says.

    Raises:
      UserError: for an unknown `input_type` or an `input_shape` that does not fit it.
    """
    specs = [input_spec(input_type, input_shape), *side_input_specs(detector, input_type)]
    detector.build()  # variables must exist before tracing: a graph may not create them
    return tf.function(serving_function(detector, input_type), autograph=False).get_concrete_function(*specs)
