from __future__ import annotations

import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune.config import training
from od_finetune.errors import UserError
from od_finetune.protos import eval_pb2, optimizer_pb2, train_pb2
from od_finetune.training import optimizers
from od_finetune.training.freeze import FreezeRequest


def parse(text: str) -> train_pb2.TrainConfig:
    return text_format.Parse(text, train_pb2.TrainConfig())


def test_freeze_request():
    config = parse(
        """update_trainable_variables: "a" freeze_variables: "b" freeze_variables: "c"
        learning_rate_multiplier { pattern: "d" multiplier: 10 } learning_rate_multiplier { pattern: "e" }"""
    )
    assert training.freeze_request(config) == FreezeRequest(("a",), ("b", "c"), (("d", 10.0), ("e", 1.0)))
    with pytest.raises(UserError, match=r"learning_rate_multiplier\[0\]"):
        training.freeze_request(parse("learning_rate_multiplier { multiplier: 2 }"))


RATE = "learning_rate { constant_learning_rate { learning_rate: 0.5 } }"


@pytest.mark.parametrize(
    "text, kind, numbers",
    [
        (
            f"rms_prop_optimizer {{ {RATE} momentum_optimizer_value: 0.8 decay: 0.7 epsilon: 0.25 }}",
            optimizers.RmsProp,
            {"momentum": 0.8, "decay_rate": 0.7, "epsilon": 0.25},
        ),
        (
            f"rms_prop_optimizer {{ {RATE} }}",
            optimizers.RmsProp,
            {"momentum": 0.9, "decay_rate": 0.9, "epsilon": 1.0},
        ),
        (f"momentum_optimizer {{ {RATE} momentum_optimizer_value: 0.5 }}", optimizers.Momentum, {"momentum": 0.5}),
        (f"adam_optimizer {{ {RATE} epsilon: 0.125 }}", optimizers.Adam, {"epsilon": 0.125}),
    ],
)
def test_optimizers(text, kind, numbers):
    optimizer = training.build_optimizer(text_format.Parse(text, optimizer_pb2.Optimizer()))
    assert type(optimizer) is kind
    for name, value in numbers.items():
        assert getattr(optimizer, name) == pytest.approx(value)
    assert float(optimizer.schedule(tf.constant(0))) == 0.5


@pytest.mark.parametrize("text, said", [("", "rms_prop_optimizer"), ("adam_optimizer {}", "learning_rate is empty")])
def test_nothing_chosen(text, said):
    with pytest.raises(UserError, match=said):
        training.build_optimizer(text_format.Parse(text, optimizer_pb2.Optimizer()))


def test_settings_take_the_configs_fields_and_its_defaults():
    settings = training.loop_settings(parse(""))
    assert (settings.num_steps, settings.checkpoint_every, settings.keep_checkpoints, settings.log_every) == (
        0, 1000, 5, 100,
    )
    config = parse(
        """num_steps: 7 batch_size: 3 checkpoint_every_n_steps: 2 max_checkpoints_to_keep: 4 log_every_n_steps: 6
        keep_checkpoint_every_n_hours: 0.5 gradient_clipping_by_norm: 10 bias_grad_multiplier: 2
        add_regularization_loss: false seed: 8 optimizer { moving_average_decay: 0.5 }"""
    )
    evaluation = eval_pb2.EvalConfig(eval_every_n_steps=9, use_moving_averages=True, eval_at_start=True)
    assert tuple(training.loop_settings(config, evaluation)) == (7, 3, 2, 4, 0.5, 6, 9, True, True, True)
    assert tuple(training.trainer_settings(config)) == (10.0, 2.0, False, 8)
    assert training.moving_average_decay(config.optimizer) == 0.5
    config.optimizer.use_moving_average = False
    assert training.moving_average_decay(config.optimizer) is None
    with pytest.raises(UserError, match="use_moving_average is false"):
        training.loop_settings(config, evaluation)


def test_best_settings():
    assert training.best_settings(eval_pb2.EvalConfig(), "mAP") == ("mAP", False, 0, 0.0)
    config = eval_pb2.EvalConfig(
        best_metric="Loss/total_loss", best_metric_is_loss=True, early_stopping_patience=3, early_stopping_min_delta=0.5
    )
    assert training.best_settings(config, "mAP") == ("Loss/total_loss", True, 3, 0.5)
    by_name = eval_pb2.EvalConfig(best_metric="Loss/total_loss")
    assert training.best_settings(by_name, "mAP").lower_is_better
    assert training.best_settings(eval_pb2.EvalConfig(), "Loss/total_loss").lower_is_better
