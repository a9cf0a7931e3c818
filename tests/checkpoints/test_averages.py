import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.modeling.optimization import ema_optimizer

from od_finetune.checkpoints.averages import with_moving_averages
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UserError


def test_tf1(tmp_path, save_tensors):
    tensors = {
        "F/Conv/weights": np.zeros((2, 3), np.float32),
        "F/Conv/weights/ExponentialMovingAverage": np.ones((2, 3), np.float32),
        "F/Conv/weights/Momentum": np.full((2, 3), 5, np.float32),
        "F/Conv/BatchNorm/moving_mean": np.full((3,), 7, np.float32),
        "global_step": np.int64(3),
    }
    source = open_source(save_tensors(tmp_path / "model.ckpt", tensors))
    averaged = with_moving_averages(source)
    assert averaged.names() == source.names() and averaged.aliases() == {} and averaged.order() is None
    np.testing.assert_array_equal(averaged.read("F/Conv/weights"), np.ones((2, 3)))
    np.testing.assert_array_equal(averaged.read("F/Conv/BatchNorm/moving_mean"), np.full((3,), 7))
    assert averaged.notes == ("1 of 2 weights are their moving averages; the rest have none.",)
    assert averaged.path == source.path and averaged.layout == source.layout


def test_this_projects(tmp_path):
    name = "FeatureExtractor/Conv/weights"
    checkpoint = tf.train.Checkpoint(
        model={name: tf.Variable([1.0, 2.0]), "BoxPredictor_0/biases": tf.Variable([5.0])},
        moving_average={name: tf.Variable([3.0, 4.0]), "BoxPredictor_0/biases": tf.Variable([6.0])},
    )
    averaged = with_moving_averages(open_source(checkpoint.write(str(tmp_path / "ckpt-1"))))
    np.testing.assert_array_equal(averaged.read(name), [3, 4])
    np.testing.assert_array_equal(averaged.read("BoxPredictor_0/biases"), [6])
    assert averaged.notes == ("All 2 weights are moving averages.",)


def test_tf_models_officials(tmp_path):
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, name="fc", input_shape=(3,))])
    inner = tf_keras.optimizers.legacy.SGD(0.1)
    optimizer = ema_optimizer.ExponentialMovingAverage(inner, average_decay=0.5)
    optimizer.shadow_copy(model)
    before = model.weights[0].numpy()
    optimizer.apply_gradients([(tf.ones_like(weight), weight) for weight in model.trainable_weights])
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    source = open_source(path)
    averaged = with_moving_averages(source)
    np.testing.assert_array_equal(source.read("fc/kernel"), model.weights[0])
    shadow = optimizer.get_slot(model.weights[0], "average").numpy()
    assert not np.array_equal(shadow, model.weights[0]) or not np.array_equal(shadow, before)
    np.testing.assert_array_equal(averaged.read("fc/kernel"), shadow)


def test_none_and_other_shapes(tmp_path, save_tensors):
    weight = {"a/weights": np.zeros((2, 3), np.float32)}
    with pytest.raises(UserError, match="moving averages are asked for, but it has none"):
        with_moving_averages(open_source(save_tensors(tmp_path / "a", weight)))
    other = weight | {"a/weights/ExponentialMovingAverage": np.zeros((3,), np.float32)}
    with pytest.raises(UserError, match=r"a/weights/ExponentialMovingAverage has shape \[3\], its weight \[2, 3\]"):
        with_moving_averages(open_source(save_tensors(tmp_path / "b", other)))
