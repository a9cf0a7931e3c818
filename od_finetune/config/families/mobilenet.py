"""MobileNet V1 and V2: SSD and feature pyramid, TF1 and TF2; pooling pyramid, MnasFPN and the embedded one, TF1."""

from __future__ import annotations

from functools import partial

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.models.backbones import mobilenet_v1, mobilenet_v2
from od_finetune.models.necks import mnasfpn, multires

MOBILENET_V1 = Family(
    backbone=mobilenet_v1.MobilenetV1,
    scope="FeatureExtractor/MobilenetV1",
    override=mobilenet_v1.override,
    backbone_rules=mobilenet_v1.TF2_RULES,
    vocabularies=mobilenet_v1.VOCABULARIES,
    last_layer=13,
)
MOBILENET_V2 = Family(
    backbone=mobilenet_v2.MobilenetV2,
    scope="FeatureExtractor/MobilenetV2",
    override=mobilenet_v2.override,
    backbone_rules=mobilenet_v2.TF2_RULES,
    vocabularies=mobilenet_v2.VOCABULARIES,
    last_layer=19,
)


def _mobilenet_v1(keras: bool) -> Row:
    return Row(
        family=MOBILENET_V1,
        defaults=mobilenet_v1.DEFAULTS,
        keras=keras,
        neck=necks.build_multires,
        levels=("Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        tf2_scope="ssd_mobile_net_v1_keras_feature_extractor",
        tf2_neck="_feature_map_generator",
    )


def _mobilenet_v1_fpn(keras: bool) -> Row:
    return _mobilenet_v1(keras)._replace(
        neck=necks.build_fpn,
        levels=("Conv2d_3_pointwise", "Conv2d_5_pointwise", "Conv2d_11_pointwise", "Conv2d_13_pointwise"),
        tf2_scope="ssd_mobile_net_v1_fpn_keras_feature_extractor",
        tf2_neck="_feature_blocks",
    )


def _mobilenet_v2(keras: bool) -> Row:
    return Row(
        family=MOBILENET_V2,
        defaults=mobilenet_v2.KERAS_DEFAULTS if keras else mobilenet_v2.DEFAULTS,
        keras=keras,
        neck=necks.build_multires,
        levels=("layer_15/expansion_output", "layer_19"),
        tf2_scope="ssd_mobile_net_v2_keras_feature_extractor",
        tf2_neck="feature_map_generator",
    )


def _mobilenet_v2_fpn(keras: bool) -> Row:
    return _mobilenet_v2(keras)._replace(
        neck=necks.build_fpn,
        levels=("layer_4", "layer_7", "layer_14", "layer_19"),
        tf2_scope="ssd_mobile_net_v2_fpn_keras_feature_extractor",
        tf2_neck="_feature_blocks",
        # TF1's FPNLite has a narrow last convolution; TF2 leaves it as it is.
        lite={} if keras else {"last_filters": 256},
        tf2_lists=("_conv_defs",),
    )


_EMBEDDED = _mobilenet_v1(keras=False)._replace(
    neck=partial(necks.build_multires, extra=multires.EMBEDDED_EXTRA_MAPS),
    defaults=mobilenet_v1.DEFAULTS._replace(depthwise_regularizer=None),
    tf2_scope="embedded_ssd_mobile_net_v1_feature_extractor",
)
_PPN = _mobilenet_v1(keras=False)._replace(
    neck=necks.build_ppn, tf2_scope="ssd_mobile_net_v1_ppn_feature_extractor"
)
_MNASFPN = _mobilenet_v2(keras=False)._replace(
    # The published config overrides the backbone's hyperparams; the OD API's extractor does not.
    family=MOBILENET_V2._replace(override=lambda hyperparams, keras: mnasfpn.DEFAULTS),
    defaults=mnasfpn.DEFAULTS,
    neck=necks.build_mnasfpn,
    levels=("layer_7", "layer_14", "layer_18"),
    tf2_scope="ssd_mobile_net_v2_mnas_fpn_feature_extractor",
)

ROWS: dict[str, Row] = {
    "ssd_mobilenet_v1": _mobilenet_v1(keras=False),
    "ssd_mobilenet_v1_keras": _mobilenet_v1(keras=True),
    "ssd_mobilenet_v1_fpn": _mobilenet_v1_fpn(keras=False),
    "ssd_mobilenet_v1_fpn_keras": _mobilenet_v1_fpn(keras=True),
    "ssd_mobilenet_v2": _mobilenet_v2(keras=False),
    "ssd_mobilenet_v2_keras": _mobilenet_v2(keras=True),
    "ssd_mobilenet_v2_fpn": _mobilenet_v2_fpn(keras=False),
    "ssd_mobilenet_v2_fpn_keras": _mobilenet_v2_fpn(keras=True),
    "embedded_ssd_mobilenet_v1": _EMBEDDED,
    "ssd_mobilenet_v1_ppn": _PPN,
    "ssd_mobilenet_v2_mnasfpn": _MNASFPN,
}
