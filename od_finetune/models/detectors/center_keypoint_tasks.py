"""CenterNet's keypoints: of one class of objects or of several, each a task of the config."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_keypoint_decode, center_keypoint_results, center_keypoints
from od_finetune.boxes.center_grid import Grid
from od_finetune.models.detectors.center_tasks import Maps, Scene, Task, check_keypoints, head_lists, named_tuple
from od_finetune.models.heads.center import HeadOptions, HeadSpec

# Places of the lists among the OD API's parameters: what the keypoints are, then the heads.
_TF2_LISTS = ("keypoint_indices", "keypoint_labels", "keypoint_std_dev", *head_lists("heatmap", "offset", "regress"))
_TF2_POSITIONS = (2, 5, 6, 27, 28, 29, 30, 31, 32)


class KeypointOptions(NamedTuple):
    """How the heads of one task look."""

    heatmap: HeadOptions = HeadOptions()
    offset: HeadOptions = HeadOptions()
    regress: HeadOptions = HeadOptions()
    bias_init: float = -2.19
    per_keypoint_offset: bool = False
    predict_depth: bool = False
    per_keypoint_depth: bool = False


class KeypointPart(NamedTuple):
    """The keypoints of one class of objects."""

    name: str  # task_name
    targets: center_keypoints.Keypoints
    decoder: center_keypoint_decode.KeypointDecoder
    options: KeypointOptions = KeypointOptions()
    clip: bool = False  # clip_out_of_frame_keypoints
    rescore: bool = False  # rescore_instances
    rescoring_threshold: float = 0.0

    @property
    def heatmap(self) -> str:
        """Names of heads, losses and predictions."""
        return f"{self.name}/keypoint/heatmap"

    @property
    def regression(self) -> str:
        return f"{self.name}/keypoint/regression"

    @property
    def offset(self) -> str:
        return f"{self.name}/keypoint/offset"

    @property
    def depth(self) -> str:
        return f"{self.name}/keypoint/depth"

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        options, count = self.options, len(self.targets.indices)
        heads = [
            HeadSpec(self.heatmap, count, options.heatmap, options.bias_init),
            HeadSpec(self.regression, 2 * count, options.regress),
            HeadSpec(self.offset, 2 * count if options.per_keypoint_offset else 2, options.offset),
        ]
        if options.predict_depth:
            heads.append(HeadSpec(self.depth, count if options.per_keypoint_depth else 1))
        return tuple(heads)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        """By name."""
        check_keypoints(groundtruth, self.targets.indices, self.options.predict_depth)
        depths = maps[self.depth] if self.options.predict_depth else None
        predictions = center_keypoints.Predictions(
            maps[self.heatmap], maps[self.offset], maps[self.regression], depths
        )
        losses = self.targets.losses(predictions, groundtruth, grid)
        named = {self.heatmap: losses.heat, self.offset: losses.offset, self.regression: losses.regression}
        return named if losses.depth is None else {**named, self.depth: losses.depth}

    def find(self, maps: dict[str, tf.Tensor], scene: Scene) -> center_keypoint_results.Found:
        """The keypoints of the objects of its class, relative to the image; zeros for other objects."""
        depths = maps[self.depth] if self.options.predict_depth else None
        own = center_keypoint_decode.Maps(maps[self.heatmap], maps[self.offset], maps[self.regression], depths)
        found = self.decoder(own, scene.peaks.cells, scene.boxes)
        found = center_keypoint_results.normalized(found, scene.grid, self.clip)
        return center_keypoint_results.for_class(found, scene.are_of(self.targets.class_id))


@dataclasses.dataclass(frozen=True)
class KeypointTasks(Task):
    """All keypoint tasks together: their keypoints share one list, in the order of the label map's ids.

    Args:
      parts: one per task.
      total: of types of keypoints.
    """

    parts: tuple[KeypointPart, ...]
    total: int

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return tuple(head for part in self.parts for head in part.heads)

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = {}
        for part in self.parts:
            found |= part.losses(maps, groundtruth, grid)
        return found

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        found = [part.find(maps, scene) for part in self.parts]
        scores = scene.peaks.scores
        for part, own in zip(self.parts, found, strict=True):
            if part.rescore:
                wanted = scene.are_of(part.targets.class_id)
                scores = center_keypoint_results.rescore(scores, own.scores, wanted, part.rescoring_threshold)
        indices = [part.targets.indices for part in self.parts]
        merged = center_keypoint_results.merge(list(zip(found, indices, strict=True)), self.total)
        scene = scene._replace(peaks=scene.peaks._replace(scores=scores))
        scene = scene.knowing(keypoints=merged.points, keypoint_scores=merged.scores)
        if merged.depths is not None:
            scene = scene.knowing(keypoint_depths=merged.depths)
        if scene.boxes is None:
            boxes = center_keypoint_results.enclosing_boxes(found[0].points)
            for own in found[1:]:  # zeros but for the objects of its class
                boxes += center_keypoint_results.enclosing_boxes(own.points)
            scene = scene.knowing(boxes=boxes, raw_boxes=boxes)
        return scene

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_kp_params_dict": {part.name: named_tuple(_TF2_LISTS, *_TF2_POSITIONS) for part in self.parts}}
