from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.row_masks import RowMasks
from od_finetune.training.trainer import Trainer, TrainerSettings

HEAD = ("BoxPredictor_0/ClassPredictor/weights", "BoxPredictor_0/ClassPredictor/biases")
KEPT = 1  # slot of class 1; 0 is the background, 2 class 2
OPTIMIZERS = {
    "momentum": lambda: optimizers.Momentum(schedules.constant(0.1)),
    "adam": lambda: optimizers.Adam(schedules.constant(0.1)),
    "rms_prop": lambda: optimizers.RmsProp(schedules.constant(0.1)),
}


@pytest.fixture
def make(fake_detector, dataset):
    def trainer(optimizer="momentum", keep=True, settings=None, detector=None, **kw):
        detector = detector or fake_detector(weight_decay=0.1)
        plan = FreezePlan.compute(detector, FreezeRequest())
        plan.row_masks = RowMasks.compute(detector, {"one": 1}) if keep else None
        return Trainer(detector, plan, OPTIMIZERS[optimizer](), dataset(), settings, **kw)

    return trainer


def head(trainer):
    return {name: trainer.trained[name].numpy() for name in HEAD}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_kept_rows_stay_to_the_bit_and_others_move(make, optimizer):
    trainer = make(optimizer, settings=TrainerSettings(clip_norm=1.0, bias_multiplier=2.0), moving_average_decay=0.5)
    before = head(trainer)
    trainer.train(tf.constant(5))
    averages = {name: trainer.moving_average.shadows[name].numpy() for name in HEAD}
    for name, start in before.items():
        for after in (head(trainer)[name], averages[name]):
            assert after[..., KEPT].tobytes() == start[..., KEPT].tobytes(), name
            for slot in (0, 2):
                assert not np.array_equal(after[..., slot], start[..., slot]), name
    assert trainer._train_loop_fn.experimental_get_tracing_count() == 1


def test_without_masks_they_would_move(make):
    trainer = make(keep=False)
    before = head(trainer)
    trainer.train(tf.constant(1))
    assert not np.array_equal(head(trainer)[HEAD[0]][..., KEPT], before[HEAD[0]][..., KEPT])


def test_a_momentum_from_before_does_not_move_them(make):
    """A gradient of 0 is not an update of 0."""
    trainer = make()
    slot = trainer.optimizer.get_slot(trainer.trained[HEAD[0]], "momentum")
    slot.assign(tf.ones_like(slot))
    before = head(trainer)
    trainer.train(tf.constant(2))
    np.testing.assert_array_equal(head(trainer)[HEAD[0]][..., KEPT], before[HEAD[0]][..., KEPT])


def test_masked_gradients_have_no_part_in_clipping(make, fake_detector, batch):
    detector = fake_detector(weight_decay=0.0)
    masks = RowMasks.compute(detector, {"one": 1})
    gradients = {name: tf.ones_like(variable) for name, variable in detector.named_variables().items()}
    masks.mask_gradients(gradients)
    for name, gradient in gradients.items():
        expected = np.ones(gradient.shape)
        if name in HEAD:
            expected[..., KEPT] = 0
        np.testing.assert_array_equal(gradient, expected)


def test_only_the_other_variables_of_a_step_are_as_without_masks(make):
    free, kept = make(keep=False), make()
    for trainer in (free, kept):
        trainer.train(tf.constant(1))
    for name in free.trained:
        if name not in HEAD:
            np.testing.assert_allclose(free.trained[name], kept.trained[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_every_group_and_all_outputs_of_a_class_are_masked(fake_detector, monkeypatch):
    detector = fake_detector()
    layout = fields.ClassLayout(2, 3, 0, 2)
    variable = tf.Variable(tf.zeros([4, layout.size]))
    monkeypatch.setattr(detector, "named_variables", lambda: {"head": variable, "other": variable})
    monkeypatch.setattr(detector, "class_layout", lambda name: layout if name == "head" else None)
    masks = RowMasks.compute(detector, {"two": 2})
    assert list(masks.masks) == ["head"] and masks.parameters == 4 * 2 * 2
    np.testing.assert_array_equal(masks.masks["head"], [0, 0, 0, 0, 1, 1] * 2)


def test_plan_shows_them(make, tmp_path):
    plan = make().plan
    assert plan.text().splitlines()[-1].startswith("Rows frozen: one in 2 variables of the class predictor, 5 param")
    plan.write(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["rows_frozen"] == {
        "classes": ["one"], "parameters": 5, "variables": {HEAD[0]: 1, HEAD[1]: 1}
    }  # fmt: skip
    assert "Rows frozen" not in make(keep=False).plan.text()
