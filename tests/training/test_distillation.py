from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training import optimizers, schedules
from od_finetune.training.distillation import KeptOutputs, load_teacher, save_teacher
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

CLASSES = 2


class Logits:
    """Says the same whatever it sees."""

    def __init__(self, logits):
        self.logits = tf.constant(logits, tf.float32)[tf.newaxis]

    def predict(self, inputs, true_shapes, training=False):
        assert not training
        return {fields.CLASS_PREDICTIONS: self.logits}


def distil(taught, learnt, **kw):
    kept = KeptOutputs(kw.pop("classes", [0]), Logits(taught), kw.pop("weight", 1.0), **kw)
    learnt = tf.constant(learnt, tf.float32)[tf.newaxis]
    with tf.GradientTape() as tape:
        tape.watch(learnt)
        loss = kept.losses(None, None, {fields.CLASS_PREDICTIONS: learnt}, CLASSES)[fields.DISTILLATION_LOSS]
    return float(loss), tape.gradient(loss, learnt)[0].numpy()


def test_nothing_is_lost_where_both_say_the_same_and_new_classes_are_free():
    taught = [[0.3, 2.0, -1.0], [1.0, -3.0, 4.0]]
    loss, gradient = distil(taught, [[-5.0, 2.0, 7.0], [4.0, -3.0, 0.0]])
    assert loss == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    loss, gradient = distil(taught, [[0.3, 0.0, -1.0], [1.0, -3.0, 4.0]])
    assert loss > 0.1 and gradient[0, 1] < 0  # up again
    assert np.count_nonzero(np.abs(gradient) > 1e-6) == 1


def test_sigmoid_loss_is_the_divergence_per_object_the_teacher_sees():
    def divergence(p, q):
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    taught, learnt = np.array([[0.0, 3.0, 9.0], [0.0, 2.0, 9.0]]), np.array([[9.0, 1.0, 0.0], [9.0, -1.0, 0.0]])
    p, q = sigmoid(taught[:, 1]), sigmoid(learnt[:, 1])
    loss, _ = distil(taught, learnt, weight=3.0)
    assert loss == pytest.approx(3.0 * divergence(p, q).sum() / max(p.sum(), 1.0), rel=1e-5)


def test_softmax_holds_the_background_and_leaves_a_new_class_its_share():
    taught = [[1.0, 3.0, -4.0]]
    loss, gradient = distil(taught, [[1.0, 3.0, 50.0]], softmax=True)
    assert loss == pytest.approx(0.0, abs=1e-6)
    loss, gradient = distil(taught, [[3.0, 1.0, 0.0]], softmax=True)
    assert gradient[0, 0] > 0 > gradient[0, 1] and gradient[0, 2] == 0
    p, q = np.exp([1.0, 3.0]), np.exp([3.0, 1.0])
    p, q = p / p.sum(), q / q.sum()
    assert loss == pytest.approx((p * np.log(p / q)).sum() / 1.0, rel=1e-5)


def test_columns_without_a_background():
    loss, gradient = distil([[2.0, 1.0]], [[0.0, 1.0]], classes=[0])
    assert loss > 0 and gradient[0, 0] < 0 == gradient[0, 1]


def test_unlabelled_classes_get_no_gradient_of_the_detectors_losses():
    logits = tf.Variable([[[0.5, 1.0, 2.0]]])
    for labelled, expected in ((True, [1.0, 2.0, 4.0]), (False, [1.0, 0.0, 4.0])):
        kept = KeptOutputs([0], labelled=labelled)
        with tf.GradientTape() as tape:
            seen = kept.for_losses({fields.CLASS_PREDICTIONS: tf.identity(logits), "other": 1}, CLASSES)
            loss = tf.reduce_sum(seen[fields.CLASS_PREDICTIONS] ** 2)
        np.testing.assert_allclose(seen[fields.CLASS_PREDICTIONS], logits)
        np.testing.assert_allclose(tape.gradient(loss, logits)[0, 0], expected)
        assert seen["other"] == 1 and kept.losses(None, None, {}, CLASSES) == {}


def make_trainer(detector, teacher, dataset=None, weight=1.0):
    plan = FreezePlan.compute(detector, FreezeRequest())
    kept = KeptOutputs([0], teacher, weight)
    return Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.05)), dataset, kept_outputs=kept)


def test_training_reports_it_and_holds_the_outputs(fake_detector, dataset, batch):
    start, distances = fake_detector(), []
    for weight in (0.0, 20.0):
        trainer = make_trainer(fake_detector(), start, dataset(), weight)
        before = {name: value.numpy() for name, value in start.named_variables().items()}
        output = trainer.train(tf.constant(20))
        assert (fields.DISTILLATION_LOSS in output) == bool(weight)
        for name, value in start.named_variables().items():  # the teacher does not learn
            np.testing.assert_array_equal(value, before[name], err_msg=name)
        images = start.normalize(batch(99).images, batch(99).true_shapes)
        old, new = (
            detector.predict(images, None)[fields.CLASS_PREDICTIONS][..., 1] for detector in (start, trainer.detector)
        )
        distances.append(float(tf.reduce_mean(tf.abs(tf.sigmoid(old) - tf.sigmoid(new)))))
    assert distances[1] < 0.6 * distances[0]
    assert trainer._train_loop_fn.experimental_get_tracing_count() == 1


def test_total_holds_it_weighted(fake_detector, batch):
    detector, teacher = fake_detector(), fake_detector(seed=5)
    once, twice = (make_trainer(detector, teacher, weight=weight).losses(batch(0)) for weight in (1.0, 2.0))
    distilled = fields.DISTILLATION_LOSS
    assert float(twice[distilled]) == pytest.approx(2 * float(once[distilled]))
    total = float(twice[fields.TOTAL_LOSS]) - float(once[fields.TOTAL_LOSS])
    assert total == pytest.approx(float(once[distilled]), rel=1e-4)


def test_the_teacher_is_found_again(fake_detector, tmp_path):
    save_teacher(fake_detector(), tmp_path)
    other = fake_detector(seed=3)
    load_teacher(other, tmp_path)
    for name, value in fake_detector().named_variables().items():
        np.testing.assert_array_equal(value, other.named_variables()[name])


def test_a_teacher_that_is_gone_or_damaged_is_said(fake_detector, tmp_path):
    with pytest.raises(UserError, match="teacher/ckpt-0: no checkpoint lies there.*new --model_dir"):
        load_teacher(fake_detector(), tmp_path)
    save_teacher(fake_detector(), tmp_path)
    data = next((tmp_path / "teacher").glob("*.data*"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match="teacher/ckpt-0: can't be read.*new --model_dir"):
        load_teacher(fake_detector(), tmp_path)


def test_a_weight_without_a_teacher_is_a_mistake():
    with pytest.raises(ValueError, match="teacher"):
        KeptOutputs([0], None, 1.0)
