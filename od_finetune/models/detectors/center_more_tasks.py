"""CenterNet's masks, DensePose, tracks and temporal offsets."""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf
import tf_keras

from od_finetune import fields
from od_finetune.boxes import center_dense_pose, center_masks, center_tracking
from od_finetune.boxes.center_grid import Grid, gather_cells
from od_finetune.errors import UserError
from od_finetune.models import tf2_objects
from od_finetune.models.detectors.center_tasks import (
    Maps,
    Scene,
    Task,
    check_loaded,
    head_lists,
    is_training,
    named_tuple,
)
from od_finetune.models.heads.center import SCOPE, HeadOptions, HeadSpec
from od_finetune.models.keras_names import Numbering

MASK = "segmentation/heatmap"
PARTS, SURFACE = "densepose/heatmap", "densepose/regression"
EMBEDDING = "track/reid"
TEMPORAL_OFFSET = "track/offset"


@dataclasses.dataclass(frozen=True)
class Masks(Task):
    """A map per class, cut out by the objects' boxes."""

    targets: center_masks.Masks
    num_classes: int
    options: HeadOptions = HeadOptions()
    bias_init: float = -2.19

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return (HeadSpec(MASK, self.num_classes, self.options, self.bias_init, per_class=True),)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        check_loaded("mask_estimation_task", "load_instance_masks", groundtruth.masks)
        return {MASK: self.targets.losses(maps[MASK], groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        boxes = scene.detections().boxes
        return scene.knowing(masks=self.targets.decode(maps[MASK], boxes, scene.peaks.channels, scene.grid))

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_mask_params": named_tuple(head_lists("mask"), 6)}


@dataclasses.dataclass(frozen=True)
class DensePose(Task):
    """Body parts and surface coordinates within the masks, which have to be decoded before."""

    targets: center_dense_pose.DensePose
    bias_init: float = -2.19

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        count = self.targets.num_parts
        return HeadSpec(PARTS, count, bias_init=self.bias_init), HeadSpec(SURFACE, 2 * count)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        check_loaded("densepose_estimation_task", "load_dense_pose", groundtruth.dense_pose_num_points,
                     groundtruth.dense_pose_part_ids, groundtruth.dense_pose_surface_coords)
        parts, surface = self.targets.losses(maps[PARTS], maps[SURFACE], groundtruth, grid)
        return {PARTS: parts, SURFACE: surface}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        boxes, masks = scene.detections().boxes, scene.more["masks"]
        masks, surface = self.targets.decode(
            maps[PARTS], maps[SURFACE], masks, boxes, scene.peaks.channels, scene.grid
        )
        return scene.knowing(masks=masks, surface_coords=surface)

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_densepose_params": {}}


class TrackClassifier(tf.Module):
    """From an embedding to the track it is of: fully connected layers, with norm and ReLU between them. Needed for the
    loss only.

    While training, it also classifies what is at the boxes that images are padded with. They are in no loss, but in
    what its batch norms learn from, as in the OD API with `unpad_groundtruth_tensors: false`; with `true`, its default,
    it leaves them out, and has no statistics of a batch without any object.

    Args:
      size: of embeddings.
      num_ids: tracks in the training data.
      num_layers: num_fc_layers.
    """

    def __init__(self, size: int, num_ids: int, num_layers: int):
        super().__init__()
        self._size = size
        scope = f"{SCOPE}/track/classifier"
        self._hidden = [
            (
                tf_keras.layers.Dense(size, name=f"{scope}/fc_{number}"),
                tf_keras.layers.BatchNormalization(name=f"{scope}/fc_{number}/BatchNorm"),
            )
            for number in range(num_layers - 1)
        ]
        self._output = tf_keras.layers.Dense(num_ids, name=f"{scope}/output")

    def __call__(self, embeddings: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[..., E]` -> logits `[..., num_ids]`."""
        outputs = tf.reshape(embeddings, [-1, self._size])
        for dense, norm in self._hidden:
            outputs = tf.nn.relu(norm(dense(outputs), training=training))
        outputs = self._output(outputs)
        return tf.reshape(outputs, tf.concat([tf.shape(embeddings)[:-1], tf.shape(outputs)[-1:]], 0))

    def build(self) -> None:
        """Creates the variables."""
        self(tf.zeros([1, self._size]))

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope -> full name in the OD API's TF2 checkpoints."""
        names = {}
        for dense, norm in self._hidden:
            names |= {dense.name: numbering.next("dense"), norm.name: numbering.next("batch_normalization")}
        return {**names, self._output.name: numbering.next("dense")}

    def tf2_objects(self) -> fields.ObjectTree:
        """A sequential model."""
        hidden = [node for pair in self._hidden for node in (*map(tf2_objects.layer, pair), {})]
        return tf2_objects.sequential([*hidden, tf2_objects.layer(self._output)])


@dataclasses.dataclass(frozen=True)
class Tracks(Task):
    """An embedding that tells objects apart."""

    targets: center_tracking.Tracks
    size: int  # reid_embed_size
    classifier: TrackClassifier

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return (HeadSpec(EMBEDDING, self.size),)

    @property
    def modules(self) -> tuple[tf.Module, ...]:
        return (self.classifier,)

    def build(self) -> None:
        self.classifier.build()

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        check_loaded("track_estimation_task", "load_track_id", groundtruth.track_ids)
        classify = functools.partial(self.classifier, training=is_training(maps))
        return {EMBEDDING: self.targets.losses(maps[EMBEDDING], classify, groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        return scene.knowing(embeddings=center_tracking.embeddings_at(maps[EMBEDDING], scene.peaks.cells))

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        return self.classifier.tf2_names(numbering)

    def tf2_objects(self) -> fields.ObjectTree:
        return {"track_reid_classification_net": self.classifier.tf2_objects(), "_track_params": {}}


@dataclasses.dataclass(frozen=True)
class TemporalOffsets(Task):
    """How far an object has moved since the frame before."""

    targets: center_tracking.TemporalOffsets

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return (HeadSpec(TEMPORAL_OFFSET, 2),)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        if groundtruth.temporal_offsets is None or groundtruth.track_match_flags is None:
            raise UserError("model.center_net.temporal_offset_task learns from temporal offsets and match flags, which "
                            "no reader of records loads; remove the task")
        return {TEMPORAL_OFFSET: self.targets.losses(maps[TEMPORAL_OFFSET], groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        return scene.knowing(temporal_offsets=gather_cells(maps[TEMPORAL_OFFSET], scene.peaks.cells))

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_temporal_offset_params": {}}
