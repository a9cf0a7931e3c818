"""The tasks of a CenterNet: what each predicts, learns and adds to the detections. The maths is in
`boxes/center_*.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_decode, center_objects
from od_finetune.boxes.center_grid import Grid
from od_finetune.models.heads.center import HeadOptions, HeadSpec

Maps = dict[str, list[tf.Tensor]]

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


class Task(Protocol):
    """One thing that a CenterNet predicts."""

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """What its heads predict."""

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name. `maps`: by head, one per output of the network."""

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        """The scene with what this task says of the objects. `maps`: by head, of the last output."""

    def tf2_objects(self) -> fields.ObjectTree:
        """What its parameters are in the object graph of the OD API's TF2 checkpoints: lists that hold nothing."""


class Center(NamedTuple):
    """Objects as peaks of heat maps."""

    targets: center_objects.ObjectCenters
    num_classes: int
    options: HeadOptions = HeadOptions()
    bias_init: float = -2.19

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return (HeadSpec(OBJECT_CENTER, self.num_classes, self.options, self.bias_init, per_class=True),)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        return {OBJECT_CENTER: self.targets.losses(maps[OBJECT_CENTER], groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], grid: Grid) -> Scene:
        """The objects' classes, scores and cells."""
        heat, peaks = self.targets.decode(maps[OBJECT_CENTER], grid)
        return Scene(peaks, heat, grid)

    def tf2_objects(self) -> fields.ObjectTree:
        names = ("keypoint_weights_for_center", "center_head_num_filters", "center_head_kernel_sizes")
        return {"_center_params": named_tuple(names, 6)}


class Boxes(NamedTuple):
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


def head_lists(*heads: str) -> tuple[str, ...]:
    """Names of the lists that the OD API's parameters of a task hold for its heads."""
    return tuple(f"{head}_head_{what}" for head in heads for what in ("num_filters", "kernel_sizes"))


def named_tuple(names: tuple[str, ...], *positions: int) -> fields.ObjectTree:
    """A named tuple in an object graph: each list in it is held by its name and by its position. A single position is
    that of the first list, others follow it."""
    if len(positions) == 1:
        positions = tuple(range(positions[0], positions[0] + len(names)))
    lists: dict[str, fields.ObjectTree] = {name: {} for name in names}
    return {**lists, **{str(position): lists[name] for name, position in zip(names, positions, strict=True)}}
