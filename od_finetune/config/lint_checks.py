"""Checks of what the fields of a config mean, without TensorFlow: values, files, label map against model.

What the parts of a run refuse by themselves is found by `lint_deep`; here is what they would not notice, or late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf.message import Message

from od_finetune.config import lint_files, lint_reads
from od_finetune.config.finding import ERROR, INFO, WARNING, Finding
from od_finetune.protos import faster_rcnn_pb2, hyperparams_pb2, model_pb2, train_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

# path: (smallest, largest); None is no limit
Ranges = dict[str, tuple[float | None, float | None]]
_SSD_RANGES: Ranges = {
    "feature_extractor.depth_multiplier": (1e-6, None),
    "feature_extractor.pad_to_multiple": (1, None),
    "box_predictor.convolutional_box_predictor.kernel_size": (1, None),
    "box_predictor.convolutional_box_predictor.dropout_keep_probability": (1e-6, 1),
    "box_predictor.weight_shared_convolutional_box_predictor.kernel_size": (1, None),
    "box_predictor.weight_shared_convolutional_box_predictor.dropout_keep_probability": (1e-6, 1),
    "feature_extractor.fpn.additional_layer_depth": (1, None),
    "image_resizer.fixed_shape_resizer.height": (1, None),
    "image_resizer.fixed_shape_resizer.width": (1, None),
    "image_resizer.pad_to_multiple_resizer.multiple": (1, None),
    "matcher.argmax_matcher.matched_threshold": (0, 1),
    "matcher.argmax_matcher.unmatched_threshold": (0, 1),
    "post_processing.batch_non_max_suppression.score_threshold": (0, 1),
    "post_processing.batch_non_max_suppression.max_total_detections": (1, None),
}
_FASTER_RCNN_RANGES: Ranges = {
    "image_resizer.fixed_shape_resizer.height": (1, None),
    "image_resizer.fixed_shape_resizer.width": (1, None),
    "image_resizer.pad_to_multiple_resizer.multiple": (1, None),
    "feature_extractor.pad_to_multiple": (1, None),
    "feature_extractor.fpn.additional_layer_depth": (1, None),
    "first_stage_atrous_rate": (1, None),
    "first_stage_box_predictor_kernel_size": (1, None),
    "first_stage_box_predictor_depth": (1, None),
    "first_stage_nms_score_threshold": (0, 1),
    "first_stage_localization_loss_weight": (0, None),
    "first_stage_objectness_loss_weight": (0, None),
    "second_stage_box_predictor.mask_rcnn_box_predictor.dropout_keep_probability": (1e-6, 1),
    "second_stage_localization_loss_weight": (0, None),
    "second_stage_classification_loss_weight": (0, None),
    "second_stage_mask_prediction_loss_weight": (0, None),
    "second_stage_post_processing.batch_non_max_suppression.score_threshold": (0, 1),
    "second_stage_post_processing.batch_non_max_suppression.max_total_detections": (1, None),
}
_CENTER_NET_RANGES: Ranges = {
    "image_resizer.fixed_shape_resizer.height": (1, None),
    "image_resizer.fixed_shape_resizer.width": (1, None),
    "image_resizer.pad_to_multiple_resizer.multiple": (1, None),
    "object_center_params.min_box_overlap_iou": (0, 1),
    "object_center_params.max_box_predictions": (1, None),
    "object_center_params.peak_max_pool_kernel_size": (1, None),
}
# TABLE: kind of model -> the ranges of its fields.
_RANGES: dict[str, Ranges] = {
    "ssd": _SSD_RANGES,
    "faster_rcnn": _FASTER_RCNN_RANGES,
    "center_net": _CENTER_NET_RANGES,
}


def num_classes(config: TrainEvalPipelineConfig) -> int:
    """The `num_classes` of whichever model the config describes; 0 where it says none."""
    kind = config.model.WhichOneof("model")
    return getattr(getattr(config.model, kind), "num_classes", 0) if kind else 0


def model(config: TrainEvalPipelineConfig) -> list[Finding]:
    """Checks of the model message."""
    kind = config.model.WhichOneof("model")
    if kind is None:
        choices = ", ".join(field.name for field in model_pb2.DetectionModel.DESCRIPTOR.fields)
        return [Finding(ERROR, "model", "no model is described", f"set one of {choices}")]
    found = list(_ranges(getattr(config.model, kind), _RANGES.get(kind, {}), f"model.{kind}."))
    return found + list(_activation_of_proposals(config.model.faster_rcnn))


def train(config: TrainEvalPipelineConfig) -> list[Finding]:
    """Checks of train_config and train_input_reader."""
    settings = config.train_config
    found = []
    if settings.batch_size < 1:
        found.append(Finding(ERROR, "train_config.batch_size", "is 0", "expected at least 1"))
    if settings.num_steps == 0:
        found.append(Finding(WARNING, "train_config.num_steps", "is 0: training has no end", "set num_steps"))
    if settings.bias_grad_multiplier < 0 or settings.gradient_clipping_by_norm < 0:
        found.append(Finding(ERROR, "train_config", "bias_grad_multiplier and gradient_clipping_by_norm are 0 or more"))
    found += _patterns(settings)
    found += _late_unfreezing(settings)
    found += _averages(config)
    found += _checkpoint_type(settings)
    found += lint_files.checkpoint("train_config.fine_tune_checkpoint", settings.fine_tune_checkpoint)
    if settings.HasField("class_transfer"):
        file = settings.class_transfer.source_label_map
        found += lint_files.source_label_map("train_config.class_transfer.source_label_map", file)
    for index, block in enumerate(settings.restore):
        found += lint_files.checkpoint(f"train_config.restore[{index}].checkpoint", block.checkpoint)
    if config.HasField("train_input_reader"):
        found += lint_files.input_reader("train_input_reader", config.train_input_reader, num_classes(config))
        found += lint_reads.for_training("train_input_reader", config.train_input_reader, config)
    else:
        found.append(Finding(ERROR, "train_input_reader", "is not set", "training needs records to read"))
    return found


def evaluation(config: TrainEvalPipelineConfig) -> list[Finding]:
    """Checks of eval_config and eval_input_reader."""
    settings = config.eval_config
    found = []
    if settings.batch_size < 1:
        found.append(Finding(ERROR, "eval_config.batch_size", "is 0", "expected at least 1"))
    if len(config.eval_input_reader) > 1:
        hint = (
            "keep one: to evaluate all together, with all files as its input_path entries; to evaluate each by itself, "
            "run model_main.py --checkpoint_dir for each, the files given by --set"
        )
        text = f"is one of {len(config.eval_input_reader)}, but one is evaluated"
        found.append(Finding(ERROR, "eval_input_reader[1]", text, hint))
    for index, reader in enumerate(config.eval_input_reader):
        found += lint_files.input_reader(f"eval_input_reader[{index}]", reader, num_classes(config))
        found += lint_reads.for_evaluation(f"eval_input_reader[{index}]", reader, config)
    found += lint_reads.predicted(config)
    if not config.eval_input_reader:
        found.append(Finding(WARNING, "eval_input_reader", "is not set: there will be no evaluation"))
    return found


def _ranges(owner: Message, ranges: Ranges, prefix: str) -> Iterator[Finding]:
    """Values outside their range, in messages that are there."""
    for path, (low, high) in ranges.items():
        *parents, name = path.split(".")
        message: Message | None = owner
        for parent in parents:
            message = getattr(message, parent) if message is not None and message.HasField(parent) else None
        if message is None:
            continue
        value = getattr(message, name)
        if (low is not None and value < low) or (high is not None and value > high):
            below = f"at least {low:g}" if low is not None and (low >= 1 or not low) else "a positive number"
            expected = f"a number from {low:g} to {high:g}" if low is not None and high is not None else below
            yield Finding(ERROR, prefix + path, f"is {value:g}", f"expected {expected}")


def _activation_of_proposals(faster_rcnn: faster_rcnn_pb2.FasterRcnn) -> Iterator[Finding]:
    """The region proposal network has ReLU6, of the OD API as well; a field that says nothing else is left alone."""
    kinds, field = hyperparams_pb2.Hyperparams, "first_stage_box_predictor_conv_hyperparams"
    asked = getattr(faster_rcnn, field).activation
    if getattr(faster_rcnn, field).HasField("activation") and asked != kinds.RELU_6:
        text = f"{kinds.Activation.Name(asked)} has no effect: as in the OD API, the region proposal network has RELU_6"
        yield Finding(WARNING, f"model.faster_rcnn.{field}.activation", text, "take it out")


def _patterns(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    patterns = {}
    for name in ("freeze_variables", "update_trainable_variables"):
        patterns.update({f"train_config.{name}[{i}]": pattern for i, pattern in enumerate(getattr(settings, name))})
    patterns.update({f"train_config.require[{i}]": pattern for i, pattern in enumerate(settings.require)})
    for i, block in enumerate(settings.restore):
        for name in ("scope", "only", "skip"):
            entries = enumerate(getattr(block, name))
            patterns.update({f"train_config.restore[{i}].{name}[{j}]": pattern for j, pattern in entries})
        for j, rule in enumerate(block.map):
            patterns[f"train_config.restore[{i}].map[{j}].pattern"] = rule.pattern
    for i, entry in enumerate(settings.learning_rate_multiplier):
        patterns[f"train_config.learning_rate_multiplier[{i}].pattern"] = entry.pattern
    for name in ("trainable_batch_norm", "weight_decay"):
        patterns.update({f"train_config.{name}[{i}].pattern": e.pattern for i, e in enumerate(getattr(settings, name))})
    for i, entry in enumerate(settings.unfreeze):
        patterns.update({f"train_config.unfreeze[{i}].pattern[{k}]": p for k, p in enumerate(entry.pattern)})
    for path, pattern in patterns.items():
        if not pattern:
            yield Finding(ERROR, path, "is empty and would match every variable", "write '.*' if that is meant")
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            yield Finding(ERROR, path, f"{pattern!r} is no regular expression: {error}", "escape special characters")


def _late_unfreezing(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    for i, entry in enumerate(settings.unfreeze):
        if settings.num_steps and entry.at_step >= settings.num_steps:
            text = f"is {entry.at_step}, which training does not reach: num_steps is {settings.num_steps}"
            yield Finding(WARNING, f"train_config.unfreeze[{i}].at_step", text, "name a step below num_steps")


def _averages(config: TrainEvalPipelineConfig) -> Iterator[Finding]:
    optimizer = config.train_config.optimizer
    kept = bool(optimizer.WhichOneof("optimizer")) and optimizer.use_moving_average
    if kept and not config.eval_config.use_moving_averages:
        yield Finding(
            INFO,
            "train_config.optimizer.use_moving_average",
            f"{'is true' if optimizer.HasField('use_moving_average') else 'is true by default'}, but nothing reads the "
            "averages: eval_config.use_moving_averages is false",
            "set it to false, or eval_config.use_moving_averages to true",
        )


def _checkpoint_type(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    """What is wrong with it is for `config/restore.py` to say."""
    silent = not settings.fine_tune_checkpoint_type and not settings.HasField("from_detection_checkpoint")
    if settings.fine_tune_checkpoint and settings.fine_tune_checkpoint_version == train_pb2.V1 and silent:
        text = 'is not set and taken as "classification"'
        yield Finding(WARNING, "train_config.fine_tune_checkpoint_type", text, "write down which one is meant")
