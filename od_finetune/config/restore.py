"""train_config's fine_tune_* fields -> what is to be restored."""

from __future__ import annotations

from od_finetune.checkpoints.records import CLASSIFICATION, DETECTION, TYPES, RestoreRequest
from od_finetune.errors import UserError
from od_finetune.protos import train_pb2

_CHOICES = (
    "'classification' (the backbone only), 'detection' (V1: every variable found with the same shape, heads "
    "included; V2: the feature extractor, heads start anew) or 'full' (everything, any mismatch is an error)"
)


def restore_request(train_config: train_pb2.TrainConfig) -> RestoreRequest | None:
    """What the config asks to restore, with notices for deprecated fields that act; None without a checkpoint.

    Raises:
      UserError: the path is a placeholder, or the type is unknown or (under V2) not given.
    """
    path = train_config.fine_tune_checkpoint
    if not path:
        return None
    if "PATH_TO_BE_CONFIGURED" in path:
        raise UserError(
            f"train_config.fine_tune_checkpoint: {path!r} is the placeholder of a published config; set it to your "
            "checkpoint, or leave it out to train from scratch."
        )
    version = train_pb2.CheckpointVersion.Name(train_config.fine_tune_checkpoint_version)
    if version == "UNKNOWN":
        raise UserError("train_config.fine_tune_checkpoint_version: UNKNOWN is no version; expected V1 or V2.")
    notices: list[str] = []
    kind = _type(train_config, version, notices)
    only_features = _feature_extractor_only(train_config, kind, version, notices)
    return RestoreRequest(path, kind, version, only_features, tuple(notices))


def _type(train_config: train_pb2.TrainConfig, version: str, notices: list[str]) -> str:
    kind = train_config.fine_tune_checkpoint_type
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
