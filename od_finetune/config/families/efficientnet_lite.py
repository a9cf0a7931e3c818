"""EfficientNet-Lite0: SSD and feature pyramid. Not in the OD API: built as its TF2 half builds such extractors."""

from __future__ import annotations

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.models.backbones import efficientnet_lite
from od_finetune.models.normalization import EFFICIENTNET_LITE

EFFICIENTNET_LITE0 = Family(
    backbone=efficientnet_lite.EfficientNetLite0,
    scope=f"FeatureExtractor/{efficientnet_lite.SCOPE}",
    override=efficientnet_lite.override,
    backbone_rules=efficientnet_lite.TF2_RULES,
    vocabularies=efficientnet_lite.VOCABULARIES,
    last_layer=efficientnet_lite.NUM_BLOCKS,
    normalize=EFFICIENTNET_LITE,
)

_EFFICIENTNET_LITE0 = Row(
    family=EFFICIENTNET_LITE0,
    defaults=efficientnet_lite.DEFAULTS,
    keras=True,
    neck=necks.build_multires,
    levels=("block_11/expand", "top"),
    tf2_scope="ssd_efficientnet_lite0_feature_extractor",
)
_EFFICIENTNET_LITE0_FPN = _EFFICIENTNET_LITE0._replace(
    neck=necks.build_fpn,
    levels=("block_2", "block_4", "block_10", "block_15"),
    tf2_scope="ssd_efficientnet_lite0_fpn_feature_extractor",
)

ROWS: dict[str, Row] = {
    "ssd_efficientnet_lite0": _EFFICIENTNET_LITE0,
    "ssd_efficientnet_lite0_fpn": _EFFICIENTNET_LITE0_FPN,
}
