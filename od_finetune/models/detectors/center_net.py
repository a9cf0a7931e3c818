"""CenterNet (Zhou et al. 2019, arXiv:1904.07850): an object is a point, the peak of a heat map; everything else about
it is predicted there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes.center_grid import Grid
from od_finetune.boxes.nms import MulticlassNms
from od_finetune.models import layers, stages
from od_finetune.models.detectors.base import TF2_LEAVES, Inputs, NetworkDetector
from od_finetune.models.detectors.center_tasks import TRAINING, Center, Maps, Task
from od_finetune.models.heads.center import CenterHead
from od_finetune.models.keras_names import Numbering
from od_finetune.names import Rules, Vocabulary, apply_rules

STRIDE = 4  # pixels per cell of every output
INPUTS = "preprocessed_inputs"
TRUE_SHAPES = "true_shapes"  # int32 [B, 3]


class Extractor(NamedTuple):
    """Backbone and neck, with what a CenterNet has to know of them."""

    backbone: tf.Module  # (images, training) -> {level: features}
    neck: tf.Module  # ({level: features}, training) -> [feature map], all at STRIDE
    num_maps: int
    multiple: int  # of which the input's height and width have to be
    numbered: tuple[tf.Module, ...]  # those of the two whose layers Keras numbers in TF2; they have `tf2_names`
    tf2_objects: Callable[[tf.Module, tf.Module], fields.ObjectTree]  # (backbone, neck) -> the extractor's attributes
    backbone_rules: Rules = []  # canonical name -> TF2 name, where the backbone's layers have fixed names there
    vocabularies: tuple[Vocabulary, ...] = ()


class CenterNet(NetworkDetector):
    """Fulfils `fields.Detector`.

    Args:
      extractor: see `Extractor`.
      center: the task that finds objects.
      tasks: what else is predicted of objects, in the order in which decoding needs their results.
      inputs: see `Inputs`.
      num_classes: without background; there is none.
      use_depthwise: separable convolutions in the heads.
      nms: leaves out boxes of one object; None leaves this to the heat maps, in which neighbours are no peaks.
    """

    def __init__(
        self,
        extractor: Extractor,
        center: Center,
        tasks: tuple[Task, ...],
        inputs: Inputs,
        num_classes: int,
        use_depthwise: bool = False,
        nms: MulticlassNms | None = None,
    ):
        super().__init__(inputs, num_classes, {"backbone": extractor.backbone_rules}, extractor.vocabularies)
        self.backbone, self.neck = extractor.backbone, extractor.neck
        specs = [spec for task in (center, *tasks) for spec in task.heads]
        self.heads = [CenterHead(spec, extractor.num_maps, use_depthwise) for spec in specs]
        self.further = [module for task in tasks for module in task.modules]
        self._extractor, self._nms = extractor, nms
        self._center, self._tasks = center, tuple(tasks)

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised inputs `[B, h, w, 3]`, true shapes `[B, 3]` -> `preprocessed_inputs`, `true_shapes`, `training`
        and for each head, e.g. `object_center` or `box/scale`, a list: its prediction `[B, h / 4, w / 4, C]` (heat maps
        are logits) from each output of the network."""
        about = {INPUTS: inputs, TRUE_SHAPES: true_shapes, TRAINING: tf.constant(training)}
        return {**about, **self._forward(inputs, training)}

    def _forward(self, inputs: tf.Tensor, training: bool) -> Maps:
        images = layers.pad_to_multiple(inputs, self._extractor.multiple)
        feature_maps = self.neck(self.backbone(images, training), training)
        return {head.spec.name: head(feature_maps, training) for head in self.heads}

    def _call_layers(self, images: tf.Tensor) -> None:
        self._forward(images, training=False)
        for task in self._tasks:
            task.build()

    def _modules_of_parts(self) -> dict[str, list[tf.Module]]:
        return {"backbone": [self.backbone], "neck": [self.neck]}

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: fields.Groundtruth) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name; their sum is what is minimised (without regularisation)."""
        grid = self._grid(predictions)
        groundtruth = _on_grid(groundtruth, grid)
        found: dict[str, tf.Tensor] = {}
        for task in (self._center, *self._tasks):
            losses = task.losses(predictions, groundtruth, grid)
            found |= {f"{fields.LOSSES}{name}": loss for name, loss in losses.items()}
        return found

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> fields.Detections:
        """Raw predictions -> final detections, relative to the true part of the image."""
        del true_shapes  # predict has put them into the predictions
        maps = {head.spec.name: predictions[head.spec.name][-1] for head in self.heads}
        scene = self._center.decode(maps, self._grid(predictions))
        for task in self._tasks:
            scene = task.decode(maps, scene)
        detections = scene.detections()
        return detections if self._nms is None else _suppressed(detections, self._nms)

    def _grid(self, predictions: dict[str, tf.Tensor]) -> Grid:
        height, width = layers.spatial_shape(predictions[self.heads[0].spec.name][-1])
        return Grid(predictions[TRUE_SHAPES], STRIDE, height, width)

    def tf2_names(self) -> dict[str, str]:
        """Canonical name -> the full name the OD API's TF2 checkpoints store for the same variable.

        Most layers are numbered by Keras in the order in which a program creates them. These are the names in a program
        that creates nothing before the detector; in others only `tf2_objects` finds the variables.
        """
        variables, numbering = self.named_variables(), Numbering()
        scopes: dict[str, str] = {}
        for part in (*self._extractor.numbered, *self.heads, *self._tasks):
            scopes |= part.tf2_names(numbering)
        names = {}
        for name in variables:
            scope, _, leaf = name.rpartition("/")
            rules = [] if scope in scopes else self._extractor.backbone_rules
            names[name] = apply_rules(f"{scopes.get(scope, scope)}/{leaf}", [*rules, *TF2_LEAVES])
        return names

    def tf2_objects(self) -> fields.ObjectTree:
        """The detector's node in the object graph of the OD API's TF2 checkpoints."""
        self.build()
        parameters: fields.ObjectTree = {}
        for task in (self._center, *self._tasks):
            for name, node in task.tf2_objects().items():
                parameters[name] = {**parameters[name], **node} if name in parameters else node
        return {
            "_feature_extractor": {
                "_channel_means": {},
                "_channel_stds": {},
                **self._extractor.tf2_objects(self.backbone, self.neck),
            },
            **parameters,
            "_prediction_head_dict": {head.spec.name: head.tf2_objects() for head in self.heads},
            "_target_assigner_dict": {},
            "_batched_prediction_tensor_names": {},
            "_groundtruth_lists": {},
        }

    def stages(self) -> list[fields.Stage]:
        """The steps of the network from the input on: the backbone's blocks, `neck`, `head`."""
        self.build()
        found = stages.backbone_stages(self.backbone.blocks()) + stages.part_stage("neck", self.neck)
        return found + self._rest_of(found, "head")

    def is_class_head(self, name: str) -> bool:
        """Whether this variable's shape depends on the number of classes."""
        return self.class_layout(name) is not None

    def class_layout(self, name: str) -> fields.ClassLayout | None:
        """Where in a variable each class has its outputs; None for a variable that is the same for all classes."""
        return next(filter(None, (head.class_layout(name) for head in self.heads)), None)


def _on_grid(groundtruth: fields.Groundtruth, grid: Grid) -> fields.Groundtruth:
    """Masks zero-padded as the network pads its input, to all that the grid covers."""
    if groundtruth.masks is None:
        return groundtruth
    shape = tf.shape(groundtruth.masks)
    missing = [tf.maximum(cells * grid.stride - shape[2 + i], 0) for i, cells in enumerate((grid.height, grid.width))]
    return groundtruth._replace(masks=tf.pad(groundtruth.masks, [[0, 0], [0, 0], *([0, each] for each in missing)]))


def _suppressed(detections: fields.Detections, nms: MulticlassNms) -> fields.Detections:
    """What non-maximum suppression leaves; scores and classes are then those of all classes' scores at a peak."""
    # What fills up the peaks is none, whatever the heat there.
    peaks = tf.sequence_mask(detections.num_detections, tf.shape(detections.scores)[1])[..., tf.newaxis]
    selected = nms(detections.boxes, tf.where(peaks, detections.multiclass_scores, tf.float32.min))
    rest = {
        name: selected.gather(value)
        for name, value in detections._asdict().items()
        if value is not None and name not in (*_SELECTED, "raw_boxes", "raw_scores")
    }
    return detections._replace(**{name: getattr(selected, name) for name in _SELECTED}, **rest)


_SELECTED = ("boxes", "scores", "classes", "num_detections")
