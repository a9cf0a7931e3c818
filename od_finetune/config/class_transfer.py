"""train_config's class_transfer and keep_classes -> what happens to the rows of the class predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from od_finetune.checkpoints import class_match
from od_finetune.checkpoints.class_rows import ClassTransfer
from od_finetune.checkpoints.records import Row
from od_finetune.config.kinds import Model, model_of
from od_finetune.config.label_map import load_label_map
from od_finetune.errors import UserError
from od_finetune.protos import fine_tune_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

FIELD = "train_config.class_transfer"
KEEP = "train_config.keep_classes"


class KeptClasses(NamedTuple):
    """What keep_classes asks for."""

    ids: dict[str, int]  # label id (from 1) by name
    freeze_rows: bool
    distillation_weight: float
    labelled: bool
    softmax: bool  # classes exclude each other


def label_maps(config: TrainEvalPipelineConfig) -> list[str]:
    """The files that `class_transfer` and `kept_classes` read."""
    return [config.train_config.class_transfer.source_label_map, config.train_input_reader.label_map_path]


def class_transfer(config: TrainEvalPipelineConfig) -> ClassTransfer | None:
    """What each class of train_input_reader's label map starts from; None without class_transfer.

    Raises:
      UserError: a label map is missing or unsound, or a name is wrong; see `class_match.match`.
    """
    settings = config.train_config.class_transfer
    if not config.train_config.HasField("class_transfer"):
        return None
    if not config.train_config.fine_tune_checkpoint and not config.train_config.restore:
        raise UserError(f"{FIELD}: is set, but no checkpoint is restored to carry rows over from")
    if not settings.source_label_map:
        raise UserError(f"{FIELD}.source_label_map: is not set; name the label map of the checkpoint's classes")
    there = load_label_map(settings.source_label_map).check()
    here = load_label_map(config.train_input_reader.label_map_path).check()
    source = class_match.ClassNames(there.labels, there.path)
    starts = class_match.match(
        source,
        class_match.ClassNames(here.labels, here.path),
        [(getattr(rename, "from"), rename.to) for rename in settings.rename],
        [(new.name, tuple(new.init_from)) for new in settings.new_class],
    )
    ids = {label.name: label.id for label in there.labels}
    return ClassTransfer(starts, there.path, ids, class_match.near_misses(source, starts))


def kept_classes(config: TrainEvalPipelineConfig) -> KeptClasses | None:
    """The classes to keep and how; None without keep_classes.

    Raises:
      UserError: no class is to be kept, one is not in the label map, or starts anew; nothing is done to keep them.
    """
    settings = config.train_config.keep_classes
    if not config.train_config.HasField("keep_classes"):
        return None
    transfer = class_transfer(config)
    if settings.distillation_weight < 0:
        raise UserError(f"{KEEP}.distillation_weight: is {settings.distillation_weight:g}, expected 0 (none) or more")
    if not settings.freeze_rows and not settings.distillation_weight:
        raise UserError(f"{KEEP}: freeze_rows is false and distillation_weight 0, so that nothing keeps the classes")
    ids = _named(config) if settings.name else _carried(transfer)
    if transfer is not None:
        _check_carried(ids, transfer)
    model = model_of(config)
    _check_outputs(settings, model)
    return KeptClasses(
        ids, settings.freeze_rows, settings.distillation_weight, settings.labelled, model.has_softmax
    )


def _check_outputs(settings: fine_tune_pb2.KeepClasses, model: Model) -> None:
    """That what is asked of the outputs can be had from this kind of model."""
    if settings.distillation_weight and model.predicts_probabilities:
        raise UserError(f"{KEEP}.distillation_weight: needs logits, but the box predictor has apply_sigmoid_to_scores")
    asked = [name for name, is_set in (("distillation_weight", settings.distillation_weight > 0),
                                       ("labelled: false", not settings.labelled)) if is_set]
    if asked and not model.kind.dense:
        raise UserError(
            f"{KEEP}: {' and '.join(asked)} need class predictions for the same anchors from model and teacher, but "
            f"a {model.name} has none while it trains; leave that out (freeze_rows alone works)"
        )


def check_kept(config: TrainEvalPipelineConfig, rows: Sequence[Row] | None) -> None:
    """That what keep_classes keeps is not random numbers.

    Args:
      rows: of the restore plan; None if nothing is restored.

    Raises:
      UserError: not every variable of the class predictor would be restored.
    """
    if not config.train_config.HasField("keep_classes"):
        return
    if rows is None:
        raise UserError(f"{KEEP}: is set, but nothing is restored, so that there is nothing to keep")
    lost = [row for row in rows if row.class_head and not row.restored]
    if lost:
        raise UserError(
            f"{KEEP}: {len(lost)} variables of the class predictor would start from random numbers, e.g. "
            f"{lost[0].name} ({lost[0].status.value}), so that there is nothing to keep in them. Restore the heads: "
            f'fine_tune_checkpoint_type "detection" (of V1) or "full", with {FIELD} where the classes differ'
        )


def _named(config: TrainEvalPipelineConfig) -> dict[str, int]:
    labels = load_label_map(config.train_input_reader.label_map_path).check()
    known = class_match.ClassNames(labels.labels, labels.path)
    found = [known.find(name, f"{KEEP}.name[{i}]") for i, name in enumerate(config.train_config.keep_classes.name)]
    return {label.name: label.id for label in found}


def _carried(transfer: ClassTransfer | None) -> dict[str, int]:
    if transfer is None:
        raise UserError(f"{KEEP}.name: is not set, and without class_transfer no class is carried over; name them")
    ids = {start.name: start.id for start in transfer.starts if start.carried}
    if not ids:
        raise UserError(f"{KEEP}: class_transfer carries no class over, so that there is none to keep")
    return ids


def _check_carried(ids: dict[str, int], transfer: ClassTransfer) -> None:
    anew = [start.name for start in transfer.starts if not start.carried and start.name in ids]
    if anew:
        raise UserError(
            f"{KEEP}.name: {', '.join(map(repr, anew))} is not carried over by class_transfer: there is nothing to keep"
        )
