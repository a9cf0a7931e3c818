"""What train_config says about freezing, learning rates and weight decay of single variables."""

from __future__ import annotations

from od_finetune.errors import UserError
from od_finetune.protos import fine_tune_pb2, train_pb2
from od_finetune.training.freeze import FreezeRequest, NormRule, Unfreezing


def freeze_request(train_config: train_pb2.TrainConfig) -> FreezeRequest:
    """What to train, from which step on, at which multiple of the learning rate and with which weight decay.

    Raises:
      UserError: a message lacks its pattern or says nothing, or a number is out of its range.
    """
    if not 0.0 < train_config.layer_decay <= 1.0:
        raise UserError(
            f"train_config.layer_decay is {train_config.layer_decay:g}, expected more than 0 and at most 1 (no decay)."
        )
    return FreezeRequest(
        update=tuple(train_config.update_trainable_variables),
        freeze=tuple(train_config.freeze_variables),
        multipliers=_multipliers(train_config),
        freeze_through=train_config.freeze_through,
        batch_norms=tuple(_norm_rule(i, rule) for i, rule in enumerate(train_config.trainable_batch_norm)),
        unfreeze=tuple(_unfreezing(i, entry) for i, entry in enumerate(train_config.unfreeze)),
        layer_decay=_decimal(train_config.layer_decay),
        weight_decay=_weight_decay(train_config),
    )


def _multipliers(train_config: train_pb2.TrainConfig) -> tuple[tuple[str, float], ...]:
    for index, entry in enumerate(train_config.learning_rate_multiplier):
        field = f"train_config.learning_rate_multiplier[{index}]"
        if not entry.pattern:
            raise UserError(f"{field} has no pattern; name the variables.")
        if not entry.multiplier > 0.0:
            raise UserError(
                f"{field}.multiplier is {entry.multiplier:g}, expected more than 0; to keep variables as they are, use "
                "freeze_variables."
            )
    return tuple((m.pattern, _decimal(m.multiplier)) for m in train_config.learning_rate_multiplier)


def _norm_rule(index: int, rule: fine_tune_pb2.BatchNormTraining) -> NormRule:
    if not rule.HasField("affine") and not rule.HasField("statistics"):
        raise UserError(
            f"train_config.trainable_batch_norm[{index}] says nothing about what {rule.pattern!r} selects; set affine "
            "(gamma and beta train), statistics (moving mean and variance follow the batches), or both."
        )
    return NormRule(
        rule.pattern,
        rule.affine if rule.HasField("affine") else None,
        rule.statistics if rule.HasField("statistics") else None,
    )


def _unfreezing(index: int, entry: fine_tune_pb2.Unfreeze) -> Unfreezing:
    field = f"train_config.unfreeze[{index}]"
    if not entry.pattern and not entry.freeze_through:
        raise UserError(f"{field} says nothing to unfreeze; give patterns, or the stage that freeze_through falls to.")
    if entry.at_step < 1:
        raise UserError(
            f"{field}.at_step is {entry.at_step}, expected 1 or more; what is to train from the start on should not be "
            "frozen."
        )
    return Unfreezing(entry.at_step, tuple(entry.pattern), entry.freeze_through)


def _weight_decay(train_config: train_pb2.TrainConfig) -> tuple[tuple[str, float], ...]:
    entries = train_config.weight_decay
    if entries and not train_config.add_regularization_loss:
        raise UserError(
            "train_config.weight_decay is set, but add_regularization_loss is false, so that no weight decay counts. "
            "Leave one of the two out."
        )
    for index, entry in enumerate(entries):
        field = f"train_config.weight_decay[{index}]"
        if not entry.pattern:
            raise UserError(f"{field} has no pattern; name the variables, '.*' for all.")
        if not entry.weight >= 0.0:
            raise UserError(f"{field}.weight is {entry.weight:g}, expected 0 (none) or more.")
    return tuple((entry.pattern, _decimal(entry.weight)) for entry in entries)


def _decimal(value: float) -> float:
    """The number that was written in the config: a float field gives 0.8999999761581421 for 0.9."""
    return float(f"{value:.7g}")
