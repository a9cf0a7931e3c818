"""What the parts that a run is built of say about their settings: each is built, nothing is traced or restored.

It takes TensorFlow, which takes seconds to load; so this module is imported only when it is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from od_finetune.config import class_transfer, detector, evaluation, lint_checks, lint_files, restore, training, walk
from od_finetune.config.augmentation import TABLE, build_augmentation
from od_finetune.config.datasets import check_reader
from od_finetune.config.finding import ERROR, Finding
from od_finetune.config.kinds import context_size
from od_finetune.config.label_map import load_label_map
from od_finetune.config.lint_parts import PARTS, Build
from od_finetune.errors import UserError
from od_finetune.protos import input_reader_pb2, model_pb2, preprocessor_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

# `a.field[0]` at the start of a message, whatever comes after it.
_NAME = re.compile(r"(?P<name>[A-Za-z_]\w*(?:\[\w+\])?(?:\.[A-Za-z_]\w*(?:\[\w+\])?)*)(?P<colon>: |(?=\W))")


def errors(
    config: TrainEvalPipelineConfig, steps: Iterable[preprocessor_pb2.PreprocessingStep], use: Collection[str]
) -> list[Finding]:
    """Every UserError of the builders as a finding.

    Args:
      config: without fields that are not honoured.
      steps: all data_augmentation_options, to count them as the file does; those that do not exist are passed over.
      use: any of "train" and "eval"; the model is always built.
    """
    builds = list(_model(config.model))
    if "train" in use:
        builds += _train(config, steps)
    if "eval" in use:
        builds += _evaluation(config)
    paths = list(walk.field_paths(config))
    found: dict[str, Finding] = {}  # by text: a whole repeats what its part said
    for path, build in builds:
        try:
            build()
        except UserError as error:
            found.setdefault(str(error), _located(str(error), path, paths))
    return list(found.values())


def _model(model: model_pb2.DetectionModel) -> Iterator[Build]:
    """The parts, so that several can complain at once, then the whole."""
    kind = model.WhichOneof("model")
    if kind in PARTS:
        yield from PARTS[kind](getattr(model, kind), f"model.{kind}")
    yield "model", partial(detector.build_detector, model)


def _train(config: TrainEvalPipelineConfig, steps: Iterable[preprocessor_pb2.PreprocessingStep]) -> Iterator[Build]:
    settings = config.train_config
    yield "train_config.optimizer", partial(training.build_optimizer, settings.optimizer)
    yield (
        "train_config.optimizer.moving_average_decay",
        partial(training.moving_average_decay, settings.optimizer),
    )
    yield "train_config", partial(training.freeze_request, settings)
    yield "train_config", partial(training.trainer_settings, settings)
    yield "train_config", partial(training.loop_settings, settings, config.eval_config)
    yield "train_config.fine_tune_checkpoint_type", partial(restore.restore_requests, settings)
    yield "train_config.min_restored_fraction", partial(restore.restore_demand, settings)
    if not any(lint_files.is_remote(path) for path in class_transfer.label_maps(config)):
        yield "train_config.class_transfer", partial(class_transfer.class_transfer, config)
        yield "train_config.keep_classes", partial(class_transfer.kept_classes, config)
    for index, step in enumerate(steps):
        name = step.WhichOneof("preprocessing_step")
        if name is None or name in TABLE:
            path = f"train_config.data_augmentation_options[{index}]"
            yield path, partial(_augmentation, step, index, config)
    check = partial(check_reader, train_config=settings, context_size=context_size(config.model))
    yield from _reader("train_input_reader", config.train_input_reader, check)


def _augmentation(
    step: preprocessor_pb2.PreprocessingStep, index: int, config: TrainEvalPipelineConfig
) -> None:
    try:
        build_augmentation([step], lint_checks.num_classes(config), config.train_input_reader.num_keypoints)
    except UserError as error:
        text = str(error).replace("data_augmentation_options[0]", f"data_augmentation_options[{index}]")
        raise UserError(text) from None


def _evaluation(config: TrainEvalPipelineConfig) -> Iterator[Build]:
    settings = config.eval_config
    yield "eval_config", partial(evaluation.build_style, settings)
    for index, reader in enumerate(config.eval_input_reader):
        check = partial(check_reader, context_size=context_size(config.model))
        yield from _reader(f"eval_input_reader[{index}]", reader, check)
        if not lint_files.is_remote(reader.label_map_path):
            yield "eval_config", lambda reader=reader: evaluation.build_metrics(
                settings, load_label_map(reader.label_map_path)
            )


def _reader(path: str, reader: input_reader_pb2.InputReader, check: Callable[..., object]) -> Iterator[Build]:
    """Files elsewhere are left to the run."""
    if not any(lint_files.is_remote(pattern) for pattern in reader.tf_record_input_reader.input_path):
        yield path, partial(check, reader)


def _located(text: str, path: str, paths: Collection[str]) -> Finding:
    """The finding at the field that the text begins with, if that is one at or below `path`."""
    match = _NAME.match(text)
    if match is None:
        return Finding(ERROR, path, text)
    # Builders name a field by as much of its path as they know.
    named = [one for one in paths if f".{one}".endswith(f".{match['name']}")]
    if match["name"] not in named:
        named = [one for one in named if one.startswith(path)]
        if len(named) != 1:
            return Finding(ERROR, path, text)
    rest = text[match.end() :] if match["colon"] else text
    rest = rest.removeprefix(f"{match['name']} ") if rest.startswith(f"{match['name']} is ") else rest
    return Finding(ERROR, match["name"] if match["name"] in named else named[0], rest)
