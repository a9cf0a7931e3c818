"""Classes carried over by name and kept, end to end on the tiny quickstart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from od_finetune import experiment
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UserError

SOURCE = Path(__file__).resolve().parents[1] / "configs" / "quickstart_data" / "source"
HEAD = "BoxPredictor_{}/ClassPredictor/{}"
# class: slot in the checkpoint (7 per anchor), slot in the model (5 per anchor); 0 is the background
SLOTS = {"background": (0, 0), "star": (1, 2), "ring": (2, 4)}

TRANSFER = f'train_config.class_transfer={{source_label_map: "{SOURCE}/label_map.pbtxt"}}'
KEEP = "train_config.keep_classes={distillation_weight: 5 labelled: false}"
"""The records label star and ring as well, which does not matter here."""


@pytest.fixture
def run(tiny_config, tmp_path):
    def start(model_dir, steps, *overrides):
        options = experiment.Options(
            str(tiny_config),
            str(tmp_path / model_dir),
            (TRANSFER, KEEP, "eval_input_reader=", "train_config.checkpoint_every_n_steps=1", *overrides),
            num_train_steps=steps,
            record_summaries=False,
        )
        assert experiment.train_and_evaluate(options) == 0
        return tmp_path / model_dir

    return start


def weights(checkpoint):
    source = open_source(checkpoint)
    return {name: source.read(name) for name in source.names()}


def row(value, slots, slot):
    return value.reshape(*value.shape[:-1], -1, slots)[..., slot]


@pytest.mark.slow
def test_kept_rows_come_from_the_checkpoint_and_stay_and_a_resume_is_exact(run, eager, caplog):
    caplog.set_level("INFO")
    straight = run("straight", 2)
    plan = json.loads((straight / "restore_plan.json").read_text())
    transplanted = {row["name"] for row in plan["rows"] if row["status"] == "rows transplanted"}
    assert transplanted == {HEAD.format(i, leaf) for i in (0, 1) for leaf in ("weights", "biases")}
    assert plan["counts"]["restored"] == len(plan["rows"]) - 4
    assert {one["name"]: one["how"] for one in plan["class_rows"]["classes"]} == {
        "mug": "starts anew", "star": "same name", "leaf": "starts anew", "ring": "same name"
    }  # fmt: skip
    assert "  carried over under the same name (2): star, ring" in caplog.text.splitlines()
    assert "Rows frozen: star, ring in 4 variables" in caplog.text
    frozen = json.loads((straight / "freeze_plan.json").read_text())["rows_frozen"]
    assert frozen["classes"] == ["star", "ring"] and set(frozen["variables"]) == transplanted

    proof = json.loads((straight / "freeze_proof.json").read_text())
    proven = {row["name"] for row in proof["variables"] if row["identical"]}
    assert proof["identical"] and {f"{name}[rows of star, ring]" for name in transplanted} <= proven

    before, after = weights(SOURCE / "model.ckpt"), weights(straight / "ckpt-2")
    teacher = weights(straight / "teacher" / "ckpt-0")
    for name in transplanted:
        for kind, (there, here) in SLOTS.items():
            start = row(before[name], 7, there)
            np.testing.assert_array_equal(row(teacher[name], 5, here), start, err_msg=name)
            assert np.array_equal(row(after[name], 5, here), start) == (kind != "background"), (name, kind)
        assert not np.array_equal(row(after[name], 5, 1), row(teacher[name], 5, 1))  # mug learns
    moving = "FeatureExtractor/MobilenetV1/Conv2d_6_pointwise/weights"
    assert not np.array_equal(teacher[moving], after[moving])

    run("parts", 1)
    parts = run("parts", 2)
    resumed = weights(parts / "ckpt-2")
    for name, value in after.items():
        np.testing.assert_allclose(resumed[name], value, rtol=1e-5, atol=1e-6, err_msg=name)

    shutil.rmtree(parts / "teacher")
    with pytest.raises(UserError, match="teacher/ckpt-0: no checkpoint lies there"):
        run("parts", 3)


def test_a_type_without_heads_is_refused(run):
    with pytest.raises(UserError, match="no row of a class predictor can be carried over.*leaves heads out"):
        run("refused", 1, "train_config.fine_tune_checkpoint_version=V2")


def test_classes_that_start_from_random_numbers_are_not_kept(tiny_config, tmp_path):
    keep = "train_config.keep_classes={name: 'star'}"
    for override, said in (
        ("train_config.fine_tune_checkpoint_type=classification", "4 variables .*BoxPredictor_0/Class.*left out"),
        ("train_config.batch_size=2", "4 variables of the class predictor .*shape differs.*class_transfer"),
        ("train_config.fine_tune_checkpoint=", "nothing is restored"),
    ):
        options = experiment.Options(str(tiny_config), str(tmp_path), (keep, override))
        with pytest.raises(UserError, match=f"train_config.keep_classes: .*{said}"):
            experiment.train_and_evaluate(options)
