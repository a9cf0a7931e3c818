"""Stages of the detectors by name."""

from __future__ import annotations

import pytest

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector

NUMBERED = {"ssd_mobilenet_v1": ("Conv2d_", 0, 14), "ssd_mobilenet_v2": ("layer_", 1, 19)}


@pytest.mark.parametrize("kind", NUMBERED)
def test_every_variable_belongs_to_one_stage_in_the_order_of_the_network(tiny_config, kind):
    config = pipeline.load(tiny_config, [f"model.ssd.feature_extractor.type={kind}"])
    detector = build_detector(config.model)
    stages = detector.stages()
    assert [name for stage in stages for name in stage.variables] == list(detector.named_variables())
    prefix, first, count = NUMBERED[kind]
    assert [stage.names[0] for stage in stages][:count] == [f"{prefix}{i}" for i in range(first, first + count)]
    assert stages[count - 1].names[1:] == ("stage5", "backbone")
    assert stages[-1].names == ("head",)


def test_a_resolution_ends_with_its_last_block(tiny_config):
    config = pipeline.load(tiny_config, ["model.ssd.feature_extractor.type=ssd_mobilenet_v2"])
    named = {name: stage for stage in build_detector(config.model).stages() for name in stage.names}
    # 1/2 up to the first inverted residual, 1/4 up to the third, 1/8 up to the sixth, 1/16 up to the thirteenth.
    ends = {"stage1": "layer_2", "stage2": "layer_4", "stage3": "layer_7", "stage4": "layer_14", "stage5": "layer_19"}
    assert {name: named[name].names[0] for name in ends} == ends
    assert all(name.startswith("FeatureExtractor/MobilenetV2/expanded_conv_5/") for name in named["stage3"].variables)
