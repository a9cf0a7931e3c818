"""Stages, batch norms, rates and weight decay by pattern in the plan, and that the step does what the plan says."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FROZEN_STATISTICS, STATISTICS, FreezePlan, FreezeRequest, NormRule, Unfreezing
from od_finetune.training.trainer import Trainer

STEM, NEXT = "FeatureExtractor/Conv_0", "FeatureExtractor/Conv_1"
CLASSES = "BoxPredictor_0/ClassPredictor"


def plan_of(detector, **request) -> FreezePlan:
    return FreezePlan.compute(detector, FreezeRequest(**request))


def rows_of(plan):
    return {row.name: row for row in plan.rows}


def trainer_of(detector, dataset=None, **request) -> Trainer:
    return Trainer(detector, plan_of(detector, **request), optimizers.Momentum(schedules.constant(0.05)), dataset)


def changed(detector, dataset, hashes, **request) -> set[str]:
    """What three steps move."""
    before = hashes(detector)
    trainer_of(detector, dataset(), **request).train(tf.constant(3))
    after = hashes(detector)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize("stage, scopes", [("layer_1", [STEM]), ("backbone", [STEM, NEXT]), ("stage1", [STEM, NEXT])])
def test_freeze_through_holds_everything_up_to_and_including_a_stage(fake_detector, stage, scopes):
    plan = plan_of(fake_detector(), freeze_through=stage)
    held = {name for name in fake_detector().named_variables() if any(f"{scope}/" in name for scope in scopes)}
    assert set(plan.frozen) == held
    assert plan.frozen_norms == [f"{scope}/BatchNorm" for scope in scopes]
    assert {row.pattern for row in plan.rows if row.name in held and "moving" not in row.name} == {
        f"freeze_through: {stage}"
    }


def test_freeze_through_adds_to_the_patterns_and_a_pattern_is_named_first(fake_detector):
    rows = rows_of(plan_of(fake_detector(), freeze_through="layer_1", freeze=("Conv_0/weights", "biases")))
    assert rows[f"{STEM}/weights"].pattern == "freeze_variables: Conv_0/weights"
    assert rows[f"{STEM}/BatchNorm/gamma"].pattern == "freeze_through: layer_1"
    assert not rows[f"{CLASSES}/biases"].trainable and rows[f"{CLASSES}/weights"].trainable
    plan = plan_of(fake_detector(), freeze_through="layer_1", update=("FeatureExtractor",))
    assert plan.trainable == [f"{NEXT}/depthwise_weights", f"{NEXT}/BatchNorm/gamma", f"{NEXT}/BatchNorm/beta"]


@pytest.mark.parametrize(
    "request_, said",
    [
        (dict(freeze_through="layer_3"), ["freeze_through", "no stage 'layer_3'", "layer_2 = stage1 = backbone, head"]),
        (dict(freeze_through="bakbone"), ["nearest is 'backbone'"]),
        (dict(freeze_through="head"), ["nothing would be trained", "'head'"]),
        (dict(layer_decay=0.0), ["layer_decay is 0", "at most 1"]),
        (dict(layer_decay=1.5), ["layer_decay is 1.5"]),
        (dict(layer_decay=float("nan")), ["layer_decay is nan"]),
        (dict(weight_decay=((".*", -0.1),)), ["weight_decay", "-0.1"]),
        (dict(weight_decay=(("Conv_9", 0.1),)), ["weight_decay.pattern", "matches no trainable", "Conv_0"]),
        (dict(batch_norms=(NormRule("Conv_9", affine=False),)), ["trainable_batch_norm", "'Conv_9'", "BatchNorm"]),
        (dict(unfreeze=(Unfreezing(0, (".*",)),)), ["at_step: 0", "1 or more"]),
        (dict(freeze=("Conv_0",), unfreeze=(Unfreezing(5, ("Conv_9",)),)), ["unfreeze.pattern", "'Conv_9'"]),
        (dict(freeze=("Conv_0",), unfreeze=(Unfreezing(5, ("Conv_0", "Conv_1")),)), ["at_step: 5", "'Conv_1' has no"]),
        (dict(freeze_through="layer_1", unfreeze=(Unfreezing(5, (), "layer_2"),)), ["'layer_2' has no effect"]),
        (dict(freeze=("Conv_0",), unfreeze=(Unfreezing(5, (), "layer_1"),)), ["'layer_1' has no effect"]),
        (
            dict(
                freeze=("Conv_0",),
                batch_norms=(NormRule(".*", affine=False),),
                unfreeze=(Unfreezing(5, ("Conv_0/BatchNorm",)),),
            ),
            ["has no effect: trainable_batch_norm: .* still freezes it"],
        ),
    ],
)
def test_requests_that_can_not_be_meant(fake_detector, request_, said):
    with pytest.raises(UserError) as error:
        plan_of(fake_detector(), **request_)
    for words in said:
        assert words in str(error.value)


STATISTICS_OF = {s: {f"{s}/BatchNorm/moving_mean", f"{s}/BatchNorm/moving_variance"} for s in (STEM, NEXT)}
AFFINE_OF = {scope: {f"{scope}/BatchNorm/gamma", f"{scope}/BatchNorm/beta"} for scope in (STEM, NEXT)}
HEAD = {f"BoxPredictor_0/{p}Predictor/{leaf}" for p in ("Class", "BoxEncoding") for leaf in ("weights", "biases")}
KERNELS = {f"{STEM}/weights", f"{NEXT}/depthwise_weights"}


@pytest.mark.parametrize(
    "request_, moved",
    [
        # Everything trains, the norms normalise with the statistics they came with.
        (dict(batch_norms=(NormRule(".*", statistics=False),)), KERNELS | AFFINE_OF[STEM] | AFFINE_OF[NEXT] | HEAD),
        # Scale and offset stay, the statistics follow the new images.
        (
            dict(batch_norms=(NormRule("Conv_0", affine=False, statistics=True),)),
            KERNELS | AFFINE_OF[NEXT] | HEAD | STATISTICS_OF[STEM] | STATISTICS_OF[NEXT],
        ),
        # Frozen scale and offset alone: inference mode, as always.
        (dict(batch_norms=(NormRule(".*", affine=False),)), KERNELS | HEAD),
        # A frozen backbone whose statistics follow all the same.
        (
            dict(freeze=("FeatureExtractor",), batch_norms=(NormRule("Conv_1", statistics=True),)),
            HEAD | STATISTICS_OF[NEXT],
        ),
        # A frozen kernel whose norm trains, with and without its statistics.
        (
            dict(freeze_through="backbone", batch_norms=(NormRule("Conv_1", affine=True),)),
            HEAD | AFFINE_OF[NEXT] | STATISTICS_OF[NEXT],
        ),
        (
            dict(freeze_through="backbone", batch_norms=(NormRule("Conv_1", affine=True, statistics=False),)),
            HEAD | AFFINE_OF[NEXT],
        ),
        # The last match that says something counts, for each of the two by itself.
        (
            dict(batch_norms=(NormRule(".*", affine=True, statistics=False), NormRule("Conv_0", affine=False))),
            KERNELS | AFFINE_OF[NEXT] | HEAD,
        ),
        (
            dict(batch_norms=(NormRule(".*", statistics=False), NormRule("Conv_0/BatchNorm$", statistics=True))),
            KERNELS | AFFINE_OF[STEM] | AFFINE_OF[NEXT] | HEAD | STATISTICS_OF[STEM],
        ),
    ],
)
def test_scale_and_offset_and_statistics_are_two_things(fake_detector, dataset, hashes, request_, moved):
    assert changed(fake_detector(), dataset, hashes, **request_) == moved


def test_the_plan_says_which_rule_decided_about_a_norm(fake_detector):
    plan = plan_of(
        fake_detector(),
        freeze=("FeatureExtractor",),
        batch_norms=(NormRule("Conv_0", statistics=True), NormRule("Conv_1", affine=True, statistics=False)),
    )
    rows = rows_of(plan)
    assert rows[f"{STEM}/BatchNorm/moving_mean"][1:3] == (STATISTICS, "trainable_batch_norm: Conv_0")
    assert rows[f"{NEXT}/BatchNorm/moving_mean"][1:3] == (FROZEN_STATISTICS, "trainable_batch_norm: Conv_1")
    assert rows[f"{NEXT}/BatchNorm/gamma"].pattern == "trainable_batch_norm: Conv_1"
    assert plan.frozen_norms == [f"{NEXT}/BatchNorm"]


def test_a_rule_may_let_statistics_follow_that_the_models_config_keeps(fake_detector):
    detector = fake_detector()
    detector.weighted_layers()[f"{STEM}/BatchNorm"].keeps_statistics = True
    assert f"{STEM}/BatchNorm" in plan_of(detector).frozen_norms
    assert plan_of(detector, batch_norms=(NormRule("Conv_0", statistics=True),)).frozen_norms == []


def test_layer_decay_falls_from_stage_to_stage_and_multiplies(fake_detector):
    plan = plan_of(fake_detector(), layer_decay=0.5, multipliers=(("Conv_0/weights", 3.0), ("biases", 10.0)))
    rates = {row.name: row.multiplier for row in plan.rows}
    assert rates[f"{CLASSES}/weights"] == 1.0 and rates[f"{CLASSES}/biases"] == 10.0
    assert rates[f"{NEXT}/depthwise_weights"] == rates[f"{NEXT}/BatchNorm/beta"] == 0.5
    assert rates[f"{STEM}/BatchNorm/gamma"] == 0.25 and rates[f"{STEM}/weights"] == 0.75
    line = next(line for line in plan.text().splitlines() if line.startswith(NEXT))
    assert line.split()[5] == "0.5"


def test_a_stage_moves_by_its_multiplier(fake_detector, dataset):
    """Plain SGD without momentum: the first update is rate * multiplier * gradient."""
    moves = []
    for decay in (1.0, 0.5):
        detector = fake_detector()
        start = {name: variable.numpy() for name, variable in detector.named_variables().items()}
        plan = plan_of(detector, layer_decay=decay)
        Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.1), 0.0), dataset()).train(tf.constant(1))
        moves.append({name: variable.numpy() - start[name] for name, variable in detector.named_variables().items()})
    for name, factor in ((f"{STEM}/weights", 0.25), (f"{NEXT}/depthwise_weights", 0.5), (f"{CLASSES}/weights", 1.0)):
        np.testing.assert_allclose(moves[1][name], factor * moves[0][name], rtol=1e-3, atol=1e-7, err_msg=name)


def test_weight_decay_takes_the_place_of_the_layers_own(fake_detector, batch):
    detector = fake_detector(weight_decay=0.2)
    weights = (("Conv_", 0.0), ("ClassPredictor", 0.5), (f"{NEXT}/BatchNorm/gamma", 3.0), ("Conv_0", 9.0))
    trainer = trainer_of(detector, None, freeze=("Conv_0",), weight_decay=weights)
    squares = {name: 0.5 * float(tf.reduce_sum(v**2)) for name, v in detector.named_variables().items()}
    expected = 0.5 * (squares[f"{CLASSES}/weights"] + squares[f"{CLASSES}/biases"])
    expected += 3.0 * squares[f"{NEXT}/BatchNorm/gamma"]
    expected += 0.2 * squares["BoxPredictor_0/BoxEncodingPredictor/weights"]  # its own; the frozen stem has none
    assert float(trainer.losses(batch(0))[fields.REGULARIZATION_LOSS]) == pytest.approx(expected, rel=1e-5)


def test_weight_decay_is_shown_only_where_it_was_asked_for(fake_detector, caplog):
    detector = fake_detector()
    assert "weight decay" not in plan_of(detector).text()
    assert all("weight_decay" not in row for row in plan_of(detector).to_json()["variables"])
    plan = plan_of(detector, freeze=("Conv_0",), weight_decay=(("BoxPredictor", 0.25), ("Conv_0", 0.5)))
    lines = {line.split("  ")[0]: line for line in plan.text().splitlines()}
    assert "weight decay" in plan.text() and "0.25" in lines["BoxPredictor_0"] and "own" in lines[NEXT]
    rows = {row["name"]: row for row in plan.to_json()["variables"]}
    assert rows[f"{CLASSES}/biases"]["weight_decay"] == 0.25 and "weight_decay" not in rows[f"{STEM}/weights"]
    assert any("'Conv_0'" in message and "frozen" in message for message in caplog.messages)


def test_phases_of_unfreezing(fake_detector):
    plan = plan_of(
        fake_detector(),
        freeze=("FeatureExtractor",),
        unfreeze=(Unfreezing(9, ("Conv_0",)), Unfreezing(4, ("Conv_1",))),
    )
    assert [phase.from_step for phase in plan.phases] == [0, 4, 9]
    assert (plan.next_change(0), plan.next_change(3), plan.next_change(4), plan.next_change(9)) == (4, 4, 9, None)
    assert plan.at(3) is plan and plan.at(4) is plan.phases[1].at(8) and plan.at(100) is plan.phases[2]
    assert set(plan.trainable) == HEAD
    assert set(plan.at(4).trainable) == HEAD | {f"{NEXT}/depthwise_weights"} | AFFINE_OF[NEXT]
    assert plan.at(4).frozen_norms == [f"{STEM}/BatchNorm"] and plan.at(9).frozen == []
    assert rows_of(plan.at(9))[f"{NEXT}/BatchNorm/beta"].pattern == "unfreeze at step 4: Conv_1"
    assert "From step 4 on 3 more variables train (44 parameters): unfreeze at step 4: Conv_1." in plan.text()
    assert "Freeze plan from step 4 on:" in plan.at(4).text() and "From step 4" not in plan.at(4).text()
    phases = plan.at(4).to_json()["phases"]
    assert [phase["from_step"] for phase in phases] == [0, 4, 9]
    assert phases[0]["unfrozen"] == [] and len(phases[1]["unfrozen"]) == 3
    assert plan.at(4).to_json()["from_step"] == 4


def test_unfreezing_by_stage_lifts_freeze_through_alone(fake_detector):
    plan = plan_of(
        fake_detector(),
        freeze_through="backbone",
        freeze=("gamma",),
        batch_norms=(NormRule(".*", statistics=False),),
        unfreeze=(Unfreezing(4, (), "layer_1"), Unfreezing(8, ("Conv_0",))),
    )
    assert set(plan.at(4).trainable) == HEAD | {f"{NEXT}/depthwise_weights", f"{NEXT}/BatchNorm/beta"}
    rows = rows_of(plan.at(8))
    assert rows[f"{NEXT}/BatchNorm/beta"].pattern == "unfreeze at step 4: freeze_through layer_1"
    assert rows[f"{STEM}/BatchNorm/gamma"].trainable and not rows[f"{NEXT}/BatchNorm/gamma"].trainable
    assert len(plan.at(8).frozen_norms) == 2  # statistics: false holds through all phases
