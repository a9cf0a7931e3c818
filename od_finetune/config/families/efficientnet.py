"""EfficientNet B0 to B7 with a bidirectional feature pyramid: EfficientDet. TF2 only."""

from __future__ import annotations

import functools

from od_finetune.config.bifpn import build_bifpn
from od_finetune.config.rows import Family, Row
from od_finetune.errors import UserError
from od_finetune.models.backbones import efficientnet, efficientnet_names
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.normalization import IMAGENET
from od_finetune.protos import fpn_pb2


def _no_override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    del hyperparams, keras
    raise UserError(
        "model.ssd.feature_extractor.override_base_feature_extractor_hyperparams: found true, but EfficientNets have "
        "hyperparameters of their own; remove the field"
    )


def _row(version: str, name: str, iterations: int, filters: int, combine_method: str = "fast_attention") -> Row:
    """`name` is the extractor's in TF2 checkpoints; the rest is the pyramid's unless the config says otherwise."""
    defaults = fpn_pb2.BidirectionalFeaturePyramidNetworks(
        num_iterations=iterations, num_filters=filters, combine_method=combine_method
    )
    family = Family(
        backbone=efficientnet.EfficientNet,
        scope=f"FeatureExtractor/Efficientnet{version.upper()}",
        override=_no_override,
        backbone_rules=efficientnet.TF2_RULES,
        vocabularies=efficientnet_names.vocabularies(version, efficientnet.repeats(version)),
        last_layer=0,  # no name counts on from it
        normalize=IMAGENET,
    )
    return Row(
        family=family,
        defaults=efficientnet.DEFAULTS,
        keras=True,
        neck=functools.partial(build_bifpn, defaults=defaults),
        levels=efficientnet.LEVELS,
        tf2_scope=name,
        arguments={"version": version},
    )


_VERSIONS = {
    "b0": _row("b0", "EfficientDet-D0", 3, 64),
    "b1": _row("b1", "EfficientDet-D1", 4, 88),
    "b2": _row("b2", "EfficientDet-D2", 5, 112),
    "b3": _row("b3", "EfficientDet-D3", 6, 160),
    "b4": _row("b4", "EfficientDet-D4", 7, 224),
    "b5": _row("b5", "EfficientDet-D5", 7, 288),
    "b6": _row("b6", "EfficientDet-D6-D7", 8, 384, "sum"),
    "b7": _row("b7", "EfficientNet-B7_BiFPN", 8, 384, "sum"),
}
ROWS: dict[str, Row] = {f"ssd_efficientnet-{version}_bifpn_keras": row for version, row in _VERSIONS.items()}
