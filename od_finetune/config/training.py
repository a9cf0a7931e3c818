"""Optimiser, schedule, freeze request and loop settings from `train_config` and `eval_config`."""

from __future__ import annotations

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.protos import eval_pb2, optimizer_pb2, train_pb2
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezeRequest
from od_finetune.training.loop import BestSettings, LoopSettings
from od_finetune.training.trainer import TrainerSettings


def freeze_request(train_config: train_pb2.TrainConfig) -> FreezeRequest:
    """What to train, and at which multiple of the learning rate.

    Raises:
      UserError: a learning_rate_multiplier has no pattern, or is not positive.
    """
    for index, multiplier in enumerate(train_config.learning_rate_multiplier):
        if not multiplier.pattern:
            raise UserError(f"train_config.learning_rate_multiplier[{index}] has no pattern; name the variables.")
        if not multiplier.multiplier > 0.0:
            raise UserError(
                f"train_config.learning_rate_multiplier[{index}].multiplier is {multiplier.multiplier:g}, expected "
                "more than 0; to keep variables as they are, use freeze_variables."
            )
    return FreezeRequest(
        update=tuple(train_config.update_trainable_variables),
        freeze=tuple(train_config.freeze_variables),
        multipliers=tuple((m.pattern, m.multiplier) for m in train_config.learning_rate_multiplier),
    )


def build_schedule(config: optimizer_pb2.LearningRate) -> schedules.Schedule:
    """The schedule of a `learning_rate` message.

    Raises:
      UserError: none is chosen, or its steps make no sense.
    """
    kind = config.WhichOneof("learning_rate")
    if kind is None:
        choices = ", ".join(field.name for field in config.DESCRIPTOR.fields)
        raise UserError(f"The optimizer's learning_rate is empty; choose one of {choices}.")
    return _SCHEDULES[kind](getattr(config, kind))


def _constant(config: optimizer_pb2.ConstantLearningRate) -> schedules.Schedule:
    return schedules.constant(config.learning_rate)


def _exponential(config: optimizer_pb2.ExponentialDecayLearningRate) -> schedules.Schedule:
    return schedules.exponential_decay(
        initial=config.initial_learning_rate,
        decay_steps=config.decay_steps,
        decay_factor=config.decay_factor,
        staircase=config.staircase,
        burnin_learning_rate=config.burnin_learning_rate,
        burnin_steps=config.burnin_steps,
        floor=config.min_learning_rate,
    )


def _manual(config: optimizer_pb2.ManualStepLearningRate) -> schedules.Schedule:
    return schedules.manual_step(
        initial=config.initial_learning_rate,
        steps=[entry.step for entry in config.schedule],
        rates=[entry.learning_rate for entry in config.schedule],
        warmup=config.warmup,
    )


def _cosine(config: optimizer_pb2.CosineDecayLearningRate) -> schedules.Schedule:
    return schedules.cosine_decay(
        base=config.learning_rate_base,
        total_steps=config.total_steps,
        warmup_learning_rate=config.warmup_learning_rate,
        warmup_steps=config.warmup_steps,
        hold_steps=config.hold_base_rate_steps,
    )


_SCHEDULES = {
    "constant_learning_rate": _constant,
    "exponential_decay_learning_rate": _exponential,
    "manual_step_learning_rate": _manual,
    "cosine_decay_learning_rate": _cosine,
}


def _rms_prop(config: optimizer_pb2.RMSPropOptimizer, schedule: schedules.Schedule) -> optimizers.Optimizer:
    return optimizers.RmsProp(schedule, config.momentum_optimizer_value, config.decay, config.epsilon)


def _momentum(config: optimizer_pb2.MomentumOptimizer, schedule: schedules.Schedule) -> optimizers.Optimizer:
    return optimizers.Momentum(schedule, config.momentum_optimizer_value)


def _adam(config: optimizer_pb2.AdamOptimizer, schedule: schedules.Schedule) -> optimizers.Optimizer:
    return optimizers.Adam(schedule, config.epsilon)


_OPTIMIZERS = {"rms_prop_optimizer": _rms_prop, "momentum_optimizer": _momentum, "adam_optimizer": _adam}


def build_optimizer(config: optimizer_pb2.Optimizer) -> optimizers.Optimizer:
    """The optimiser of `train_config.optimizer`, not yet bound to variables.

    Raises:
      UserError: none is chosen, or its learning rate is not.
    """
    kind = config.WhichOneof("optimizer")
    if kind is None:
        raise UserError(f"train_config.optimizer is empty; choose one of {', '.join(_OPTIMIZERS)}.")
    chosen = getattr(config, kind)
    return _OPTIMIZERS[kind](chosen, build_schedule(chosen.learning_rate))


def moving_average_decay(config: optimizer_pb2.Optimizer) -> float | None:
    """Decay of the weights' moving average, None where none is kept.

    Raises:
      UserError: it would be no average.
    """
    if config.use_moving_average and not 0.0 <= config.moving_average_decay < 1.0:
        raise UserError(
            f"train_config.optimizer.moving_average_decay is {config.moving_average_decay:g}, expected at least 0 and "
            "less than 1."
        )
    return config.moving_average_decay if config.use_moving_average else None


def trainer_settings(train_config: train_pb2.TrainConfig) -> TrainerSettings:
    """Numbers of a training step."""
    return TrainerSettings(
        clip_norm=train_config.gradient_clipping_by_norm,
        bias_multiplier=train_config.bias_grad_multiplier,
        regularize=train_config.add_regularization_loss,
        seed=train_config.seed,
    )


def loop_settings(train_config: train_pb2.TrainConfig, eval_config: eval_pb2.EvalConfig | None = None) -> LoopSettings:
    """When to stop, save, log and evaluate.

    Raises:
      UserError: eval_config wants averages that training does not keep.
    """
    averages = eval_config is not None and eval_config.use_moving_averages
    if averages and not train_config.optimizer.use_moving_average:
        raise UserError(
            "eval_config.use_moving_averages is set, but train_config.optimizer.use_moving_average is false: there "
            "would be no averages. Set both or neither."
        )
    return LoopSettings(
        num_steps=train_config.num_steps,
        batch_size=train_config.batch_size,
        checkpoint_every=train_config.checkpoint_every_n_steps,
        keep_checkpoints=train_config.max_checkpoints_to_keep,
        keep_every_n_hours=train_config.keep_checkpoint_every_n_hours,
        log_every=train_config.log_every_n_steps,
        evaluate_every=eval_config.eval_every_n_steps if eval_config is not None else 0,
        evaluate_averages=averages,
        evaluate_at_start=eval_config is not None and eval_config.eval_at_start,
    )


def best_settings(eval_config: eval_pb2.EvalConfig, default_metric: str) -> BestSettings:
    """By which metric the best checkpoint is chosen, and when to give up improving it.

    Args:
      default_metric: the metric when the config names none.
    """
    metric = eval_config.best_metric or default_metric
    return BestSettings(
        metric=metric,
        # Of a loss by its name, lower is better without being told.
        lower_is_better=eval_config.best_metric_is_loss or metric.startswith(fields.LOSSES),
        patience=eval_config.early_stopping_patience,
        min_delta=eval_config.early_stopping_min_delta,
    )
