"""What records hold for a detector beside images reaches its `predict`, in training and in evaluation."""

from __future__ import annotations

import pytest
import tensorflow as tf
from batches import batches_dataset

from od_finetune import fields
from od_finetune.training import optimizers, schedules
from od_finetune.training.evaluator import Evaluator
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer


@pytest.fixture
def looking(fake_detector):
    """A detector that adds the mean of its context to its class predictions."""

    class Looking(type(fake_detector())):
        context_size = (3, 2)

        def predict(self, inputs, true_shapes, training=False, *, context):
            predictions = super().predict(inputs, true_shapes, training)
            means = tf.reduce_mean(context.features, [1, 2])[:, tf.newaxis, tf.newaxis]
            scores = predictions[fields.CLASS_PREDICTIONS] + means
            return {**predictions, fields.CLASS_PREDICTIONS: scores}

    return Looking


def with_context(batch: fields.Batch, value: float) -> fields.Batch:
    size = len(batch.keys)
    return batch._replace(context=fields.ContextBank(tf.fill([size, 3, 2], value), tf.fill([size], 3)))


def test_training_and_evaluation_give_the_bank(looking, batch):
    losses, scores = [], []
    for value in (0.0, 2.0):
        detector, given = looking(), with_context(batch(0), value)
        detector.build()
        plan = FreezePlan.compute(detector, FreezeRequest())
        trainer = Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.0)), batches_dataset([given]))
        losses.append(float(trainer.losses(given)[fields.TOTAL_LOSS]))
        evaluator = Evaluator(detector, batches_dataset([given]), [])
        scores.append(evaluator.evaluate(tf.constant(-1))[fields.TOTAL_LOSS])
    assert abs(losses[1] - losses[0]) > 1e-3
    assert abs(scores[1] - scores[0]) > 1e-3
