"""CenterNet (Zhou et al. 2019, arXiv:1904.07850): an object is a point, the peak of a heat map; everything else about
it is predicted there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune import fields
from od_finetune.boxes.center_grid import Grid
from od_finetune.models import layers, stages
from od_finetune.models.detectors.center_tasks import Center, Maps, Scene, Task
from od_finetune.models.heads.center import CenterHead
from od_finetune.models.image_resizers import Resizer
from od_finetune.models.keras_names import Numbering
from od_finetune.models.normalization import ChannelNormalization
from od_finetune.names import Rules, Vocabulary, apply_rules

STRIDE = 4  # pixels per cell of every output
INPUTS = "preprocessed_inputs"
TRUE_SHAPES = "true_shapes"  # int32 [B, 3]

# Canonical leaf -> tf_keras's, after all other rules.
_TF2_LEAVES: Rules = [
    (r"/weights$", "/kernel"),
    (r"/depthwise_weights$", "/depthwise_kernel"),
    (r"/pointwise_weights$", "/pointwise_kernel"),
    (r"/biases$", "/bias"),
]


class Extractor(NamedTuple):
    """Backbone and neck, with what a CenterNet has to know of them."""

    backbone: tf.Module  # (images, training) -> {level: features}
    neck: tf.Module  # ({level: features}, training) -> [feature map], all at STRIDE
    num_maps: int
    normalize: ChannelNormalization
    multiple: int  # of which the input's height and width have to be
    tf2_objects: Callable[[tf.Module, tf.Module], fields.ObjectTree]  # (backbone, neck) -> the extractor's node
    backbone_rules: Rules = []  # canonical name -> TF2 name, where the backbone's layers have fixed names there
    vocabularies: tuple[Vocabulary, ...] = ()


class CenterNet(tf.Module):
    """Fulfils `fields.Detector`.

    Args:
      extractor: see `Extractor`.
      center: the task that finds objects.
      tasks: what else is predicted of objects, in the order in which decoding needs their results.
      resizer: see `image_resizers`.
      num_classes: without background; there is none.
      use_depthwise: separable convolutions in the heads.
    """

    def __init__(
        self,
        extractor: Extractor,
        center: Center,
        tasks: tuple[Task, ...],
        resizer: Resizer,
        num_classes: int,
        use_depthwise: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.backbone, self.neck = extractor.backbone, extractor.neck
        specs = [spec for task in (center, *tasks) for spec in task.heads]
        self.head = [CenterHead(spec, extractor.num_maps, use_depthwise) for spec in specs]
        self._extractor = extractor
        self._center, self._tasks = center, tuple(tasks)
        self._resizer = resizer
        self._parts: dict[str, str] = {}  # canonical scope -> part, filled once the network is built
        self._built = False

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[H, W, 3]` (0..255, any dtype) -> float32 `[h, w, 3]` and its true shape int32 `[3]`."""
        return self._resizer(image)

    def normalize(self, images: tf.Tensor) -> tf.Tensor:
        """0..255 -> what the backbone takes, float32."""
        return self._extractor.normalize(images)

    def preprocess(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, 3]` (0..255) -> resized and normalised `[B, h, w, 3]` and true shapes int32 `[B, 3]`."""
        resized, true_shape = self._resizer(images)
        return self.normalize(resized), tf.tile(true_shape[tf.newaxis], [tf.shape(images)[0], 1])

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised inputs `[B, h, w, 3]`, true shapes `[B, 3]` -> `preprocessed_inputs`, `true_shapes` and for each
        head, e.g. `object_center` or `box/scale`, a list: its prediction `[B, h / 4, w / 4, C]` (heat maps are logits)
        from each output of the network."""
        return {INPUTS: inputs, TRUE_SHAPES: true_shapes, **self._forward(inputs, training)}

    def _forward(self, inputs: tf.Tensor, training: bool) -> Maps:
        images = layers.pad_to_multiple(inputs, self._extractor.multiple)
        feature_maps = self.neck(self.backbone(images, training), training)
        maps = {head.spec.name: head(feature_maps, training) for head in self.head}
        self._built = True  # tf_keras creates variables at a layer's first call
        return maps

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: fields.Groundtruth) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name; their sum is what is minimised (without regularisation)."""
        grid = self._grid(predictions)
        found: dict[str, tf.Tensor] = {}
        for task in (self._center, *self._tasks):
            found |= {f"{fields.LOSSES}{name}": loss for name, loss in task.losses(predictions, groundtruth, grid).items()}
        return found

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> fields.Detections:
        """Raw predictions -> final detections, relative to the true part of the image."""
        del true_shapes  # predict has put them into the predictions
        maps = {head.spec.name: predictions[head.spec.name][-1] for head in self.head}
        scene = self._center.decode(maps, self._grid(predictions))
        for task in self._tasks:
            scene = task.decode(maps, scene)
        return scene.detections()

    def _grid(self, predictions: dict[str, tf.Tensor]) -> Grid:
        height, width = layers.spatial_shape(predictions[self._center.heads[0].name][-1])
        return Grid(predictions[TRUE_SHAPES], STRIDE, height, width)

    def build(self) -> None:
        """Creates all variables by tracing the network once; idempotent."""
        if self._built:
            return
        height, width = self._resizer.static_size
        # In a function's graph tf_keras creates variables outside of it; a tf.function would trace twice.
        with tf.__internal__.FuncGraph("build").as_default():
            images = tf.compat.v1.placeholder(tf.float32, [1, height, width, self._resizer.channels])
            self._forward(images, training=False)

    def weighted_layers(self) -> dict[str, tf_keras.layers.Layer]:
        """Every layer that owns variables, by canonical scope, in the order of the forward pass."""
        self.build()
        return layers.weighted_layers(self)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable by canonical name, moving statistics included, in the order of the forward pass."""
        self.build()
        return layers.named_variables(self)

    def regularizers(self) -> dict[str, layers.Regularizer]:
        """Regulariser by canonical variable name, for the variables that have one."""
        self.build()
        return layers.regularizers(self)

    def tf2_names(self) -> dict[str, str]:
        """Canonical name -> the full name the OD API's TF2 checkpoints store for the same variable.

        Most layers are numbered by Keras in the order in which a program creates them. These are the names in a program
        that creates nothing before the detector; in others only `tf2_objects` finds the variables.
        """
        variables, numbering = self.named_variables(), Numbering()
        scopes: dict[str, str] = {}
        numbered = [self.neck, *self.head]
        for part in numbered if self._extractor.backbone_rules else [self.backbone, *numbered]:
            scopes |= part.tf2_names(numbering)
        names = {}
        for name in variables:
            scope, _, leaf = name.rpartition("/")
            rules = [] if scope in scopes else self._extractor.backbone_rules
            names[name] = apply_rules(f"{scopes.get(scope, scope)}/{leaf}", [*rules, *_TF2_LEAVES])
        return names

    def tf2_objects(self) -> fields.ObjectTree:
        """The detector's node in the object graph of the OD API's TF2 checkpoints."""
        self.build()
        parameters: fields.ObjectTree = {}
        for task in (self._center, *self._tasks):
            parameters |= task.tf2_objects()
        return {
            "_feature_extractor": {
                "_channel_means": {},
                "_channel_stds": {},
                **self._extractor.tf2_objects(self.backbone, self.neck),
            },
            **parameters,
            "_prediction_head_dict": {head.spec.name: head.tf2_objects() for head in self.head},
            "_target_assigner_dict": {},
            "_batched_prediction_tensor_names": {},
            "_groundtruth_lists": {},
        }

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Under which names published classification nets have the backbone."""
        return self._extractor.vocabularies

    def part(self, name: str) -> str:
        """`backbone`, `neck` or `head`: what a canonical variable name belongs to."""
        if not self._parts:
            self.build()
            for part in ("backbone", "neck", "head"):
                self._parts.update(dict.fromkeys(layers.weighted_layers(getattr(self, part)), part))
        return self._parts[name.rpartition("/")[0]]

    def stages(self) -> list[fields.Stage]:
        """The steps of the network from the input on: the backbone's blocks, `neck`, `head`."""
        self.build()
        parts = [("neck", self.neck), ("head", self.head)]
        return stages.backbone_stages(self.backbone.blocks()) + [
            stage for name, module in parts for stage in stages.part_stage(name, module)
        ]

    def is_class_head(self, name: str) -> bool:
        """Whether this variable's shape depends on the number of classes."""
        return self.class_layout(name) is not None

    def class_layout(self, name: str) -> fields.ClassLayout | None:
        """Where in a variable each class has its outputs; None for a variable that is the same for all classes."""
        return next(filter(None, (head.class_layout(name) for head in self.head)), None)
