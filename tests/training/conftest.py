"""A detector small enough to train in milliseconds, with everything that freezing has to reach."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from batches import batches_dataset

from od_finetune import fields
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.loop import TrainingLoop
from od_finetune.training.progress import Progress
from od_finetune.training.trainer import Trainer

SIZE, CLASSES, BOXES, ANCHORS = 8, 2, 3, 16
LEAVES = {"kernel": "weights", "depthwise_kernel": "depthwise_weights", "bias": "biases"}


class FakeDetector(tf.Module):
    """Two convolutions with batch norm (the second depthwise) and two convolutional predictors."""

    context_size = None

    def __init__(self, seed: int = 0, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.num_classes = CLASSES
        tf_keras.utils.set_random_seed(seed)
        keras = tf_keras.layers
        self._layers = {
            "FeatureExtractor/Conv_0": keras.Conv2D(4, 3, padding="same", use_bias=False),
            "FeatureExtractor/Conv_0/BatchNorm": keras.BatchNormalization(momentum=0.5),
            "FeatureExtractor/Conv_1": keras.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False),
            "FeatureExtractor/Conv_1/BatchNorm": keras.BatchNormalization(momentum=0.5),
            "BoxPredictor_0/ClassPredictor": keras.Conv2D(CLASSES + 1, 1),
            "BoxPredictor_0/BoxEncodingPredictor": keras.Conv2D(4, 1),
        }
        self._weight_decay = weight_decay
        self._built = False

    def build(self) -> None:
        if not self._built:
            self._forward(tf.zeros([1, SIZE, SIZE, 3]), False)
            self._built = True

    def _forward(self, x: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        for i in range(2):
            x = self._layers[f"FeatureExtractor/Conv_{i}"](x)
            x = tf.nn.relu(self._layers[f"FeatureExtractor/Conv_{i}/BatchNorm"](x, training=training))
        scores = self._layers["BoxPredictor_0/ClassPredictor"](x)
        boxes = self._layers["BoxPredictor_0/BoxEncodingPredictor"](x)
        return tf.reshape(boxes, [-1, ANCHORS, 4]), tf.reshape(scores, [-1, ANCHORS, CLASSES + 1])

    def normalize(self, images: tf.Tensor, true_shapes: tf.Tensor) -> tf.Tensor:
        assert true_shapes.shape[1] == 3
        return images / 127.5 - 1.0

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        boxes, scores = self._forward(inputs, training)
        return {fields.BOX_ENCODINGS: boxes, fields.CLASS_PREDICTIONS: scores}

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: fields.Groundtruth) -> dict[str, tf.Tensor]:
        target = tf.reduce_mean(groundtruth.boxes, axis=1, keepdims=True)
        label = tf.pad(tf.reduce_mean(groundtruth.classes, axis=1, keepdims=True), [[0, 0], [0, 0], [1, 0]])
        return {
            fields.LOCALIZATION_LOSS: tf.reduce_mean(tf.square(predictions[fields.BOX_ENCODINGS] - target)),
            fields.CLASSIFICATION_LOSS: tf.reduce_mean(tf.square(predictions[fields.CLASS_PREDICTIONS] - label)),
        }

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> fields.Detections:
        boxes, scores = predictions[fields.BOX_ENCODINGS], predictions[fields.CLASS_PREDICTIONS]
        best = tf.reduce_max(scores[..., 1:], axis=-1)
        return fields.Detections(
            boxes=boxes,
            scores=best,
            classes=tf.argmax(scores[..., 1:], axis=-1, output_type=tf.int32),
            num_detections=tf.fill([tf.shape(boxes)[0]], ANCHORS),
            multiclass_scores=scores,
            anchor_indices=tf.tile(tf.range(ANCHORS)[tf.newaxis], [tf.shape(boxes)[0], 1]),
            raw_boxes=boxes,
            raw_scores=scores,
        )

    def weighted_layers(self) -> dict[str, tf_keras.layers.Layer]:
        return dict(self._layers)

    def named_variables(self) -> dict[str, tf.Variable]:
        named = {}
        for scope, layer in self._layers.items():
            for variable in layer.weights:
                leaf = variable.name.split("/")[-1].removesuffix(":0")
                named[f"{scope}/{LEAVES.get(leaf, leaf)}"] = variable
        return named

    def regularizers(self) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
        decay = self._weight_decay
        if not decay:
            return {}
        return {n: lambda v: decay * tf.nn.l2_loss(v) for n in self.named_variables() if n.endswith("weights")}

    def tf2_names(self) -> dict[str, str]:
        return {"FeatureExtractor/Conv_0/weights": "stem/kernel"}

    def vocabularies(self) -> tuple:
        return ()

    def part(self, name: str) -> str:
        return "backbone" if name.startswith("FeatureExtractor") else "head"

    def stages(self) -> list[fields.Stage]:
        names = {"Conv_0": ("layer_1",), "Conv_1": ("layer_2", "stage1", "backbone"), "BoxPredictor_0": ("head",)}
        return [
            fields.Stage(own, tuple(name for name in self.named_variables() if scope in name))
            for scope, own in names.items()
        ]

    def is_class_head(self, name: str) -> bool:
        return "ClassPredictor" in name

    def class_layout(self, name: str) -> fields.ClassLayout | None:
        return fields.ClassLayout(1, CLASSES + 1, 0) if "ClassPredictor" in name else None


def make_batch(index: int, size: int = 2) -> fields.Batch:
    """The same batch for the same index."""
    draws = np.random.default_rng(index)
    boxes = np.sort(draws.random([size, BOXES, 4], np.float32), axis=-1)
    flags = np.zeros([size, BOXES], bool)
    return fields.Batch(
        images=tf.constant(draws.random([size, SIZE, SIZE, 3], np.float32) * 255.0),
        true_shapes=tf.constant([[SIZE, SIZE, 3]] * size),
        groundtruth=fields.Groundtruth(
            boxes=tf.constant(boxes),
            classes=tf.constant(np.eye(CLASSES, dtype=np.float32)[draws.integers(0, CLASSES, [size, BOXES])]),
            weights=tf.ones([size, BOXES]),
            num_boxes=tf.fill([size], BOXES),
            is_crowd=tf.constant(flags),
            difficult=tf.constant(flags),
            group_of=tf.constant(flags),
            area=tf.zeros([size, BOXES]),
        ),
        keys=tf.constant([f"train.record:{index * size + i} image-{index * size + i}" for i in range(size)]),
        source_ids=tf.constant([f"image-{index * size + i}" for i in range(size)]),
        original_shapes=tf.constant([[SIZE, SIZE]] * size),
    )


def make_dataset(count: int = 64, skip: int = 0, size: int = 2, endless: bool = True) -> tf.data.Dataset:
    """Batches 0..count-1, for ever or once, without the first `skip`."""
    dataset = batches_dataset([make_batch(i, size) for i in range(count)])
    return (dataset.repeat() if endless else dataset).skip(skip)


def hash_of(variable: tf.Variable) -> str:
    """Of the exact bits."""
    return hashlib.sha256(variable.numpy().tobytes()).hexdigest()


@pytest.fixture
def fake_detector() -> Callable[..., FakeDetector]:
    """Makes a built FakeDetector; the same weights for the same seed."""

    def make(seed: int = 0, weight_decay: float = 0.01) -> FakeDetector:
        detector = FakeDetector(seed, weight_decay)
        detector.build()
        return detector

    return make


@pytest.fixture
def batch() -> Callable[..., fields.Batch]:
    """`make_batch`."""
    return make_batch


@pytest.fixture
def dataset() -> Callable[..., tf.data.Dataset]:
    """`make_dataset`."""
    return make_dataset


@pytest.fixture
def hashes() -> Callable[[object], dict[str, str]]:
    """Detector -> hash of each variable's bits by name."""
    return lambda detector: {name: hash_of(v) for name, v in detector.named_variables().items()}


class Scripted:
    """A metric that gives the next of some values at each evaluation."""

    primary = "score"

    def __init__(self, values) -> None:
        self.values = iter(values)
        self.seen = False

    def reset(self) -> None:
        self.seen = False

    def update(self, batch, detections) -> None:
        self.seen = True

    def result(self) -> dict[str, float]:
        return {"score": next(self.values) if self.seen else -1.0}


@pytest.fixture
def scripted() -> type[Scripted]:
    """`Scripted`."""
    return Scripted


OPTIMIZERS = {
    "momentum": lambda: optimizers.Momentum(schedules.cosine_decay(0.05, 10, 0.01, 2)),
    "adam": lambda: optimizers.Adam(schedules.cosine_decay(0.05, 10, 0.01, 2)),
    "rms_prop": lambda: optimizers.RmsProp(schedules.cosine_decay(0.05, 10, 0.01, 2)),
}


@pytest.fixture
def start(fake_detector, dataset, tmp_path) -> Callable[..., TrainingLoop]:
    """Makes a loop over a fresh detector in the test's model_dir."""

    def make(settings, optimizer="momentum", make_dataset=None, evaluator=None, model_dir=None, freeze=(), **kw):
        detector = fake_detector()
        request = freeze if isinstance(freeze, FreezeRequest) else FreezeRequest(freeze=freeze)
        plan = FreezePlan.compute(detector, request)
        trainer = Trainer(detector, plan, OPTIMIZERS[optimizer](), moving_average_decay=0.9)
        made = evaluator(detector) if evaluator else None
        stream = io.StringIO()
        kw["progress"] = Progress(settings.num_steps, settings.batch_size, stream)
        make_dataset = make_dataset or (lambda skip: dataset(skip=skip))
        loop = TrainingLoop(trainer, model_dir or tmp_path / "run", settings, make_dataset, made, **kw)
        loop.said = stream.getvalue
        return loop

    return make


@pytest.fixture
def state_of() -> Callable[[Trainer], dict[str, np.ndarray]]:
    """Everything that a step changes, by name."""

    def state(trainer: Trainer) -> dict[str, np.ndarray]:
        found = {name: v.numpy() for name, v in trainer.detector.named_variables().items()}
        averages = trainer.moving_average.shadows if trainer.moving_average is not None else {}
        found |= {f"average/{name}": v.numpy() for name, v in averages.items()}
        for name, variable in trainer.trained.items():
            for slot in trainer.optimizer.get_slot_names():
                found[f"{slot}/{name}"] = trainer.optimizer.get_slot(variable, slot).numpy()
        return found | {"step": trainer.global_step.numpy()}

    return state


@pytest.fixture
def scalars() -> Callable[..., dict[str, dict[int, float]]]:
    """Directory of event files -> values by step of each tag."""

    def read(directory) -> dict[str, dict[int, float]]:
        values: dict[str, dict[int, float]] = {}
        for path in sorted(directory.glob("events*")):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    values.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
        return values

    return read
