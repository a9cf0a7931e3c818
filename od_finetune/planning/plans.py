"""From a pipeline.config to its detector and plans, with nothing trained, restored or written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import experiment, fields
from od_finetune.checkpoints.plan import RestorePlan
from od_finetune.config import lint, pipeline, training
from od_finetune.config.detector import build_detector
from od_finetune.config.finding import ERROR, Finding
from od_finetune.errors import MissingError, UserError
from od_finetune.training import probe
from od_finetune.training.freeze import FreezePlan
from od_finetune.training.schedules import constant
from od_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Of a photograph, for resizers whose result depends on what comes in: height and width.
_PHOTOGRAPH = (480, 640)
# DensePose points of an object: about as many as COCO's people have. The reader takes what records hold.
_POINTS = 100
# Fields about files: plans don't need them.
_FILES = ("train_input_reader", "train_config.fine_tune_checkpoint", "train_config.restore")
_PLACEHOLDER = "PATH_TO_BE_CONFIGURED"


class Restore(NamedTuple):
    """The restore plan, or why there is none."""

    plan: RestorePlan | None = None
    missing: str = ""  # why there is no plan although the config asks for one
    refused: bool = False  # whether a run would stop at this; a checkpoint that merely is not here may be elsewhere


class Plans(NamedTuple):
    """A config, the built detector it describes, and what would be done to it."""

    config: pipeline.TrainEvalPipelineConfig
    detector: fields.Detector
    restore: Restore
    freeze: FreezePlan


def prepare(
    path: str, overrides: Sequence[str] = (), *, restore: bool = True, allow_unhonoured: bool = False
) -> Plans:
    """Builds the detector and computes both plans; neither records nor the checkpoint have to be there.

    Args:
      overrides: as `--set` gives them.
      restore: False leaves the checkpoint alone.
      allow_unhonoured: go on without fields that are not honoured.

    Raises:
      UserError: the config can't be used; the message says what to do.
    """
    config = checked(pipeline.load(path, overrides), path, allow_unhonoured)
    detector = build_detector(config.model)
    detector.build()
    return Plans(
        config,
        detector,
        _restore(detector, config) if restore else Restore(missing="not looked for"),
        experiment.freeze_plan(detector, config),
    )


def checked(
    config: pipeline.TrainEvalPipelineConfig, path: str, allow_unhonoured: bool
) -> pipeline.TrainEvalPipelineConfig:
    """The config, after lint's checks of model and train_config; what lint says of missing files is passed over.

    Raises:
      UserError: lists the other errors.
    """
    findings = lint.lint(config, path, use={lint.TRAIN}, allow_unhonoured=allow_unhonoured, deep=False)
    findings = [finding for finding in findings if finding.unhonoured or not finding.path.startswith(_FILES)]
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        listed = "\n".join(f"  {finding.text()}" for finding in errors)
        raise UserError(f"{path} cannot be run:\n{listed}")
    _log(findings, path)
    return lint.without_unhonoured(config)[0] if allow_unhonoured else config


def _log(findings: Sequence[Finding], path: str) -> None:
    for finding in findings:
        logger.warning("%s", finding.text(path))


def _restore(detector: fields.Detector, config: pipeline.TrainEvalPipelineConfig) -> Restore:
    try:
        plan = experiment.restore_plan(detector, config)
    except UserError as error:
        absent = isinstance(error, MissingError) or _PLACEHOLDER in str(error)
        return Restore(missing=str(error), refused=not absent)
    if plan is None:
        return Restore(missing="no fine_tune_checkpoint: training starts from random weights")
    return Restore(plan, refused=plan.problem is not None)


def make_trainer(
    detector: fields.Detector, config: pipeline.TrainEvalPipelineConfig, plan: FreezePlan, still: bool = False
) -> Trainer:
    """The trainer that a run would have, with this freeze plan.

    Args:
      still: with a learning rate of 0, so that steps on noise lead nowhere.
    """
    optimizer = training.build_optimizer(config.train_config.optimizer)
    if still:
        optimizer.learning_rate = constant(0.0)
    return Trainer(
        detector,
        plan,
        optimizer,
        settings=training.trainer_settings(config.train_config),
        moving_average_decay=training.moving_average_decay(config.train_config.optimizer),
    )


def noise(detector: fields.Detector, config: pipeline.TrainEvalPipelineConfig) -> fields.Batch:
    """A batch of noise of the shapes the config's training sees (for photographs of 480x640 where it depends)."""
    image, _ = detector.resize(tf.zeros([*_PHOTOGRAPH, 3], tf.uint8))
    shape = tuple(image.shape[:2])
    max_boxes = config.train_input_reader.max_number_of_boxes
    batch = probe.random_batch(config.train_config.batch_size, shape, detector.num_classes, max_boxes)
    if config.train_input_reader.load_context_features and detector.context_size is not None:
        size, rows = config.train_config.batch_size, detector.context_size[0]
        bank = fields.ContextBank(tf.zeros([size, *detector.context_size]), tf.fill([size], rows))
        batch = batch._replace(context=bank)
    return batch._replace(groundtruth=_with_extras(batch.groundtruth, config, shape))


def _with_extras(
    groundtruth: fields.Groundtruth, config: pipeline.TrainEvalPipelineConfig, shape: tuple[int, int]
) -> fields.Groundtruth:
    """With the masks, keypoints, DensePose points and track ids, all zeros, that the input reader loads."""
    each, reader = [int(size) for size in groundtruth.weights.shape], config.train_input_reader
    if reader.load_instance_masks:
        groundtruth = groundtruth._replace(masks=tf.zeros([*each, *shape], tf.uint8))
    if reader.num_keypoints:
        points = [*each, reader.num_keypoints]
        seen = tf.ones(points, tf.bool)
        groundtruth = groundtruth._replace(keypoints=tf.zeros([*points, 2]), keypoint_visibilities=seen)
        if reader.load_keypoint_depth_features:
            zeros = tf.zeros(points)
            groundtruth = groundtruth._replace(keypoint_depths=zeros, keypoint_depth_weights=zeros)
    if reader.load_dense_pose:
        groundtruth = groundtruth._replace(
            dense_pose_num_points=tf.fill(each, _POINTS),
            dense_pose_part_ids=tf.zeros([*each, _POINTS], tf.int32),
            dense_pose_surface_coords=tf.zeros([*each, _POINTS, 4]),
        )
    if reader.load_track_id:
        groundtruth = groundtruth._replace(track_ids=tf.zeros(each, tf.int32))
    return groundtruth
