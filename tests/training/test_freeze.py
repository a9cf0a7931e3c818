from __future__ import annotations

import json
import re

import pytest
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.training.freeze import (
    FROZEN,
    FROZEN_STATISTICS,
    STATISTICS,
    TRAINED,
    FreezePlan,
    FreezeRequest,
    NormRule,
    Row,
)

BACKBONE = [
    f"FeatureExtractor/Conv_{i}{leaf}"
    for i, weights in enumerate(("weights", "depthwise_weights"))
    for leaf in (f"/{weights}", "/BatchNorm/gamma", "/BatchNorm/beta")
]
HEAD = [
    f"BoxPredictor_0/{p}/{leaf}" for p in ("ClassPredictor", "BoxEncodingPredictor") for leaf in ("weights", "biases")
]


def plan_of(detector, **request) -> FreezePlan:
    return FreezePlan.compute(detector, FreezeRequest(**request))


def test_without_a_request_everything_is_trained(fake_detector):
    plan = plan_of(fake_detector())
    assert plan.trainable == BACKBONE + HEAD
    assert plan.frozen == [] and plan.frozen_norms == []
    assert {row.state for row in plan.rows if "moving" in row.name} == {STATISTICS}


@pytest.mark.parametrize(
    "request_, trained",
    [
        (dict(freeze=("FeatureExtractor",)), HEAD),
        (dict(freeze=("feature_extractor",)), HEAD),
        (dict(freeze=("(?!BoxPredictor)",)), HEAD),
        (dict(freeze=("stem/kernel",)), [n for n in BACKBONE + HEAD if n != "FeatureExtractor/Conv_0/weights"]),
        (dict(update=("BoxPredictor_0/ClassPredictor",)), HEAD[:2]),
        (dict(update=("ClassPredictor", "Conv_1/"), freeze=("biases", "BatchNorm")), [BACKBONE[3], HEAD[0]]),
    ],
)
def test_update_selects_then_freeze_removes(fake_detector, request_, trained):
    plan = plan_of(fake_detector(), **request_)
    assert plan.trainable == trained
    assert not set(plan.frozen) & set(trained)


def test_a_batch_norm_whose_scale_and_offset_are_frozen_runs_in_inference_mode(fake_detector):
    detector = fake_detector()
    plan = plan_of(detector, freeze=("Conv_0/BatchNorm", "Conv_1/BatchNorm/gamma"))
    assert plan.frozen_norms == ["FeatureExtractor/Conv_0/BatchNorm"]
    states = {row.name: row.state for row in plan.rows}
    assert states["FeatureExtractor/Conv_0/BatchNorm/moving_mean"] == FROZEN_STATISTICS
    assert states["FeatureExtractor/Conv_1/BatchNorm/moving_mean"] == STATISTICS
    variables = plan.apply(detector)
    assert list(variables) == plan.trainable
    layers = detector.weighted_layers()
    assert not layers["FeatureExtractor/Conv_0/BatchNorm"].trainable
    assert layers["FeatureExtractor/Conv_1/BatchNorm"].trainable
    plan_of(detector).apply(detector)  # another plan undoes it
    assert layers["FeatureExtractor/Conv_0/BatchNorm"].trainable


def test_layers_know_whether_training_changes_anything_in_them(fake_detector):
    detector = fake_detector()
    rules = (NormRule("Conv_0/BatchNorm", statistics=True),)
    freeze = ("Conv_0/", "Conv_1/depthwise_weights", "Conv_1/BatchNorm/")
    plan_of(detector, freeze=freeze, batch_norms=rules).apply(detector)
    frozen = {scope for scope, layer in detector.weighted_layers().items() if layer.frozen}
    assert frozen == {"FeatureExtractor/Conv_0", "FeatureExtractor/Conv_1", "FeatureExtractor/Conv_1/BatchNorm"}
    plan_of(detector).apply(detector)
    assert not any(layer.frozen for layer in detector.weighted_layers().values())


def test_a_pattern_decides_about_statistics_of_a_norm_without_scale_and_offset(fake_detector):
    import tf_keras

    detector = fake_detector()
    bare = tf_keras.layers.BatchNormalization(center=False, scale=False)
    bare.build([None, 8, 8, 4])
    detector._layers["FeatureExtractor/Conv_1/BatchNorm"] = bare
    plan = plan_of(detector, freeze=("FeatureExtractor",))
    assert "FeatureExtractor/Conv_1/BatchNorm" in plan.frozen_norms
    assert "FeatureExtractor/Conv_1/BatchNorm" not in plan_of(detector, freeze=("Conv_0",)).frozen_norms


def test_multipliers_the_last_match_wins(fake_detector):
    plan = plan_of(fake_detector(), freeze=("Conv_0",), multipliers=(("BoxPredictor", 10.0), ("biases", 2.0)))
    rates = {row.name: row.multiplier for row in plan.rows}
    assert rates["BoxPredictor_0/ClassPredictor/weights"] == 10.0
    assert rates["BoxPredictor_0/ClassPredictor/biases"] == 2.0
    assert rates["FeatureExtractor/Conv_1/depthwise_weights"] == 1.0
    assert rates["FeatureExtractor/Conv_0/weights"] == 0.0
    assert plan.multipliers == [rates[name] for name in plan.trainable]


@pytest.mark.parametrize(
    "request_, said",
    [
        (dict(freeze=("FeatureExtracter/Conv_0",)), ["freeze_variables", "FeatureExtractor/Conv_0/weights"]),
        (dict(update=("ClasPredictor",)), ["update_trainable_variables", "BoxPredictor_0/ClassPredictor"]),
        (dict(multipliers=(("BoxPredikter_0", 2.0),)), ["learning_rate_multiplier", "BoxPredictor_0"]),
        (dict(freeze=("moving_mean",)), ["freeze_variables", "moving_mean"]),
        (dict(freeze=(".",)), ["nothing would be trained"]),
        (dict(freeze=("(",)), ["regular expression"]),
        (dict(multipliers=(("BoxPredictor", 0.0),)), ["freeze_variables", "above 0"]),
        (dict(multipliers=(("BoxPredictor", -1.0),)), ["above 0"]),
    ],
)
def test_requests_that_can_not_be_meant(fake_detector, request_, said):
    with pytest.raises(UserError) as error:
        plan_of(fake_detector(), **request_)
    for words in said:
        assert words in str(error.value)


def test_text_opens_a_scope_that_is_not_treated_alike(fake_detector):
    plan = plan_of(fake_detector(), freeze=("Conv_0",), multipliers=(("BoxPredictor", 10.0),))
    lines = {line.split("  ")[0]: line.split() for line in plan.text().splitlines()}
    assert lines["FeatureExtractor/Conv_0"][1:5] == ["0", "0", "5", "124"]
    assert "Conv_0" in lines["FeatureExtractor/Conv_0"][-1]
    assert lines["FeatureExtractor/Conv_1"][1] == "3"
    assert lines["BoxPredictor_0"][1:6] == ["4", "35", "0", "0", "10"]
    assert lines["total"][1:5] == ["7", "79", "5", "124"]
    assert "1 batch norm layers" in plan.text()


def test_json_holds_every_variable_and_replaces_the_old_file_whole(fake_detector, tmp_path):
    path = tmp_path / "run" / "freeze_plan.json"
    plan = plan_of(fake_detector(), freeze=("FeatureExtractor",))
    plan_of(fake_detector()).write(path)
    plan.write(path)
    data = json.loads(path.read_text())
    assert [row["name"] for row in data["variables"]] == list(fake_detector().named_variables())
    assert data["trained_parameters"] == 35
    assert [p.name for p in path.parent.iterdir()] == ["freeze_plan.json"]


def test_a_variable_the_model_declares_untrainable_stays_frozen(fake_detector):
    detector = fake_detector()
    layer = detector.weighted_layers()["FeatureExtractor/Conv_0"]
    layer.kernel = tf.Variable(layer.kernel, trainable=False, name="kernel")
    assert "FeatureExtractor/Conv_0/weights" not in plan_of(detector).trainable


def test_a_norm_that_never_trains_keeps_its_statistics_whatever_is_trained(fake_detector):
    detector = fake_detector()
    scope = "FeatureExtractor/Conv_1/BatchNorm"
    detector.weighted_layers()[scope].keeps_statistics = True
    plan = plan_of(detector)
    assert plan.frozen_norms == [scope] and f"{scope}/gamma" in plan.trainable
    row = {row.name: row for row in plan.rows}[f"{scope}/moving_variance"]
    assert row.state == FROZEN_STATISTICS and "train: false" in row.pattern
    assert row.name in plan.frozen


@pytest.mark.parametrize(
    "request_, idle",
    [
        (dict(freeze=("Conv_0",), multipliers=(("Conv_0", 2.0), ("biases", 3.0))), ["'Conv_0'.*frozen"]),
        (dict(multipliers=(("ClassPredictor", 2.0), ("BoxPredictor", 3.0))), ["'ClassPredictor'.*later"]),
        (dict(freeze=("Conv_0",), multipliers=(("Conv_", 2.0),)), []),
    ],
)
def test_a_multiplier_without_effect_is_a_warning(fake_detector, caplog, request_, idle):
    plan_of(fake_detector(), **request_)
    assert len(caplog.messages) == len(idle)
    for message, pattern in zip(caplog.messages, idle, strict=True):
        assert re.search(f"{pattern}", message) and "no effect" in message


def test_text_draws_numbered_siblings_that_are_treated_alike_into_one_line():
    rows = [
        Row(f"Net/{scope}/weights", FROZEN if i < 3 else TRAINED, "", 0.0 if i < 3 else 1.0, 10)
        for i, scope in enumerate(["Conv", "block_0", "block_1/a", "block_2", "block_3", "Conv_1"])
    ]
    lines = [line.split("  ")[0] for line in FreezePlan(rows).text().splitlines()[2:-1]]
    assert lines == ["Net/Conv", "Net/block_0 .. block_1", "Net/block_2 .. block_3", "Net/Conv_1", "total"]
    assert FreezePlan(rows).text().splitlines()[3].split()[3:7] == ["0", "0", "2", "20"]
