"""Stages of the detectors by name."""

from __future__ import annotations

import pytest
from goldens import everyday

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector

STAGES = {
    "ssd_mobilenet_v1": [f"Conv2d_{i}" for i in range(14)],
    "ssd_mobilenet_v2": [f"layer_{i}" for i in range(1, 20)],
    "ssd_efficientnet_lite0": ["stem", *(f"block_{i}" for i in range(16)), "top"],
}
STAGES["ssd_mobilenet_v3_small"] = [f"layer_{i}" for i in range(1, 14)]
STAGES["ssd_mobiledet_gpu"] = [
    *("Conv", "TuckerConv", "FusedConv", "TuckerConv_1", "TuckerConv_2", "TuckerConv_3"),
    *(f"FusedConv_{i}" for i in range(1, 17)),
    "IBN",
]
STAGES["ssd_mobilenet_v1_fpn"] = STAGES["ssd_mobilenet_v1"]
STAGES["ssd_mobilenet_v2_fpn_keras"] = STAGES["ssd_mobilenet_v2"]
STAGES["ssd_efficientnet_lite0_fpn"] = STAGES["ssd_efficientnet_lite0"][:-1]
FPN = (
    "model.ssd.feature_extractor.num_layers=5",
    "model.ssd.anchor_generator={multiscale_anchor_generator { aspect_ratios: 1.0 }}",
    "model.ssd.box_predictor={weight_shared_convolutional_box_predictor { depth: 8 num_layers_before_predictor: 1 "
    "conv_hyperparams { batch_norm {} } }}",
)


# One of each family; the others run with -m slow.
EVERYDAY = {"ssd_mobilenet_v1", "ssd_mobilenet_v2_fpn_keras", "ssd_efficientnet_lite0", "ssd_mobiledet_gpu"}


@pytest.mark.parametrize("kind", everyday(STAGES, EVERYDAY))
def test_every_variable_belongs_to_one_stage_in_the_order_of_the_network(tiny_config, kind):
    overrides = FPN if "_fpn" in kind else ()
    config = pipeline.load(tiny_config, [f"model.ssd.feature_extractor.type={kind}", *overrides])
    detector = build_detector(config.model)
    stages = detector.stages()
    assert [name for stage in stages for name in stage.variables] == list(detector.named_variables())
    count = len(STAGES[kind])
    assert [stage.names[0] for stage in stages][:count] == STAGES[kind]
    assert stages[count - 1].names[1:] == ("stage5", "backbone")
    assert [stage.names for stage in stages[count:]] == ([("neck",), ("head",)] if "_fpn" in kind else [("head",)])


def test_a_resolution_ends_with_its_last_block(tiny_config):
    config = pipeline.load(tiny_config, ["model.ssd.feature_extractor.type=ssd_mobilenet_v2"])
    named = {name: stage for stage in build_detector(config.model).stages() for name in stage.names}
    # 1/2 up to the first inverted residual, 1/4 up to the third, 1/8 up to the sixth, 1/16 up to the thirteenth.
    ends = {"stage1": "layer_2", "stage2": "layer_4", "stage3": "layer_7", "stage4": "layer_14", "stage5": "layer_19"}
    assert {name: named[name].names[0] for name in ends} == ends
    assert all(name.startswith("FeatureExtractor/MobilenetV2/expanded_conv_5/") for name in named["stage3"].variables)
