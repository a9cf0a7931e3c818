from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.training.best import Best, BestSettings


@pytest.fixture
def weight() -> tf.Variable:
    return tf.Variable(0.0)


def kept(directory, weight) -> float:
    found = tf.Variable(-1.0)
    tf.train.Checkpoint(weight=found).restore(tf.train.latest_checkpoint(str(directory))).expect_partial()
    return float(found)


def test_keeps_the_best_checkpoint_and_its_record_through_a_restart(tmp_path, weight):
    checkpoint = tf.train.Checkpoint(weight=weight)
    best = Best(tmp_path, checkpoint, BestSettings("mAP"))
    for step, value, better in [(10, 0.2, True), (20, 0.5, True), (30, 0.4, False)]:
        weight.assign(step)
        assert best.update({"mAP": value, "other": 9.0}, step) is better
    again = Best(tmp_path, checkpoint, BestSettings("mAP"))
    assert again.value == 0.5
    assert not again.update({"mAP": 0.45}, 40)
    record = json.loads((tmp_path / "best.json").read_text())
    assert record == {
        "metric": "mAP", "value": 0.5, "step": 20, "checkpoint": "ckpt-20", "evaluations_without_improvement": 2,
    }
    assert kept(tmp_path, weight) == 20.0
    assert {path.name.split(".")[0] for path in tmp_path.glob("ckpt-*")} == {"ckpt-20"}


def test_lower_can_be_better(tmp_path, weight):
    best = Best(tmp_path, tf.train.Checkpoint(weight=weight), BestSettings("Loss/total_loss", lower_is_better=True))
    assert [best.update({"Loss/total_loss": v}, i) for i, v in enumerate((2.0, 1.0, 1.5))] == [True, True, False]


def test_patience_counts_evaluations_without_enough_improvement(tmp_path, weight):
    settings = BestSettings("mAP", patience=2, min_delta=0.1)
    best = Best(tmp_path, tf.train.Checkpoint(weight=weight), settings)
    gave_up = []
    for step, value in enumerate((0.3, 0.5, 0.55, 0.59)):
        best.update({"mAP": value}, step)
        gave_up.append(best.out_of_patience)
    assert gave_up == [False, False, False, True]
    assert best.value == 0.59  # kept all the same: it is the best


def test_nan_is_never_the_best(tmp_path, weight):
    best = Best(tmp_path, tf.train.Checkpoint(weight=weight), BestSettings("mAP"))
    assert not best.update({"mAP": np.nan}, 1)
    assert best.value is None
    assert best.update({"mAP": -1.0}, 2)


def test_a_metric_that_the_evaluation_does_not_give(tmp_path, weight):
    best = Best(tmp_path, tf.train.Checkpoint(weight=weight), BestSettings("mAPP"))
    with pytest.raises(UserError, match="mAPP.*DetectionBoxes_Precision/mAP"):
        best.update({"DetectionBoxes_Precision/mAP": 0.1}, 1)


def test_another_metric_starts_anew(tmp_path, weight):
    checkpoint = tf.train.Checkpoint(weight=weight)
    Best(tmp_path, checkpoint, BestSettings("mAP")).update({"mAP": 0.9}, 1)
    assert Best(tmp_path, checkpoint, BestSettings("AP50")).update({"AP50": 0.1}, 2)


def test_a_kill_before_the_record_is_written_leaves_the_old_best_whole(tmp_path, weight, monkeypatch):
    checkpoint = tf.train.Checkpoint(weight=weight)
    best = Best(tmp_path, checkpoint, BestSettings("mAP"))
    best.update({"mAP": 0.1}, 1)
    monkeypatch.setattr("od_finetune.training.best.files.write_json", _killed)
    with pytest.raises(KeyboardInterrupt):
        best.update({"mAP": 0.2}, 2)
    record = Best(tmp_path, checkpoint, BestSettings("mAP")).record
    assert record["step"] == 1 and (tmp_path / f"{record['checkpoint']}.index").exists()


def _killed(*_):
    raise KeyboardInterrupt
