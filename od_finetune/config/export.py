"""From a config and a checkpoint to an export."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from od_finetune import object_keys
from od_finetune.checkpoints.plan import RestorePlan
from od_finetune.checkpoints.records import FULL, RestoreRequest, Target
from od_finetune.checkpoints.source import Source, open_source
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.export import bundle, signatures
from od_finetune.fields import Detector
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

logger = logging.getLogger(__name__)

# Where a moving average of a variable is kept: in this project's checkpoints, and in the OD API's TF1 ones.
_AVERAGE_NAMES = (f"{object_keys.MOVING_AVERAGE}/{{}}", "{}/ExponentialMovingAverage")
_STEP_NAMES = (object_keys.STEP, "global_step")


def export_trained(
    config: TrainEvalPipelineConfig,
    checkpoint: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    input_type: str = signatures.IMAGE_TENSOR,
    input_shape: tuple[int | None, ...] | None = None,
    *,
    use_moving_averages: bool | None = None,
    formats: Sequence[str] = bundle.FORMATS,
    overwrite: bool = False,
) -> bundle.Report:
    """Builds the detector of `config`, restores `checkpoint` in full and writes everything to `directory`.

    Args:
      config: overrides applied.
      checkpoint: as `open_source` takes it: a prefix, a model_dir (its latest checkpoint), `model_dir/best`.
      directory: to write; see `bundle.check_directory`.
      input_type: a key of `signatures.INPUT_TYPES`.
      input_shape: of the input, None where any size goes.
      use_moving_averages: whether to export averaged weights; None does as `eval_config.use_moving_averages` says.
      formats: which of `bundle.FORMATS` to write.
      overwrite: whether to replace an earlier export.

    Raises:
      UserError: the config, checkpoint, directory, input type or shape is at fault.
    """
    bundle.check_directory(directory, overwrite)  # all that can fail at once comes before what takes time
    signatures.input_spec(input_type, input_shape)
    source = open_source(checkpoint)
    detector = build_detector(config.model)
    averages = config.eval_config.use_moving_averages if use_moving_averages is None else use_moving_averages
    restore_trained(detector, source, averages)
    return bundle.export(
        detector,
        directory,
        input_type,
        input_shape,
        pipeline_config=pipeline.to_text(config),
        label_map=label_map_text(config),
        formats=formats,
        overwrite=overwrite,
    )


def restore_trained(detector: Detector, source: Source, use_moving_averages: bool = False) -> RestorePlan:
    """Puts every weight of a trained detector's checkpoint into `detector` and returns the plan that was applied.

    Raises:
      UserError: the checkpoint has not every variable with its shape.
    """
    detector.build()
    variables = detector.named_variables()
    plan = RestorePlan.compute(Target.of(detector), [(source, RestoreRequest(source.path, FULL))])
    plan.apply(variables)
    if use_moving_averages:
        _apply_averages(variables, source)
    return plan


def load_trained(
    detector: Detector, checkpoint: str | os.PathLike[str], use_moving_averages: bool = False
) -> int:
    """`restore_trained` from a checkpoint of any kind; returns its training step, 0 where it has none.

    Raises:
      UnreadableError: the checkpoint is gone, damaged or half written; the detector is then as it was.
      UserError: as `restore_trained`.
    """
    source = open_source(checkpoint)
    restore_trained(detector, source, use_moving_averages)
    return training_step(source)


def training_step(source: Source) -> int:
    """The step at which a checkpoint was written; 0 where it does not say."""
    entries = source.other_entries()
    return next((int(source.read(name)) for name in _STEP_NAMES if name in entries), 0)


def _apply_averages(variables: Mapping[str, Any], source: Source) -> None:
    entries = source.other_entries()
    found = {}
    for name in variables:
        stored = next((key for form in _AVERAGE_NAMES if (key := form.format(name)) in entries), None)
        if stored is not None:  # frozen variables and moving statistics have none: they are their own average
            found[name] = stored
    if not found:
        raise UserError(
            f"{source.path}: has no moving averages, but eval_config.use_moving_averages asks for them; train with "
            "train_config.optimizer.use_moving_average, or set eval_config.use_moving_averages: false"
        )
    values = {name: source.read(stored) for name, stored in found.items()}
    for name, value in values.items():
        variables[name].assign(value)
    logger.info("Moving averages replace %d of %d variables", len(found), len(variables))


def label_map_text(config: TrainEvalPipelineConfig) -> str | None:
    """The text of the first label map file that the config names and that exists."""
    readers = [*config.eval_input_reader, config.train_input_reader]
    for path in dict.fromkeys(reader.label_map_path for reader in readers if reader.label_map_path):
        if os.path.isfile(path):
            return Path(path).read_text(encoding="utf-8")
        logger.warning("label_map_path %s: no such file; it is not copied to the export", path)
    return None
