"""Gradual unfreezing through the loop: exact under resumes, traced once a phase, and proven with hashes."""

from __future__ import annotations

import hashlib
import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from batches import map_tensors

from od_finetune import fields, object_keys
from od_finetune.training import loop
from od_finetune.training.freeze import FreezeRequest, NormRule, Unfreezing
from od_finetune.training.freeze_proof import FreezeProof, FrozenChangedError
from od_finetune.training.loop import LoopSettings

STEM = "FeatureExtractor/Conv_0/weights"
GRADUAL = FreezeRequest(
    freeze_through="backbone", unfreeze=(Unfreezing(3, (), "layer_1"), Unfreezing(5, (".*",))), layer_decay=0.5
)


def proof_of(run) -> dict[str, dict]:
    """The last row of each variable."""
    return {row["name"]: row for row in json.loads((run / "freeze_proof.json").read_text())["variables"]}


def slots_in(checkpoint) -> set[str]:
    """Variables that have slots in it."""
    keys = tf.train.load_checkpoint(str(checkpoint)).get_variable_to_shape_map()
    return {
        object_keys.unescape(key.split(object_keys.SLOT)[0]).removeprefix("model/")
        for key in keys
        if object_keys.SLOT in key
    }


@pytest.fixture(scope="module")
def straight():
    """What every way of stopping has to end in; made by the first test that asks, by optimiser."""
    return {}


@pytest.mark.parametrize(
    "optimizer, stops",
    [
        ("adam", (3,)),
        *(pytest.param(name, stops, marks=pytest.mark.slow)
          for name, stops in [("adam", (2,)), ("adam", (4, 5, 6)), ("momentum", (5,)), ("rms_prop", (3, 4))]),
    ],
)
def test_a_run_stopped_anywhere_equals_the_uninterrupted_one(start, state_of, tmp_path, straight, optimizer, stops):
    if optimizer not in straight:
        whole = start(LoopSettings(8), optimizer, model_dir=tmp_path / "whole", freeze=GRADUAL)
        whole.run()
        straight[optimizer] = state_of(whole.trainer)
    for num_steps in (*stops, 8):
        part = start(LoopSettings(num_steps), optimizer, model_dir=tmp_path / "parts", freeze=GRADUAL)
        assert part.run().step == num_steps
        assert "lacks" not in part.said()
    found = state_of(part.trainer)
    assert found.keys() == straight[optimizer].keys()
    for name, value in straight[optimizer].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert [row["to_step"] for row in proof_of(tmp_path / "parts").values()].count(5) == 5


def test_each_phase_is_traced_once_shown_and_has_its_own_slots_and_averages(start, tmp_path):
    shown, traced = [], []
    settings = LoopSettings(7, checkpoint_every=1, keep_checkpoints=0)
    run = start(settings, "adam", freeze=GRADUAL, show_plan=lambda plan: shown.append(plan.from_step))
    make = run.trainer.create_train_loop_fn
    run.trainer.create_train_loop_fn = lambda: traced.append(make()) or traced[-1]
    run.run()
    assert shown == [3, 5]
    assert [function.experimental_get_tracing_count() for function in traced] == [1, 1, 1]
    plan, directory = run.trainer.plan, tmp_path / "run"
    for step in range(1, 8):  # the slots of a boundary's checkpoint are those of the phase that begins there
        reader = tf.train.load_checkpoint(str(directory / f"ckpt-{step}"))
        assert slots_in(directory / f"ckpt-{step}") == set(plan.at(step).trainable)
        averages = object_keys.named(reader.get_variable_to_shape_map(), object_keys.MOVING_AVERAGE)
        assert set(averages) == set(plan.at(step).trainable)
    fresh = tf.train.load_checkpoint(str(directory / "ckpt-5"))
    average = object_keys.named(fresh.get_variable_to_shape_map(), object_keys.MOVING_AVERAGE)[STEM]
    weight = object_keys.named(fresh.get_variable_to_shape_map(), object_keys.MODEL)[STEM]
    np.testing.assert_array_equal(fresh.get_tensor(average), fresh.get_tensor(weight))
    assert not fresh.get_tensor(object_keys.slot_key(STEM, "m")).any()


def test_a_phase_may_be_the_first_that_has_weight_decay(start, tmp_path, scalars):
    decay = (("BoxPredictor", 0.0), ("FeatureExtractor", 0.1))
    request = FreezeRequest(freeze=("FeatureExtractor",), unfreeze=(Unfreezing(3, ("Conv_1",)),), weight_decay=decay)
    run = start(LoopSettings(6, log_every=2), freeze=request)
    run.run()
    written = scalars(tmp_path / "run" / "train")
    assert set(written[fields.REGULARIZATION_LOSS]) == {4, 6} and set(written[fields.TOTAL_LOSS]) == {2, 4, 6}


def test_a_resume_shows_the_phase_it_is_in_and_falls_back_to_an_earlier_one(start, state_of, tmp_path):
    settings = LoopSettings(6, checkpoint_every=2, keep_checkpoints=0)
    whole = start(settings, "adam", freeze=GRADUAL)
    whole.run()
    data = tmp_path / "run" / "ckpt-6.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])  # 6 lies in the last phase, 4 in the one before
    shown = []
    again = start(settings, "adam", freeze=GRADUAL, show_plan=lambda plan: shown.append(plan.from_step))
    again.run()
    assert "ckpt-4 at step 4" in again.said() and shown == [3, 5]
    expected = state_of(whole.trainer)
    for name, value in state_of(again.trainer).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_variable_is_proven_up_to_its_unfreezing(start, fake_detector, hashes, tmp_path):
    first = hashes(fake_detector())
    run = start(LoopSettings(6), freeze=GRADUAL)
    run.run()
    proof = proof_of(tmp_path / "run")
    assert set(proof) == set(run.trainer.plan.phases[0].frozen)
    assert {name: row["before"] for name, row in proof.items()} == {name: first[name] for name in proof}
    assert {row["to_step"] for name, row in proof.items() if "Conv_0" in name} == {5}
    assert {row["to_step"] for name, row in proof.items() if "Conv_1" in name} == {3}
    assert all(row["identical"] and row["before"] == row["after"] for row in proof.values())
    assert hashes(run.trainer.detector)[STEM] != first[STEM]  # it trains since


def test_the_hashes_are_those_of_the_checkpoint_and_stay_over_resumes(start, tmp_path, caplog):
    caplog.set_level("INFO", "od_finetune")
    for num_steps in (2, 4):
        start(LoopSettings(num_steps), freeze=("FeatureExtractor",)).run()
        assert "10 frozen variables unchanged (sha256)" in caplog.text
        caplog.clear()
    proof = proof_of(tmp_path / "run")
    assert {(row["from_step"], row["to_step"], row["identical"]) for row in proof.values()} == {(0, 4, True)}
    reader = tf.train.load_checkpoint(str(tmp_path / "run" / "ckpt-4"))
    keys = object_keys.named(reader.get_variable_to_shape_map(), object_keys.MODEL)
    for name, row in proof.items():
        assert hashlib.sha256(reader.get_tensor(keys[name]).tobytes()).hexdigest() == row["after"]
    assert json.loads((tmp_path / "run" / "freeze_proof.json").read_text())["identical"] is True


def test_a_run_stopped_by_a_signal_has_its_proof(start, tmp_path):
    run = start(LoopSettings(0, checkpoint_every=0), freeze=("FeatureExtractor",))
    show = run.progress.show

    def show_and_signal(step, values, last):
        show(step, values, last)
        if not run.stop:
            before = json.loads((tmp_path / "run" / "freeze_proof.json").read_text())
            assert before["identical"] is None and before["variables"][0]["after"] is None  # written at the start
            os.kill(os.getpid(), signal.SIGTERM)

    run.progress.show = show_and_signal
    outcome = run.run()
    assert outcome.reason == loop.SIGNALLED
    assert {(row["to_step"], row["identical"]) for row in proof_of(tmp_path / "run").values()} == {(outcome.step, True)}


def test_a_frozen_variable_that_changed_is_an_error_and_everything_is_written(start, dataset, tmp_path):
    def meddle(skip):  # the dataset is made after the hashes
        run.trainer.detector.named_variables()[STEM].assign_add(tf.fill([3, 3, 3, 4], 1e-6))
        return dataset(skip=skip)

    run = start(LoopSettings(2), freeze=("FeatureExtractor",), make_dataset=meddle)
    with pytest.raises(FrozenChangedError, match=f"1 variables changed although they were frozen, e.g. {STEM}"):
        run.run()
    rows = proof_of(tmp_path / "run")
    assert [name for name, row in rows.items() if row["identical"] is False] == [STEM]
    assert (tmp_path / "run" / "ckpt-2.index").exists()


def test_a_frozen_variable_that_changed_does_not_hide_why_a_run_ended(start, dataset):
    def meddle(skip):
        def fail(batch):
            assertion = tf.debugging.Assert(tf.reduce_all(batch.keys != "train.record:4 image-4"), ["bad record 4"])
            with tf.control_dependencies([assertion]):
                return map_tensors(tf.identity, batch)

        run.trainer.detector.named_variables()[STEM].assign_add(tf.fill([3, 3, 3, 4], 1e-6))
        return dataset(skip=skip).map(fail)

    run = start(LoopSettings(10), freeze=("FeatureExtractor",), make_dataset=meddle)
    with pytest.raises(FrozenChangedError, match=f"(?s)bad record 4.*changed although they were frozen.*{STEM}"):
        run.run()


@pytest.fixture
def proof(tmp_path):
    """Makes the proof of a run that starts at a step with a value of `w`, and returns its rows after it ended."""

    def run(step, frozen, value, end=None):
        made = FreezeProof(tmp_path / "freeze_proof.json", {"w": tf.Variable(value)})
        made.begin(step, frozen)
        if end is not None:
            made.finish(end)
        rows = json.loads(made.path.read_text())["variables"] if made.path.exists() else []
        return [(row["from_step"], row["to_step"], row["identical"]) for row in rows]

    return run


def test_other_settings_on_resume_end_a_proof_and_begin_another(proof):
    assert proof(0, ["w"], 1.0) == [(0, None, None)]  # killed
    assert proof(4, [], 1.0, end=8) == [(0, 4, True)]  # trained from 4 on
    assert proof(8, ["w"], 2.0, end=9) == [(0, 4, True), (8, 9, True)]  # and frozen again
    assert proof(9, ["w"], 2.0, end=12) == [(0, 4, True), (8, 12, True)]
    assert proof(6, ["w"], 1.5, end=7) == [(0, 4, True), (6, 7, True)]  # from an older checkpoint
    assert proof(0, ["w"], 9.0, end=1) == [(0, 1, True)]  # another run


def test_what_was_proven_under_a_name_that_is_no_longer_asked_for_stays(tmp_path):
    def run(step, end, names):
        made = FreezeProof(tmp_path / "freeze_proof.json", {name: tf.Variable(1.0) for name in names})
        made.begin(step, names)
        made.finish(end)
        return {row["name"]: row["to_step"] for row in json.loads(made.path.read_text())["variables"]}

    assert run(0, 4, ["w", "head[rows of star]"]) == {"w": 4, "head[rows of star]": 4}
    assert run(4, 8, ["w", "head[rows of ring]"]) == {"w": 8, "head[rows of star]": 4, "head[rows of ring]": 8}


def test_a_lost_or_broken_file_proves_from_here_on_and_says_so(proof, tmp_path, caplog):
    assert proof(5, [], 1.0, end=6) == [] and not caplog.messages
    assert proof(5, ["w"], 1.0, end=6) == [(5, 6, True)]
    assert "is gone" in caplog.text
    (tmp_path / "freeze_proof.json").write_text('{"variables": [{"name"')
    assert proof(7, ["w"], 1.0, end=8) == [(7, 8, True)]
    assert "can't be read" in caplog.text


def test_statistics_that_follow_are_not_claimed_to_be_frozen(start, tmp_path):
    request = FreezeRequest(freeze=("FeatureExtractor",), batch_norms=(NormRule("Conv_1", statistics=True),))
    start(LoopSettings(2), freeze=request).run()
    names = {name for name in proof_of(tmp_path / "run") if "moving" in name}
    assert names == {f"FeatureExtractor/Conv_0/BatchNorm/moving_{leaf}" for leaf in ("mean", "variance")}


def test_unfrozen_on_an_earlier_phase_than_the_trainers_is_undone(fake_detector, dataset, start):
    run = start(LoopSettings(8), "adam", freeze=GRADUAL)
    trainer = run.trainer
    assert trainer.follow_plan(6) and not trainer.follow_plan(7)
    assert STEM in trainer.trained and STEM in trainer.moving_average.shadows
    slots = len(trainer.optimizer.variables())
    assert trainer.follow_plan(0)
    assert STEM not in trainer.trained and STEM not in trainer.moving_average.shadows
    assert len(trainer.optimizer.variables()) == 2 * len(trainer.trained) + 1 < slots
    with pytest.raises(KeyError):
        trainer.optimizer.get_slot(trainer.detector.named_variables()[STEM], "m")
    assert not trainer.detector.weighted_layers()["FeatureExtractor/Conv_0/BatchNorm"].trainable


def test_adams_first_update_of_what_is_unfrozen_is_that_of_a_first_step(start):
    """The rate times the gradient's sign; corrected for all steps of the run it would be 0.58 times that here."""
    request = FreezeRequest(freeze=("FeatureExtractor",), unfreeze=(Unfreezing(3, ("Conv_1/weights|Conv_1/depth",)),))
    run = start(LoopSettings(3), "adam", freeze=request)
    run.run()
    trainer, name = run.trainer, "FeatureExtractor/Conv_1/depthwise_weights"
    before, rate = trainer.trained[name].numpy(), float(trainer.optimizer.current_rate())
    trainer.train(tf.constant(1))
    moved = np.abs(trainer.trained[name].numpy() - before)
    assert moved.max() == pytest.approx(rate, rel=1e-2)
