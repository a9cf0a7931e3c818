"""Inception V2 and V3: SSD, of the OD API's TF1 half only. Inception V2 and Inception-ResNet V2: Faster R-CNN."""

from __future__ import annotations

import functools

import tf_keras

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row, TwoStageFamily, TwoStageRow
from od_finetune.models.backbones import inception, inception_resnet_v2, inception_v2, inception_v3
from od_finetune.models.layers import BatchNorm, ConvHyperparams
from od_finetune.models.necks.multires import FeatureMap
from od_finetune.names import Vocabulary


def _override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """The config's hyperparams are those of the whole extractor, separable convolutions included."""
    del keras
    return hyperparams._replace(depthwise_regularizer=hyperparams.regularizer)


def _row(
    scope: str,
    steps: tuple[inception.Step, ...],
    levels: tuple[str, ...],
    depths: tuple[int, ...],
    vocabularies: tuple[Vocabulary, ...] = (),
) -> Row:
    return Row(
        family=Family(
            backbone=functools.partial(inception.Inception, steps=steps),
            scope=f"FeatureExtractor/{scope}",
            override=_override,
            backbone_rules=[],
            vocabularies=vocabularies,
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
        "InceptionV3",
        inception_v3.STEPS,
        ("Mixed_5d", "Mixed_6e", "Mixed_7c"),
        (512, 256, 128),
        inception_v3.VOCABULARIES,
    ),
}


def _first_inception_v2(
    scope: str, hyperparams: ConvHyperparams, levels: tuple[str, ...], output_stride: int
) -> inception.Inception:
    del output_stride  # there is one only
    return inception.Inception(scope, hyperparams, levels, inception_v2.FIRST)


def _second_inception_v2(scope: str, hyperparams: ConvHyperparams) -> inception.LastLevel:
    return inception.LastLevel(inception.Inception(scope, hyperparams, ("Mixed_5c",), inception_v2.LAST))


_INCEPTION_V2 = TwoStageRow(
    family=TwoStageFamily(
        first=_first_inception_v2,
        second=_second_inception_v2,
        scope="InceptionV2",
        override=_override,
        backbone_rules=[],
        vocabularies=(),
    ),
    # Unlike SSD's, without weight decay.
    defaults=ConvHyperparams(
        initializer=tf_keras.initializers.GlorotUniform,
        norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=True),
    ),
    keras=False,
    levels=("Mixed_4e",),
    strides=(16,),
)


def _inception_resnet_v2(keras: bool) -> TwoStageRow:
    return TwoStageRow(
        family=TwoStageFamily(
            first=inception_resnet_v2.first_stage,
            second=inception_resnet_v2.second_stage,
            scope="InceptionResnetV2",
            override=_override,
            backbone_rules=inception_resnet_v2.TF2_RULES,
            vocabularies=inception_resnet_v2.VOCABULARIES,
        ),
        defaults=inception_resnet_v2.DEFAULTS,
        keras=keras,
        levels=(inception_resnet_v2.FEATURES,),
        second_arguments={"padding": "same"} if keras else {},
    )


FASTER_RCNN_ROWS: dict[str, TwoStageRow] = {
    "faster_rcnn_inception_v2": _INCEPTION_V2,
    "faster_rcnn_inception_resnet_v2": _inception_resnet_v2(keras=False),
    "faster_rcnn_inception_resnet_v2_keras": _inception_resnet_v2(keras=True),
}
