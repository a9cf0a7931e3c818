from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.config.export import load_trained
from od_finetune.errors import UnreadableError, UserError
from od_finetune.training import checkpointing, optimizers, schedules
from od_finetune.training.checkpointing import Checkpoints
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer


def make_trainer(detector, optimizer=None, average=0.5, **request) -> Trainer:
    plan = FreezePlan.compute(detector, FreezeRequest(**request))
    optimizer = optimizer or optimizers.Adam(schedules.constant(0.01))
    return Trainer(detector, plan, optimizer, moving_average_decay=average)


@pytest.fixture
def saved(fake_detector, tmp_path):
    """A model_dir with checkpoints of steps 3 and 6, whose first predictor bias is the step."""
    trainer = make_trainer(fake_detector(), freeze=("feature_extractor",))
    checkpoints = Checkpoints(trainer, tmp_path / "run")
    for step in (3, 6):
        trainer.global_step.assign(step)
        trainer.trained["BoxPredictor_0/ClassPredictor/biases"].assign([float(step)] * 3)
        trainer.moving_average.update()
        checkpoints.save()
    return tmp_path / "run"


def bias(detector) -> float:
    return float(detector.named_variables()["BoxPredictor_0/ClassPredictor/biases"][0])


def test_restores_the_newest(fake_detector, saved):
    trainer = make_trainer(fake_detector(1), freeze=("feature_extractor",))
    checkpoints = Checkpoints(trainer, saved)
    assert checkpoints.restore().endswith("ckpt-6") and int(trainer.global_step) == 6
    assert bias(trainer.detector) == 6.0
    assert trainer.moving_average.shadows["BoxPredictor_0/ClassPredictor/biases"].numpy()[0] == 0.25 * 3 + 0.5 * 6
    np.testing.assert_array_equal(  # frozen variables are in it too
        trainer.detector.named_variables()["FeatureExtractor/Conv_0/weights"],
        fake_detector(0).named_variables()["FeatureExtractor/Conv_0/weights"],
    )


def test_object_keys_are_the_canonical_names(saved):
    keys = {name for name, _ in tf.train.list_variables(str(saved / "ckpt-6"))}
    assert "model/FeatureExtractor.SConv_0.SBatchNorm.Smoving_mean/.ATTRIBUTES/VARIABLE_VALUE" in keys
    assert "moving_average/BoxPredictor_0.SClassPredictor.Sbiases/.ATTRIBUTES/VARIABLE_VALUE" in keys
    assert not any("FeatureExtractor" in key for key in keys if "OPTIMIZER_SLOT" in key or "moving_average" in key)


def cut_data(run):
    data = run / "ckpt-6.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])


def cut_index(run):
    index = run / "ckpt-6.index"
    index.write_bytes(index.read_bytes()[:50])


def no_index(run):  # killed before the index was renamed into place
    (run / "ckpt-6.index").rename(run / "ckpt-6_temp")


def no_data(run):
    (run / "ckpt-6.data-00000-of-00001").unlink()


@pytest.mark.parametrize("damage", [cut_data, cut_index, no_index, no_data])
def test_a_half_written_checkpoint_leaves_the_last_good_one(fake_detector, saved, damage):
    damage(saved)
    trainer = make_trainer(fake_detector(1), freeze=("feature_extractor",))
    assert Checkpoints(trainer, saved).restore().endswith("ckpt-3")
    assert bias(trainer.detector) == 3.0 and int(trainer.global_step) == 3


def test_nothing_readable_is_an_error_and_nothing_at_all_is_a_start(fake_detector, saved, tmp_path):
    trainer = make_trainer(fake_detector(), freeze=("feature_extractor",))
    assert Checkpoints(trainer, tmp_path / "new").restore() is None
    cut_data(saved)
    (saved / "ckpt-3.index").write_bytes(b"")
    with pytest.raises(UserError, match="No checkpoint in model_dir can be read(.|\n)*ckpt-6(.|\n)*ckpt-3"):
        Checkpoints(trainer, saved).restore()


def test_another_models_checkpoint_is_refused(fake_detector, saved):
    detector = fake_detector()
    detector._layers["BoxPredictor_0/ClassPrediktor"] = detector._layers.pop("BoxPredictor_0/ClassPredictor")
    with pytest.raises(UserError, match="another config: 4 variables differ.*ClassPrediktor/biases is missing"):
        Checkpoints(make_trainer(detector), saved).restore()
    with pytest.raises(UserError, match="ClassPrediktor/biases"):
        load_trained(detector, saved / "ckpt-6")


def test_other_freezing_starts_the_missing_state_anew(fake_detector, saved):
    trainer = make_trainer(fake_detector(1))
    Checkpoints(trainer, saved).restore()
    weights = trainer.trained["FeatureExtractor/Conv_0/weights"]
    np.testing.assert_array_equal(trainer.moving_average.shadows["FeatureExtractor/Conv_0/weights"], weights)
    assert not trainer.optimizer.get_slot(weights, "m").numpy().any()


def test_what_is_frozen_since_loses_its_slots_and_average(fake_detector, tmp_path):
    Checkpoints(make_trainer(fake_detector()), tmp_path).save()
    trainer = make_trainer(fake_detector(1), freeze=("feature_extractor",))
    assert Checkpoints(trainer, tmp_path).restore()
    assert len(trainer.optimizer.variables()) == 2 * len(trainer.trained) + 1  # and the step
    assert set(trainer.moving_average.shadows) == set(trainer.trained)


def test_loads_weights_or_their_averages(fake_detector, saved):
    detector = fake_detector(1)
    path = checkpointing.candidates(saved)[0]
    assert load_trained(detector, path) == 6
    assert bias(detector) == 6.0
    assert load_trained(detector, path, use_moving_averages=True) == 6
    assert bias(detector) == 0.25 * 3 + 0.5 * 6


def test_missing_averages_and_missing_files_are_errors(fake_detector, tmp_path):
    trainer = make_trainer(fake_detector(), average=None)
    path = Checkpoints(trainer, tmp_path).save()
    with pytest.raises(UserError, match="no moving averages"):
        load_trained(trainer.detector, path, use_moving_averages=True)
    with pytest.raises(UnreadableError, match="ckpt-9: no checkpoint lies there"):
        load_trained(trainer.detector, tmp_path / "ckpt-9")


@pytest.mark.parametrize("damage", [cut_data, cut_index, no_index, no_data])
def test_damage_is_told_from_another_model_and_leaves_the_detector_alone(fake_detector, saved, damage, hashes):
    damage(saved)
    detector = fake_detector(1)
    before = hashes(detector)
    with pytest.raises(UnreadableError, match="ckpt-6"):
        load_trained(detector, saved / "ckpt-6")
    assert hashes(detector) == before


def test_names_with_dots_are_resumed(fake_detector, tmp_path):
    """TensorFlow escapes a dot in an object's path, too."""
    def dotted(seed):
        detector = fake_detector(seed)
        detector._layers["BoxPredictor_0/x.Scale"] = detector._layers.pop("BoxPredictor_0/ClassPredictor")
        return detector

    Checkpoints(make_trainer(dotted(0)), tmp_path).save()
    trainer = make_trainer(dotted(1))
    assert Checkpoints(trainer, tmp_path).restore() == str(tmp_path / "ckpt-0")
    wanted = dotted(0).named_variables()["BoxPredictor_0/x.Scale/weights"]
    np.testing.assert_array_equal(trainer.detector.named_variables()["BoxPredictor_0/x.Scale/weights"], wanted)


def test_keeps_as_many_as_asked_and_saves_a_step_once(fake_detector, tmp_path):
    trainer = make_trainer(fake_detector())
    checkpoints = Checkpoints(trainer, tmp_path, keep=2)
    for step in (1, 2, 2, 10):
        trainer.global_step.assign(step)
        checkpoints.save()
    assert [path.rpartition("-")[2] for path in checkpointing.candidates(tmp_path)] == ["10", "2"]
    shutil.rmtree(tmp_path)
