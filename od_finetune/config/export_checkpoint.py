"""From a config and a checkpoint to a checkpoint that an installation of the OD API restores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from od_finetune.checkpoints.source import open_source
from od_finetune.config import counterparts, pipeline
from od_finetune.config.detector import build_detector
from od_finetune.config.export import label_map_text, restore_trained, training_step
from od_finetune.config.kinds import model_of
from od_finetune.errors import UserError
from od_finetune.export import bundle, checkpoint_tf1, checkpoint_tf2, equivalence
from od_finetune.fields import Detector
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

FORMATS = (counterparts.TF1, counterparts.TF2)


class CheckpointReport(NamedTuple):
    """What was written."""

    directory: Path
    prefix: str  # of the checkpoint, below the directory
    source: str
    variables: int
    step: int
    notes: list[str]  # how the config, or training by it, differs from the one that was given

    def text(self) -> str:
        """The report as lines to print."""
        lines = [f"{self.variables} variables of {self.source} (step {self.step}) -> {self.directory / self.prefix}"]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def export_checkpoint(
    config: TrainEvalPipelineConfig,
    checkpoint: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    format: str,
    *,
    use_moving_averages: bool | None = None,
    overwrite: bool = False,
) -> CheckpointReport:
    """Restores `checkpoint` in full and writes it as the OD API would have, with a config for that installation.

    Args:
      config: overrides applied.
      checkpoint: as `open_source` takes it.
      directory: to write; see `bundle.check_directory`.
      format: `tf1`: `model.ckpt`, name based; `tf2`: `checkpoint/ckpt-0`, object based.
      use_moving_averages: whether to write averaged weights; None does as `eval_config.use_moving_averages` says.
      overwrite: whether to replace an earlier export.

    Raises:
      UserError: the config, checkpoint or directory is at fault, or that half of the OD API has no such detector.
    """
    bundle.check_directory(directory, overwrite)
    target, notes = counterparts.for_installation(config, format)
    source = open_source(checkpoint)
    detector = build_detector(config.model)
    averages = config.eval_config.use_moving_averages if use_moving_averages is None else use_moving_averages
    restore_trained(detector, source, averages)
    step = training_step(source)
    if target.model != config.model:
        detector = _counterpart(detector, target, config, notes)
    with bundle.replacing(directory, overwrite) as folder:
        if format == counterparts.TF1:
            checkpoint_tf1.write(detector, folder, step)
            prefix = checkpoint_tf1.PREFIX
        else:
            checkpoint_tf2.write(detector, folder)
            prefix = f"{checkpoint_tf2.DIRECTORY}/{checkpoint_tf2.PREFIX}"
        (folder / bundle.PIPELINE_FILE).write_text(pipeline.to_text(target), encoding="utf-8")
        if (label_map := label_map_text(config)) is not None:
            (folder / bundle.LABEL_MAP_FILE).write_text(label_map, encoding="utf-8")
    return CheckpointReport(Path(directory), prefix, source.path, len(detector.named_variables()), step, notes)


def _counterpart(
    detector: Detector, target: TrainEvalPipelineConfig, config: TrainEvalPipelineConfig, notes: list[str]
) -> Detector:
    """The detector of the other half with the same weights, once it is known to be the same detector."""
    other = build_detector(target.model)
    there = model_of(target).feature_extractor.type
    try:
        notes += [f"in training by {there}, {note}" for note in equivalence.transfer(detector, other)]
    except UserError as error:
        here = model_of(config).feature_extractor.type
        raise UserError(
            f"{there} of the OD API is no replacement for {here}: with the same weights {error}. Train with "
            f"feature_extractor.type: {there!r} to take the result there."
        ) from None
    return other
