from __future__ import annotations

import pytest
import tensorflow as tf

from od_finetune import object_keys

NAMES = ["Net/x.Scale/w", "a/b", "a.b", "a..S/b", "S", "FeatureExtractor/Conv_1.5/BatchNorm/gamma"]


@pytest.mark.parametrize("name", NAMES)
def test_unescape_reverses_escape(name):
    assert object_keys.unescape(object_keys.escape(name)) == name
    assert "/" not in object_keys.escape(name)


def test_keys_are_those_tensorflow_writes(tmp_path):
    variables = {name: tf.Variable([float(number)]) for number, name in enumerate(NAMES)}
    optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
    optimizer.apply_gradients([(tf.ones([1]), variable) for variable in variables.values()])
    averages = {NAMES[0]: tf.Variable([9.0])}
    prefix = tf.train.Checkpoint(model=variables, moving_average=averages, optimizer=optimizer).write(
        str(tmp_path / "ckpt")
    )
    keys = {key for key, _ in tf.train.list_variables(prefix)}
    model = object_keys.named(keys, object_keys.MODEL)
    assert set(model) == set(NAMES) and set(model.values()) <= keys
    assert set(object_keys.named(keys, object_keys.MOVING_AVERAGE)) == {NAMES[0]}
    slots = {key for key in keys if object_keys.SLOT in key}
    assert {object_keys.slot_key(name, "momentum") for name in NAMES} == slots
