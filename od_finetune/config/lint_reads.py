"""Checks that a reader reads what the model learns from and the metrics measure, and that the model predicts it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from od_finetune.config.finding import ERROR, WARNING, Finding
from od_finetune.config.kinds import context_size
from od_finetune.protos import eval_pb2, input_reader_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

_MASKS, _KEYPOINTS, _DEPTHS = "load_instance_masks", "num_keypoints", "load_keypoint_depth_features"
_DENSE_POSE, _TRACKS = "load_dense_pose", "load_track_id"
# Field of an input reader -> what to do where it is not set.
_HINTS = {
    _MASKS: "set it, and mask_type as the records have it",
    _KEYPOINTS: "set it to the number that each object of the records has",
    _DEPTHS: "set it",
    _DENSE_POSE: "set it",
    _TRACKS: "set it",
}
# Field of an input reader -> what of it metrics measure, and which models predict that.
_PREDICTORS = {
    _MASKS: ("masks", "a Mask R-CNN (mask_rcnn_box_predictor with predict_instance_masks: true, number_of_stages: 3) "
             "or a CenterNet with a mask task"),
    _KEYPOINTS: ("keypoints", "a CenterNet with a keypoint_estimation_task"),
}  # fmt: skip
# Task of a CenterNet -> the field of the reader that loads what it learns from.
_TASKS = {
    "mask_estimation_task": _MASKS,
    "deepmac_mask_estimation": _MASKS,
    "densepose_estimation_task": _DENSE_POSE,
    "track_estimation_task": _TRACKS,
    "keypoint_estimation_task": _KEYPOINTS,
}


Needs = Iterator[tuple[str, str]]
"""Fields of the reader that have to be set, each with the reason: `... learns from it`."""


def for_training(path: str, reader: input_reader_pb2.InputReader, config: TrainEvalPipelineConfig) -> list[Finding]:
    """What the model learns from has to be read."""
    found = _missing(path, reader, _learnt(config))
    if config.model.center_net.HasField("temporal_offset_task"):
        text = "is set, but no reader of records loads the offsets that it learns from"
        found.append(Finding(ERROR, "model.center_net.temporal_offset_task", text, "take it out to train"))
    return found + _context(path, reader, config)


def for_evaluation(path: str, reader: input_reader_pb2.InputReader, config: TrainEvalPipelineConfig) -> list[Finding]:
    """What the metrics measure has to be read, and what the losses, which an evaluation computes too, are of."""
    found = _missing(path, reader, itertools.chain(_measured(config.eval_config), _learnt(config)))
    return found + _context(path, reader, config)


def _context(path: str, reader: input_reader_pb2.InputReader, config: TrainEvalPipelineConfig) -> list[Finding]:
    """A model can do without its context bank, but seldom is that what was meant."""
    if context_size(config.model) is None or reader.load_context_features:
        return []
    text = "is not set: regions attend to an empty bank, and model.faster_rcnn.context_config learns nothing"
    hint = "set it where records hold image/context_features, or remove context_config"
    return [Finding(WARNING, f"{path}.load_context_features", text, hint)]


def _learnt(config: TrainEvalPipelineConfig) -> Needs:
    """What the model learns from beside boxes and classes."""
    two_stage, center_net = config.model.faster_rcnn, config.model.center_net
    predictor = two_stage.second_stage_box_predictor.mask_rcnn_box_predictor
    if two_stage.number_of_stages == 3 and predictor.predict_instance_masks:
        at = "model.faster_rcnn.second_stage_box_predictor.mask_rcnn_box_predictor"
        yield _MASKS, f"{at}.predict_instance_masks learns from it"
    used = {field.name for field, _ in center_net.ListFields()}
    for task, field in _TASKS.items():
        if task in used:
            yield field, f"model.center_net.{task} learns from it"
    for index, task in enumerate(center_net.keypoint_estimation_task):
        if task.predict_depth:
            yield _DEPTHS, f"model.center_net.keypoint_estimation_task[{index}].predict_depth learns from it"


def _measured(settings: eval_pb2.EvalConfig) -> Needs:
    if "coco_mask_metrics" in settings.metrics_set:
        yield _MASKS, "eval_config.metrics_set holds coco_mask_metrics"
    if "coco_keypoint_metrics" in settings.metrics_set:
        yield _KEYPOINTS, "eval_config.metrics_set holds coco_keypoint_metrics"
    elif settings.parameterized_metric:
        yield _KEYPOINTS, "eval_config.parameterized_metric asks for coco_keypoint_metrics"


def _missing(path: str, reader: input_reader_pb2.InputReader, needs: Iterable[tuple[str, str]]) -> list[Finding]:
    """One finding for each field that is not set."""
    reasons: dict[str, list[str]] = {}
    for field, reason in needs:
        if not getattr(reader, field):
            reasons.setdefault(field, []).append(reason)
    return [
        Finding(ERROR, f"{path}.{field}", f"{'is 0' if field == _KEYPOINTS else 'is not set'}, but {' and '.join(why)}",
                _HINTS[field])
        for field, why in reasons.items()
    ]


def predicted(config: TrainEvalPipelineConfig) -> Iterator[Finding]:
    """What the metrics measure has to be predicted."""
    learnt = {field for field, _ in _learnt(config)}
    for field, reason in _measured(config.eval_config):
        if field not in learnt:
            at, text = reason.split(" ", 1)
            what, hint = _PREDICTORS[field]
            yield Finding(ERROR, at, f"{text}, but the model predicts no {what}", f"take it out, or choose {hint}")
