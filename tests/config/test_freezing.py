"""train_config's freezing fields, and the recipes of docs/freezing.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.config.training import freeze_request
from od_finetune.errors import UserError
from od_finetune.protos import train_pb2
from od_finetune.training.freeze import FreezePlan, FreezeRequest, NormRule, Unfreezing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "freezing.md"
RECIPES = re.findall(r"^```\n(train_config \{.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
NORMS = re.findall(r"^\|.*\| `(\{[^`]*\})` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def parse(text: str) -> train_pb2.TrainConfig:
    return text_format.Parse(text, train_pb2.TrainConfig())


def test_what_is_written_is_requested():
    request = freeze_request(
        parse(
            """freeze_through: "layer_7" layer_decay: 0.9
            trainable_batch_norm { statistics: false } trainable_batch_norm { pattern: "a" affine: true }
            unfreeze { at_step: 5 pattern: "b" pattern: "c" } unfreeze { at_step: 9 freeze_through: "layer_2" }
            weight_decay { pattern: "d" weight: 0.3 } weight_decay { pattern: "e" }"""
        )
    )
    assert request == FreezeRequest(
        freeze_through="layer_7",
        batch_norms=(NormRule(".*", None, False), NormRule("a", True, None)),
        unfreeze=(Unfreezing(5, ("b", "c")), Unfreezing(9, (), "layer_2")),
        layer_decay=0.9,  # not 0.8999999761581421
        weight_decay=(("d", 0.3), ("e", 0.0)),
    )
    assert freeze_request(parse("")) == FreezeRequest()


@pytest.mark.parametrize(
    "text, said",
    [
        ("trainable_batch_norm {}", r"trainable_batch_norm\[0\] says nothing.*affine.*statistics"),
        ("unfreeze { at_step: 3 }", r"unfreeze\[0\] says nothing to unfreeze"),
        ("unfreeze { pattern: 'a' }", r"unfreeze\[0\].at_step is 0, expected 1"),
        ("layer_decay: 0", "layer_decay is 0, expected more than 0 and at most 1"),
        ("layer_decay: 1.01", "layer_decay is 1.01"),
        ("weight_decay { weight: 1 }", r"weight_decay\[0\] has no pattern"),
        ("weight_decay { pattern: 'a' weight: -1 }", r"weight_decay\[0\].weight is -1"),
        ("weight_decay { pattern: 'a' } add_regularization_loss: false", "add_regularization_loss is false"),
    ],
)
def test_what_can_not_be_meant_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        freeze_request(parse(text))


@pytest.fixture(scope="module")
def detector(tiny_config):
    built = build_detector(pipeline.load(tiny_config, ["model.ssd.feature_extractor.type=ssd_mobilenet_v2"]).model)
    built.build()
    return built


def test_the_page_has_recipes():
    assert len(RECIPES) == 5 and len(NORMS) == 5


@pytest.mark.parametrize("text", RECIPES + [f"train_config {{ trainable_batch_norm {norm} }}" for norm in NORMS])
def test_recipes_of_the_page_make_a_plan(detector, text, caplog):
    plan = FreezePlan.compute(detector, freeze_request(pipeline.parse(text).train_config))
    assert not caplog.messages  # of patterns without effect
    assert plan.to_json()["trained_parameters"] > 0


def test_the_page_names_the_stages(detector):
    ends = re.findall(r"`(stage\d)` =\s+`(layer_\d+)`", PAGE.read_text(encoding="utf-8"))
    assert len(ends) == 5
    named = {name: stage.names[0] for stage in detector.stages() for name in stage.names}
    assert {stage: named[stage] for stage, _ in ends} == dict(ends)


def test_gradual_unfreezing_of_the_page(detector):
    plan = FreezePlan.compute(detector, freeze_request(pipeline.parse(RECIPES[1]).train_config))
    assert [phase.from_step for phase in plan.phases] == [0, 500, 1000, 2000]
    assert {detector.part(name) for name in plan.trainable} == {"head"}
    assert not any("expanded_conv_12/" in name for name in plan.at(999).trainable)
    assert any("expanded_conv_12/" in name for name in plan.at(1000).trainable)
    assert all("moving" in name for name in plan.at(2000).frozen) and plan.at(2000).frozen
