"""Inception V2 and V3: SSD. Of the OD API's TF1 half only."""

from __future__ import annotations

import functools

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.models.backbones import inception, inception_v2, inception_v3
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.necks.multires import FeatureMap


def _override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """The config's hyperparams are those of the whole extractor, separable convolutions included."""
    del keras
    return hyperparams._replace(depthwise_regularizer=hyperparams.regularizer)


def _row(scope: str, steps: tuple[inception.Step, ...], levels: tuple[str, ...], depths: tuple[int, ...]) -> Row:
    return Row(
        family=Family(
            backbone=functools.partial(inception.Inception, steps=steps),
            scope=f"FeatureExtractor/{scope}",
            override=_override,
            backbone_rules=[],
            vocabularies=(),
            last_layer=0,
        ),
        defaults=None,
        keras=False,
        neck=functools.partial(necks.build_multires, extra=tuple(FeatureMap(depth=depth) for depth in depths)),
        levels=levels,
        tf2_scope=scope,
    )


ROWS: dict[str, Row] = {
    "ssd_inception_v2": _row("InceptionV2", inception_v2.STEPS, ("Mixed_4c", "Mixed_5c"), (512, 256, 256, 128)),
    "ssd_inception_v3": _row(
        "InceptionV3", inception_v3.STEPS, ("Mixed_5d", "Mixed_6e", "Mixed_7c"), (512, 256, 128)
    ),
}
