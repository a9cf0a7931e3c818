"""The tasks of a CenterNet: what each predicts, learns and adds to the detections. The maths is in
`boxes/center_*.py`; `center_keypoint_tasks` and `center_more_tasks` have the others."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_decode, center_keypoints, center_objects, center_targets
from od_finetune.boxes.center_grid import Grid
from od_finetune.errors import UserError
from od_finetune.models.heads.center import HeadOptions, HeadSpec
from od_finetune.models.keras_names import Numbering

Maps = dict[str, list[tf.Tensor]]

TRAINING = "training"  # bool [], among the maps: whether they are those of a training step

OBJECT_CENTER = "object_center"
BOX_SCALE, BOX_OFFSET = "box/scale", "box/offset"


class Scene(NamedTuple):
    """The objects of a batch of images, as far as they are decoded."""

    peaks: center_decode.Peaks
    heat: tf.Tensor  # float32 [B, height, width, C], probabilities
    grid: Grid
    boxes: tf.Tensor | None = None  # float32 [B, D, 4] in cells
    more: Mapping[str, tf.Tensor] = {}  # fields of Detections

    def detections(self) -> fields.Detections:
        """What is known, as detections. Where nothing predicts boxes they are the centres, without extent."""
        boxes = self.boxes
        if boxes is None:
            boxes = tf.tile(tf.cast(self.peaks.cells, tf.float32), [1, 1, 2])
        return center_decode.detections(self.peaks, self.heat, boxes, self.grid)._replace(**self.more)

    def knowing(self, **more: tf.Tensor) -> Scene:
        """The same with further fields of Detections."""
        return self._replace(more={**self.more, **more})

    def are_of(self, class_id: int) -> tf.Tensor:
        """bool `[B, D]`: which objects are of a class (0-based)."""
        return (self.peaks.channels == class_id) & (self.peaks.scores > 0.0)


class Task(abc.ABC):
    """One thing that a CenterNet predicts."""

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[HeadSpec, ...]:
        """What its heads predict."""

    @property
    def modules(self) -> tuple[tf.Module, ...]:
        """What has weights beside the heads."""
        return ()

    def build(self) -> None:  # noqa: B027
        """Creates the variables of `modules`."""

    @abc.abstractmethod
    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name. `maps`: by head, one per output of the network."""

    @abc.abstractmethod
    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        """The scene with what this task says of the objects. `maps`: by head, of the last output."""

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope -> full name in the OD API's TF2 checkpoints, of the layers of `modules`."""
        del numbering
        return {}

    def tf2_objects(self) -> fields.ObjectTree:
        """What the detector has of it in the object graph of those checkpoints, beside the heads."""
        return {}


class KeypointCenters(NamedTuple):
    """Centres that are a weighted mean of keypoints instead of the middle of a box."""

    class_id: int  # 0-based
    indices: Sequence[int]  # of the keypoints among all of the ground truth
    weights: Sequence[float]  # keypoint_weights_for_center


@dataclasses.dataclass(frozen=True)
class Center:
    """Objects as peaks of heat maps: the task that all others build on."""

    targets: center_objects.ObjectCenters
    num_classes: int
    options: HeadOptions = HeadOptions()
    bias_init: float = -2.19
    from_keypoints: KeypointCenters | None = None

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """One heat map per class."""
        return (HeadSpec(OBJECT_CENTER, self.num_classes, self.options, self.bias_init, per_class=True),)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        """See `Task`."""
        logits, keypoints = maps[OBJECT_CENTER], self.from_keypoints
        if keypoints is None:
            return {OBJECT_CENTER: self.targets.losses(logits, groundtruth, grid)}
        check_keypoints(groundtruth, keypoints.indices)
        labels = center_keypoints.select(groundtruth, keypoints.class_id, keypoints.indices, grid)
        heat = center_targets.keypoint_center_heat_map(
            labels.points, labels.weights, keypoints.weights, groundtruth.classes, groundtruth.weights, grid,
            self.targets.min_iou, self.targets.static,
        )  # fmt: skip
        return {OBJECT_CENTER: self.targets.losses_of(heat, logits, groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], grid: Grid) -> Scene:
        """The objects' classes, scores and cells."""
        heat, peaks = self.targets.decode(maps[OBJECT_CENTER], grid)
        return Scene(peaks, heat, grid)

    def tf2_objects(self) -> fields.ObjectTree:
        """See `Task`."""
        return {"_center_params": named_tuple(("keypoint_weights_for_center", *head_lists("center")), 6)}


@dataclasses.dataclass(frozen=True)
class Boxes(Task):
    """Height, width and the centre's place within its cell."""

    targets: center_objects.Boxes
    scale_options: HeadOptions = HeadOptions()
    offset_options: HeadOptions = HeadOptions()

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return HeadSpec(BOX_SCALE, 2, self.scale_options), HeadSpec(BOX_OFFSET, 2, self.offset_options)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        scale, offset = self.targets.losses(maps[BOX_SCALE], maps[BOX_OFFSET], groundtruth, grid)
        return {BOX_SCALE: scale, BOX_OFFSET: offset}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        boxes = center_decode.boxes_at(scene.peaks.cells, maps[BOX_SCALE], maps[BOX_OFFSET])
        return scene._replace(boxes=boxes)

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_od_params": named_tuple(head_lists("scale", "offset"), 4)}


def is_training(maps: Maps) -> bool:
    """Whether maps are those of a training step."""
    return bool(tf.get_static_value(maps[TRAINING]))


def check_loaded(task: str, field: str, *values: tf.Tensor | None) -> None:
    """Raises a UserError where the input reader has not loaded what a task learns from."""
    if any(value is None for value in values):
        raise UserError(f"model.center_net.{task} learns from what the input reader does not load; set {field}: true "
                        "in train_input_reader (and eval_input_reader), or remove the task")


def check_keypoints(groundtruth: fields.Groundtruth, indices: Sequence[int], depths: bool = False) -> None:
    """Raises a UserError where the input reader has not loaded the keypoints `indices`, or their depths."""
    found = 0 if groundtruth.keypoints is None else groundtruth.keypoints.shape[2]
    if found is not None and found <= max(indices):
        raise UserError(f"model.center_net.keypoint_estimation_task learns keypoint {max(indices)} (from 0), but the "
                        f"input reader loads {found} per object; set num_keypoints in train_input_reader (and "
                        "eval_input_reader) to the number that the records have")
    if depths and groundtruth.keypoint_depths is None:
        raise UserError("model.center_net.keypoint_estimation_task.predict_depth learns from what the input reader "
                        "does not load; set load_keypoint_depth_features: true in it")


def head_lists(*heads: str) -> tuple[str, ...]:
    """Names of the lists that the OD API's parameters of a task hold for its heads."""
    return tuple(f"{head}_head_{what}" for head in heads for what in ("num_filters", "kernel_sizes"))


def named_tuple(names: tuple[str, ...], *positions: int) -> fields.ObjectTree:
    """A named tuple in an object graph: each list in it is held by its name and by its position. A single position is
    that of the first list, the others follow it."""
    if len(positions) == 1:
        positions = tuple(range(positions[0], positions[0] + len(names)))
    lists: dict[str, fields.ObjectTree] = {name: {} for name in names}
    return {**lists, **{str(position): lists[name] for name, position in zip(names, positions, strict=True)}}
