"""MobileNet V3 and MobileNet EdgeTPU: SSD. Types of the OD API's TF1 half; the minimalistic ones it does not have."""

from __future__ import annotations

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.models.backbones import mobilenet_v3
from od_finetune.models.backbones.mobilenet_v3 import Architecture


def _row(architecture: Architecture, name: str, levels: tuple[str, str], tf2_scope: str) -> Row:
    family = Family(
        backbone=mobilenet_v3.MobilenetV3,
        scope=f"FeatureExtractor/{name}",
        override=mobilenet_v3.override,
        backbone_rules=mobilenet_v3.KERAS_RULES,
        vocabularies=(),
        last_layer=architecture.last_layer,
    )
    return Row(
        family=family,
        defaults=mobilenet_v3.DEFAULTS,
        keras=False,
        neck=necks.build_multires,
        levels=levels,
        tf2_scope=tf2_scope,
        arguments={"architecture": architecture},
    )


_LARGE = ("MobilenetV3", ("layer_14/expansion_output", "layer_17"), "ssd_mobile_net_v3_large_feature_extractor")
_SMALL = ("MobilenetV3", ("layer_10/expansion_output", "layer_13"), "ssd_mobile_net_v3_small_feature_extractor")
_EDGETPU = ("MobilenetEdgeTPU", ("layer_18/expansion_output", "layer_23"), "ssd_mobile_net_edge_tpu_feature_extractor")

ROWS: dict[str, Row] = {
    "ssd_mobilenet_v3_large": _row(mobilenet_v3.LARGE, *_LARGE),
    "ssd_mobilenet_v3_small": _row(mobilenet_v3.SMALL, *_SMALL),
    "ssd_mobilenet_v3_large_minimalistic": _row(mobilenet_v3.LARGE_MINIMALISTIC, *_LARGE),
    "ssd_mobilenet_v3_small_minimalistic": _row(mobilenet_v3.SMALL_MINIMALISTIC, *_SMALL),
    "ssd_mobilenet_edgetpu": _row(mobilenet_v3.EDGETPU, *_EDGETPU),
}
