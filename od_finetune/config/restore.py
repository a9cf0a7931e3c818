"""train_config's fine_tune_* fields, `restore` and what it demands -> what is to be restored."""

from __future__ import annotations

import math
from collections.abc import Iterable

from od_finetune import names
from od_finetune.checkpoints.records import CLASSIFICATION, DETECTION, TYPES, Demand, RestoreRequest
from od_finetune.errors import UserError
from od_finetune.protos import fine_tune_pb2, train_pb2

_CHOICES = (
    "'classification' (the backbone only), 'detection' (V1: every variable found with the same shape, heads "
    "included; V2: the feature extractor, heads start anew) or 'full' (everything, any mismatch is an error)"
)


def restore_requests(train_config: train_pb2.TrainConfig) -> list[RestoreRequest]:
    """What the config asks to restore, in order, with notices for deprecated fields that act; empty without a source.

    fine_tune_checkpoint is the one source where there is no `restore` block, and the first of several where every block
    names a checkpoint of its own.

    Raises:
      UserError: a path is a placeholder or missing, a type is unknown or (under V2) not given, a pattern is not valid.
    """
    blocks = train_config.restore
    own = bool(train_config.fine_tune_checkpoint) and all(block.checkpoint for block in blocks)
    if not own and not blocks:
        return []
    version = train_pb2.CheckpointVersion.Name(train_config.fine_tune_checkpoint_version)
    if version == "UNKNOWN":
        raise UserError("train_config.fine_tune_checkpoint_version: UNKNOWN is no version; expected V1 or V2.")
    requests = [_own(train_config, version)] if own else []
    return requests + [_block(train_config, index, block, version) for index, block in enumerate(blocks)]


def restore_demand(train_config: train_pb2.TrainConfig) -> Demand:
    """How much must be restored for a run to start.

    Raises:
      UserError: the fraction is none, or a pattern is not valid.
    """
    fraction = train_config.min_restored_fraction
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"train_config.min_restored_fraction: found {fraction:g}, expected a number from 0 to 1.")
    _check_patterns(train_config.require, "train_config.require")
    return Demand(round(fraction, 7), tuple(train_config.require))  # as written: the field is a float32


def _own(train_config: train_pb2.TrainConfig, version: str) -> RestoreRequest:
    notices: list[str] = []
    path = _path(train_config.fine_tune_checkpoint, "train_config.fine_tune_checkpoint")
    kind = _type(train_config, version, notices)
    only_features = _feature_extractor_only(train_config, kind, version, notices)
    return RestoreRequest(path, kind, version, only_features, tuple(notices))


def _block(
    train_config: train_pb2.TrainConfig, index: int, block: fine_tune_pb2.Restore, version: str
) -> RestoreRequest:
    field = f"train_config.restore[{index}]"
    notices: list[str] = []
    if block.type and block.type not in TYPES:
        raise UserError(f"{field}.type: {block.type!r} is unknown; expected {_CHOICES}.")
    kind = block.type or _type(train_config, version, notices)
    only_features = _feature_extractor_only(train_config, kind, version, notices)
    path = block.checkpoint or train_config.fine_tune_checkpoint
    if not path:
        raise UserError(f"{field}.checkpoint: is not set, and train_config.fine_tune_checkpoint, its default, neither.")
    epsilon = block.batch_norm_epsilon if block.HasField("batch_norm_epsilon") else None
    if epsilon is not None and not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UserError(f"{field}.batch_norm_epsilon: found {epsilon:g}, expected a small positive number.")
    for name in ("scope", "only", "skip"):
        _check_patterns(getattr(block, name), f"{field}.{name}")
    return RestoreRequest(
        path=_path(path, f"{field}.checkpoint" if block.checkpoint else "train_config.fine_tune_checkpoint"),
        type=kind,
        version=version,
        feature_extractor_only=only_features,
        notices=tuple(notices),
        scope=tuple(block.scope),
        map=tuple(_rule(rule, f"{field}.map[{number}]") for number, rule in enumerate(block.map)),
        only=tuple(block.only),
        skip=tuple(block.skip),
        by_order=block.by_order,
        moving_averages=block.moving_averages,
        batch_norm_epsilon=epsilon,
        field=field,
    )


def _rule(rule: fine_tune_pb2.NameMap, field: str) -> tuple[str, str]:
    for name, check in (
        ("pattern", lambda: names.compile_pattern(rule.pattern)),
        ("replacement", lambda: names.check_replacement(rule.pattern, rule.replacement)),
    ):
        try:
            check()
        except UserError as error:
            raise UserError(f"{field}.{name}: {error}") from None
    return rule.pattern, rule.replacement


def _check_patterns(patterns: Iterable[str], field: str) -> None:
    for index, pattern in enumerate(patterns):
        try:
            names.compile_pattern(pattern)
        except UserError as error:
            raise UserError(f"{field}[{index}]: {error}") from None


def _path(path: str, field: str) -> str:
    if "PATH_TO_BE_CONFIGURED" in path:
        raise UserError(
            f"{field}: {path!r} is the placeholder of a published config; set it to your checkpoint, or leave it out "
            "to train from scratch."
        )
    return path


def _type(train_config: train_pb2.TrainConfig, version: str, notices: list[str]) -> str:
    kind = train_config.fine_tune_checkpoint_type
    if kind == "fine_tune":
        raise UserError("train_config.fine_tune_checkpoint_type: 'fine_tune' was CenterNet's name for what 'detection' "
                        "means under fine_tune_checkpoint_version: V2; write that.")
    if kind and kind not in TYPES:
        raise UserError(f"train_config.fine_tune_checkpoint_type: {kind!r} is unknown; expected {_CHOICES}.")
    deprecated = train_config.HasField("from_detection_checkpoint")
    if kind:
        if deprecated:
            notices.append(
                "train_config.from_detection_checkpoint is deprecated and has no effect beside "
                f"fine_tune_checkpoint_type: {kind!r}; remove it."
            )
        return kind
    if version == "V2":
        raise UserError(
            f"train_config.fine_tune_checkpoint_type is not set, and version V2 has no default: expected {_CHOICES}."
        )
    kind = DETECTION if train_config.from_detection_checkpoint else CLASSIFICATION
    given = str(train_config.from_detection_checkpoint).lower()
    reason = f"from_detection_checkpoint: {given} (deprecated)" if deprecated else "the default of version V1"
    notices.append(
        f"train_config.fine_tune_checkpoint_type is not set; {reason} means {kind!r}. Write "
        f"fine_tune_checkpoint_type: '{kind}' instead."
    )
    return kind


def _feature_extractor_only(
    train_config: train_pb2.TrainConfig, kind: str, version: str, notices: list[str]
) -> bool:
    """Whether heads are left out. Only a `false` that is written out says so: unset means nothing."""
    if not train_config.HasField("load_all_detection_checkpoint_vars"):
        return False
    load_all = train_config.load_all_detection_checkpoint_vars
    field = f"train_config.load_all_detection_checkpoint_vars: {str(load_all).lower()}"
    if kind != DETECTION or version != "V1":
        notices.append(f"{field} acts on type 'detection' of version V1 only, not on {kind!r} of {version}; remove it.")
        return False
    if load_all:
        notices.append(f"{field} is deprecated: fine_tune_checkpoint_type: 'detection' loads the heads anyway.")
        return False
    notices.append(
        f"{field} is deprecated: the heads start anew. fine_tune_checkpoint_type: 'detection' with "
        "fine_tune_checkpoint_version: V2 says the same."
    )
    return True
