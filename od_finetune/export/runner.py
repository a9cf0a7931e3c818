"""Runs an exported detector, whichever format it has; needs TensorFlow alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.export import frozen_graph, saved_model
from od_finetune.export.signatures import CONTEXT_FEATURES, CONTEXT_SIZE, INPUT_TYPES, SIDE_INPUTS, TF_EXAMPLE

Context = tuple[np.ndarray, np.ndarray]

_OUTPUT_PREFIXES = ("num_detections", "detection_", "raw_detection_")


class Found(NamedTuple):
    """Detections in one image, best first."""

    boxes: np.ndarray  # float32 [D, 4], normalised
    scores: np.ndarray  # float32 [D]
    classes: np.ndarray  # int32 [D], label ids (1-based)
    # None where the detector has no such head
    masks: np.ndarray | None = None  # float32 [D, h, w], probabilities within the box
    keypoints: np.ndarray | None = None  # float32 [D, K, 2], normalised y and x
    keypoint_scores: np.ndarray | None = None  # float32 [D, K]

    def select(self, rows: np.ndarray) -> Found:
        """The detections at `rows`, in that order."""
        return Found(*(None if values is None else values[rows] for values in self))


class ExportedDetector:
    """An exported detector, loaded. `input_spec` tells what it takes; calling it with that gives arrays by name."""

    def __init__(
        self,
        input_spec: tf.TensorSpec,
        is_example: bool,
        run: Callable[..., dict],
        context_shape: tuple[int | None, int] | None = None,
    ):
        self.input_spec = input_spec
        # Rows (None: any number) and length of the context features it takes beside images; None: it takes none.
        self.context_shape = context_shape
        self._is_example = is_example
        self._run = run

    def __call__(self, batch: np.ndarray, context: Context | None = None) -> dict[str, np.ndarray]:
        """A batch of whatever the export takes -> every output by its classical name.

        `context`: features `[B, M, F]` of objects in other images, and how many of the M are real, `[B]`; where not
        given, none are.

        Raises:
          UserError: a context that the export does not take, or of another shape.
        """
        if self.context_shape is None:
            if context is not None:
                raise UserError("context features are given, but this export takes none beside its images (records "
                                "that hold them are given as they are)")
            return self._run(batch)
        rows, length = self.context_shape
        count = len(batch)
        features, sizes = context or (np.zeros((count, rows or 1, length), np.float32), np.zeros(count, np.int32))
        if np.ndim(features) != 3 or (len(features), np.shape(features)[2]) != (count, length):
            raise UserError(f"context features have the shape {list(np.shape(features))}, expected [{count}, rows, "
                            f"{length}] for {count} images")
        if np.shape(sizes) != (count,) or np.max(sizes, initial=0) > np.shape(features)[1]:
            raise UserError(f"the numbers of context features are {np.asarray(sizes).tolist()}, expected {count}, none "
                            f"above the {np.shape(features)[1]} rows")
        return self._run(batch, **dict(zip(SIDE_INPUTS, (features, sizes), strict=True)))

    def detect(self, encoded: bytes) -> Found:
        """Detections in one encoded image (JPEG, PNG, GIF or BMP), whatever the export's input type."""
        outputs = self(self._batch_of_one(encoded))
        count = int(outputs["num_detections"][0])
        values = {
            name: outputs[f"detection_{name}"][0][:count] for name in Found._fields if f"detection_{name}" in outputs
        }
        return Found(**{**values, "classes": values["classes"].astype(np.int32)})

    def _batch_of_one(self, encoded: bytes) -> np.ndarray:
        if self.input_spec.dtype == tf.string:
            return np.array([_as_example(encoded) if self._is_example else encoded], dtype=object)
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        height, width = self.input_spec.shape[1:3]
        if height is not None or width is not None:
            # The export fixed a size that the photograph need not have. Boxes are normalised, so nothing is lost.
            image = tf.image.resize(image, [height or image.shape[0], width or image.shape[1]])
        image = tf.cast(tf.round(tf.cast(image, tf.float32)), self.input_spec.dtype)
        copies = self.input_spec.shape[0] or 1
        return np.repeat(image.numpy()[None], copies, axis=0)


def load(path: str | Path) -> ExportedDetector:
    """Loads a frozen graph (`.pb`), a SavedModel directory, or an export directory that holds either.

    Raises:
      UserError: nothing of the kind is at `path`, or it is a graph without a classical input.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return _load_saved_model(path)
    if (path / saved_model.DIRECTORY_NAME / "saved_model.pb").is_file():
        return _load_saved_model(path / saved_model.DIRECTORY_NAME)
    if (path / frozen_graph.FILE_NAME).is_file():
        path = path / frozen_graph.FILE_NAME
    if path.is_file():
        return _load_frozen_graph(path)
    raise UserError(f"{path}: found neither a frozen graph (a .pb file) nor a SavedModel (a directory with "
                    "saved_model.pb); write one with `od-finetune export`")


def _load_frozen_graph(path: Path) -> ExportedDetector:
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has no stable import path
        raise UserError(f"{path} is no frozen graph: {error}") from error
    names = [node.name for node in graph_def.node if node.op == "Placeholder" and node.name in INPUT_TYPES]
    if not names:
        raise UserError(f"{path} has none of the inputs {', '.join(INPUT_TYPES)}; is it a detector's frozen graph?")
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    placeholder = graph.get_tensor_by_name(f"{names[0]}:0")
    outputs = {
        op.name: op.outputs[0] for op in graph.get_operations()
        if op.name.startswith(_OUTPUT_PREFIXES) and "/" not in op.name
    }
    session = tf.compat.v1.Session(graph=graph)
    spec = tf.TensorSpec(placeholder.shape, placeholder.dtype, name=names[0])
    feeds = {node.name: graph.get_tensor_by_name(f"{node.name}:0") for node in graph_def.node
             if node.op == "Placeholder" and node.name in SIDE_INPUTS}

    def run(batch: np.ndarray, **side: np.ndarray) -> dict[str, np.ndarray]:
        return session.run(outputs, {placeholder: batch, **{feeds[name]: value for name, value in side.items()}})

    return ExportedDetector(spec, names[0] == TF_EXAMPLE, run, _context_shape(feeds))


def _load_saved_model(path: Path) -> ExportedDetector:
    function = tf.saved_model.load(str(path)).signatures[saved_model.SIGNATURE]
    specs = dict(function.structured_input_signature[1])
    side = {name: specs.pop(name) for name in SIDE_INPUTS if name in specs}
    ((name, spec),) = specs.items()

    def run(batch: np.ndarray, **more: np.ndarray) -> dict[str, np.ndarray]:
        inputs = {key: tf.constant(value, side[key].dtype) for key, value in more.items()}
        outputs = function(**{name: tf.constant(batch, spec.dtype)}, **inputs)
        return {key: value.numpy() for key, value in outputs.items()}

    return ExportedDetector(spec, _parses_examples(function.graph), run, _context_shape(side))


def _context_shape(side: Mapping[str, tf.Tensor | tf.TensorSpec]) -> tuple[int | None, int] | None:
    return tuple(side[CONTEXT_FEATURES].shape[1:]) if CONTEXT_FEATURES in side and CONTEXT_SIZE in side else None


def _parses_examples(graph: tf.Graph) -> bool:
    """Whether a string input is a tf.Example: a signature does not tell, the ops do."""
    graph_def = graph.as_graph_def()
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    return any(node.op in ("ParseExample", "ParseExampleV2", "ParseSingleExample") for node in nodes)


def _as_example(encoded: bytes) -> bytes:
    feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
