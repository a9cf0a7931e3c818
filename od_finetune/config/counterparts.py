"""A config as an installation of the OD API, its TF1 or its TF2 half, reads it."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import message

from od_finetune.config import center_extractors, two_stage_extractors
from od_finetune.config.families import efficientnet, inception
from od_finetune.config.kinds import model_of
from od_finetune.errors import UserError
from od_finetune.protos import train_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

TF1, TF2 = "tf1", "tf2"

# TABLE: the OD API's feature extractors of one detector, in its TF1 and its TF2 half.
TYPES: tuple[dict[str, str], ...] = (
    {TF1: "ssd_mobilenet_v1", TF2: "ssd_mobilenet_v1_keras"},
    {TF1: "ssd_mobilenet_v2", TF2: "ssd_mobilenet_v2_keras"},
    {TF1: "ssd_mobilenet_v1_fpn", TF2: "ssd_mobilenet_v1_fpn_keras"},
    {TF1: "ssd_mobilenet_v2_fpn", TF2: "ssd_mobilenet_v2_fpn_keras"},
    {TF1: "ssd_resnet50_v1_fpn", TF2: "ssd_resnet50_v1_fpn_keras"},
    {TF1: "ssd_resnet101_v1_fpn", TF2: "ssd_resnet101_v1_fpn_keras"},
    {TF1: "ssd_resnet152_v1_fpn", TF2: "ssd_resnet152_v1_fpn_keras"},
    # Of these the second stage differs between the halves.
    *({TF2 if row.keras else TF1: name} for name, row in two_stage_extractors.TABLE.items()),
    *({TF2: name} for name in center_extractors.TABLE),  # TF1 has no CenterNet
    *({TF1: name} for name in inception.ROWS),
    *({TF2: name} for name in efficientnet.ROWS),
    {TF1: "embedded_ssd_mobilenet_v1"},
    {TF1: "ssd_mobilenet_v1_ppn"},
    {TF1: "ssd_mobilenet_v2_mnasfpn"},
    {TF1: "ssd_mobilenet_v3_large"},
    {TF1: "ssd_mobilenet_v3_small"},
    {TF1: "ssd_mobilenet_edgetpu"},
    {TF1: "ssd_mobiledet_cpu"},
    {TF1: "ssd_mobiledet_dsp"},
    {TF1: "ssd_mobiledet_edgetpu"},
    {TF1: "ssd_mobiledet_gpu"},
)

_FIRST_EXTENSION = 1000  # numbers of fields that the OD API does not have
_LAST_LEVEL = 5  # of the backbones; in the OD API they always reach to it
_PLACEHOLDER = "PATH_TO_BE_CONFIGURED"


def for_installation(config: TrainEvalPipelineConfig, half: str) -> tuple[TrainEvalPipelineConfig, list[str]]:
    """A copy of the config for one half of the OD API, and a sentence on everything that was changed.

    Args:
      half: TF1 or TF2.

    Raises:
      UserError: that half has no such feature extractor, or builds more of it than this config's detector has.
    """
    changed = TrainEvalPipelineConfig()
    changed.CopyFrom(config)
    model = model_of(changed)
    extractor, at = model.feature_extractor, f"{model.path}.feature_extractor"
    kind = _counterpart(extractor.type, half, at)
    if model.name == "ssd":
        _check_complete(extractor)
    notes = []
    if kind != extractor.type:
        notes.append(f"{at}.type is {kind}, its {half.upper()} counterpart")
        extractor.type = kind
    removed = list(_remove_extensions(changed))
    if removed:
        notes.append(f"fields that only od_finetune has are left out: {', '.join(removed)}")
    notes += _starting_point(changed.train_config, half)
    if changed.eval_config.use_moving_averages:
        changed.eval_config.use_moving_averages = False
        notes.append("eval_config.use_moving_averages is false: the checkpoint has no averages beside its weights")
    return changed, notes


def _counterpart(kind: str, half: str, at: str) -> str:
    for row in TYPES:
        if kind in row.values() and half in row:
            return row[half]
    known = ", ".join(sorted(name for row in TYPES if half in row for name in row.values()))
    raise UserError(
        f"{at}.type: {kind!r} has no counterpart in the {half.upper()} half of the OD API, so "
        f"no installation of it could use the checkpoint; these have: {known}"
    )


def _check_complete(extractor: message.Message) -> None:
    """Feature maps that don't need the backbone's end leave it out here; the OD API builds, and restores, all of it."""
    is_pyramid = extractor.type.removesuffix("_keras").endswith("_fpn")
    if is_pyramid:
        field, found, needed = "fpn.max_level", extractor.fpn.max_level, _LAST_LEVEL
    else:
        field, found, needed = "num_layers", extractor.num_layers, 2
    if found < needed:
        raise UserError(
            f"model.ssd.feature_extractor.{field}: found {found}; an installation of the OD API would look for layers "
            f"that this detector lacks, as it builds the whole backbone at less than {needed}, too"
        )


def _remove_extensions(proto: message.Message, path: str = "") -> Iterator[str]:
    """Clears fields by their numbers, wherever they are, and yields their paths."""
    for field, value in proto.ListFields():
        name = f"{path}{field.name}"
        if field.number >= _FIRST_EXTENSION:
            proto.ClearField(field.name)
            yield name
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for index, child in enumerate(value if field.is_repeated else [value]):
                yield from _remove_extensions(child, f"{name}[{index}]." if field.is_repeated else f"{name}.")


def _starting_point(train_config: message.Message, half: str) -> Iterator[str]:
    """The checkpoint that training there would start from."""
    if not train_config.fine_tune_checkpoint:
        return
    version = train_pb2.V1 if half == TF1 else train_pb2.V2
    if train_config.fine_tune_checkpoint_version != version:
        train_config.fine_tune_checkpoint_version = version
        yield f"train_config.fine_tune_checkpoint_version is {train_pb2.CheckpointVersion.Name(version)}"
    # It is of a kind that only od_finetune may be able to read, and often of the other half.
    train_config.fine_tune_checkpoint = _PLACEHOLDER
    yield f"train_config.fine_tune_checkpoint is {_PLACEHOLDER}: name the exported checkpoint to go on from it"
