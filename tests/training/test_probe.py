from __future__ import annotations

import numpy as np
import tensorflow as tf

from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer


def test_a_batch_of_noise_has_the_shapes_of_training_and_sound_boxes():
    batch = probe.random_batch(2, (32, 48), 5, max_boxes=7, boxes=3)
    assert batch.images.shape == (2, 32, 48, 3)
    assert batch.true_shapes.numpy().tolist() == [[32, 48, 3]] * 2
    truth = batch.groundtruth
    assert truth.boxes.shape == (2, 7, 4) and truth.classes.shape == (2, 7, 5)
    assert truth.weights.numpy().tolist() == [[1, 1, 1, 0, 0, 0, 0]] * 2
    boxes = truth.boxes.numpy()[:, :3]
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert not truth.boxes.numpy()[:, 3:].any()
    np.testing.assert_array_equal(truth.classes.numpy().sum(-1), truth.weights)


def test_measuring_steps_the_trainer(fake_detector, batch):
    detector = fake_detector()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=("feature_extractor",)))
    trainer = Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.1)))
    stepper = probe.Stepper(trainer, batch(0), warm_up=2)
    seconds, cpu_seconds = stepper.step()
    assert seconds > 0 and cpu_seconds >= 0
    assert int(trainer.global_step) == 3


def test_relative_time_compares_turn_by_turn():
    found = probe.Measurement((1.0, 8.0, 3.0), (1.0, 2.0, 3.0), 10, (2.0, 20.0, 4.0))  # the second turn was disturbed
    assert (found.median, found.cpu_median, found.relative) == (3.0, 2.0, 0.5)


def test_peak_memory_is_that_since_it_was_forgotten():
    probe.forget_peak()
    before = probe.peak_resident()
    held = np.ones(50_000_000, np.uint8)
    assert probe.peak_resident() - before > 40e6
    del held
    tf.constant(0.0)
    assert probe.peak_resident() - before > 40e6
