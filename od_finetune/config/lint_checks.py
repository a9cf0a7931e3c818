"""Checks of what the fields of a config mean: values, files, label map against model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from od_finetune.checkpoints.records import TYPES
from od_finetune.config import lint_files, pipeline, tables
from od_finetune.config.finding import ERROR, WARNING, Finding
from od_finetune.protos import model_pb2, optimizer_pb2, train_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

_SSD_PARTS = (
    "image_resizer.image_resizer_oneof",
    "feature_extractor",
    "box_coder.box_coder_oneof",
    "matcher.matcher_oneof",
    "similarity_calculator.region_similarity",
    "box_predictor.box_predictor_oneof",
    "anchor_generator.anchor_generator_oneof",
    "loss.localization_loss.localization_loss",
    "loss.classification_loss.classification_loss",
)
# path: (smallest, largest); None is no limit
_SSD_RANGES: dict[str, tuple[float | None, float | None]] = {
    "num_classes": (1, None),
    "feature_extractor.depth_multiplier": (1e-6, None),
    "feature_extractor.num_layers": (1, None),
    "feature_extractor.pad_to_multiple": (1, None),
    "box_predictor.convolutional_box_predictor.kernel_size": (1, None),
    "box_predictor.convolutional_box_predictor.dropout_keep_probability": (1e-6, 1),
    "image_resizer.fixed_shape_resizer.height": (1, None),
    "image_resizer.fixed_shape_resizer.width": (1, None),
    "image_resizer.keep_aspect_ratio_resizer.min_dimension": (1, None),
    "image_resizer.keep_aspect_ratio_resizer.max_dimension": (1, None),
    "image_resizer.pad_to_multiple_resizer.multiple": (1, None),
    "matcher.argmax_matcher.matched_threshold": (0, 1),
    "matcher.argmax_matcher.unmatched_threshold": (0, 1),
    "post_processing.batch_non_max_suppression.score_threshold": (0, 1),
    "post_processing.batch_non_max_suppression.iou_threshold": (0, 1),
    "post_processing.batch_non_max_suppression.max_detections_per_class": (1, None),
    "post_processing.batch_non_max_suppression.max_total_detections": (1, None),
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
    if kind != "ssd":
        return []
    ssd = config.model.ssd
    found = [*_missing(ssd, _SSD_PARTS, "model.ssd."), *_ranges(ssd, _SSD_RANGES, "model.ssd.")]
    if ssd.HasField("feature_extractor"):
        types = tables.extractor_types()
        found += _unknown("model.ssd.feature_extractor.type", "feature extractor", ssd.feature_extractor.type, types)
    matcher = ssd.matcher.argmax_matcher
    if not matcher.ignore_thresholds and matcher.unmatched_threshold > matcher.matched_threshold:
        found.append(
            Finding(
                ERROR,
                "model.ssd.matcher.argmax_matcher.unmatched_threshold",
                f"{matcher.unmatched_threshold:g} is above matched_threshold {matcher.matched_threshold:g}",
                "expected at most that: anchors between the two are ignored",
            )
        )
    return found


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
    found += _optimizer(settings.optimizer)
    found += _steps(settings)
    found += _checkpoint_type(settings)
    found += lint_files.checkpoint("train_config.fine_tune_checkpoint", settings.fine_tune_checkpoint)
    if config.HasField("train_input_reader"):
        found += lint_files.input_reader("train_input_reader", config.train_input_reader, num_classes(config))
    else:
        found.append(Finding(ERROR, "train_input_reader", "is not set", "training needs records to read"))
    return found


def evaluation(config: TrainEvalPipelineConfig) -> list[Finding]:
    """Checks of eval_config and eval_input_reader."""
    settings = config.eval_config
    found = []
    if settings.batch_size < 1:
        found.append(Finding(ERROR, "eval_config.batch_size", "is 0", "expected at least 1"))
    for index, name in enumerate(settings.metrics_set):
        found += _unknown(f"eval_config.metrics_set[{index}]", "metric", name, tables.metrics_sets())
    for index, reader in enumerate(config.eval_input_reader):
        found += lint_files.input_reader(f"eval_input_reader[{index}]", reader, num_classes(config))
    if not config.eval_input_reader:
        found.append(Finding(WARNING, "eval_input_reader", "is not set: there will be no evaluation"))
    return found


def _missing(owner: Message, paths: Iterable[str], prefix: str) -> Iterator[Finding]:
    """Parts that have to be there. The last step of a path may name a oneof."""
    for path in paths:
        message = owner
        steps = path.split(".")
        for depth, step in enumerate(steps):
            at = prefix + ".".join(steps[: depth + 1])
            oneof = message.DESCRIPTOR.oneofs_by_name.get(step) if depth else None
            if oneof is not None:
                if message.WhichOneof(step) is None:
                    choices = ", ".join(field.name for field in oneof.fields)
                    yield Finding(ERROR, at.rpartition(".")[0], "is empty", f"set one of {choices}")
                break
            if not message.HasField(step):
                yield Finding(ERROR, at, "is not set", "the model needs it")
                break
            message = getattr(message, step)


def _ranges(owner: Message, ranges: dict[str, tuple[float | None, float | None]], prefix: str) -> Iterator[Finding]:
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
            below = f"at least {low:g}" if low is not None and low >= 1 else "a positive number"
            expected = f"a number from {low:g} to {high:g}" if low is not None and high is not None else below
            yield Finding(ERROR, prefix + path, f"is {value:g}", f"expected {expected}")


def _unknown(path: str, kind: str, name: str, known: Iterable[str]) -> list[Finding]:
    if name in known:
        return []
    return [Finding(ERROR, path, f"{name!r} is no {kind} that od_finetune has", pipeline.nearest_hint(name, known))]


def _patterns(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    patterns = {}
    for name in ("freeze_variables", "update_trainable_variables"):
        patterns.update({f"train_config.{name}[{i}]": pattern for i, pattern in enumerate(getattr(settings, name))})
    for i, entry in enumerate(settings.learning_rate_multiplier):
        patterns[f"train_config.learning_rate_multiplier[{i}].pattern"] = entry.pattern
    for path, pattern in patterns.items():
        if not pattern:
            yield Finding(ERROR, path, "is empty and would match every variable", "write '.*' if that is meant")
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            yield Finding(ERROR, path, f"{pattern!r} is no regular expression: {error}", "escape special characters")


def _optimizer(optimizer: optimizer_pb2.Optimizer) -> Iterator[Finding]:
    kind = optimizer.WhichOneof("optimizer")
    path = "train_config.optimizer"
    if kind is None:
        choices = ", ".join(field.name for field in optimizer.DESCRIPTOR.oneofs_by_name["optimizer"].fields)
        yield Finding(ERROR, path, "is not set", f"set one of {choices}")
        return
    rate = getattr(optimizer, kind).learning_rate
    path = f"{path}.{kind}.learning_rate"
    if rate.WhichOneof("learning_rate") is None:
        choices = ", ".join(field.name for field in rate.DESCRIPTOR.fields)
        yield Finding(ERROR, path, "is not set", f"set one of {choices}")
    cosine = rate.cosine_decay_learning_rate
    if rate.HasField("cosine_decay_learning_rate") and cosine.total_steps < cosine.warmup_steps:
        at = f"{path}.cosine_decay_learning_rate.total_steps"
        yield Finding(ERROR, at, f"{cosine.total_steps} is below warmup_steps {cosine.warmup_steps}", "raise it")
    if rate.HasField("manual_step_learning_rate"):
        steps = [entry.step for entry in rate.manual_step_learning_rate.schedule]
        if steps != sorted(set(steps)):
            at = f"{path}.manual_step_learning_rate.schedule"
            yield Finding(ERROR, at, f"steps {steps} do not rise", "expected each step above the one before")


def _steps(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    for index, step in enumerate(settings.data_augmentation_options):
        if step.WhichOneof("preprocessing_step") is None:
            path = f"train_config.data_augmentation_options[{index}]"
            yield Finding(ERROR, path, "is empty", f"name a step: {', '.join(tables.augmentation_steps())}")


def _checkpoint_type(settings: train_pb2.TrainConfig) -> Iterator[Finding]:
    kind, path = settings.fine_tune_checkpoint_type, "train_config.fine_tune_checkpoint_type"
    if kind and kind not in TYPES:
        hint = pipeline.nearest_hint(kind, TYPES)
        yield Finding(ERROR, path, f"{kind!r} is no checkpoint type", f"{hint} (of {', '.join(TYPES)})")
    if settings.fine_tune_checkpoint_version == train_pb2.UNKNOWN:
        at = "train_config.fine_tune_checkpoint_version"
        yield Finding(ERROR, at, "UNKNOWN is no version", "set V1 or V2, or leave it out")
    if kind or not settings.fine_tune_checkpoint:
        return
    if settings.fine_tune_checkpoint_version == train_pb2.V2:
        hint = f"choose one of {', '.join(TYPES)}"
        yield Finding(ERROR, path, "is not set, which fine_tune_checkpoint_version V2 needs", hint)
    elif not settings.HasField("from_detection_checkpoint"):
        yield Finding(WARNING, path, 'is not set and taken as "classification"', "write down which one is meant")
