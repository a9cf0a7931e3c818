"""NASNet-A Large: Faster R-CNN, of the OD API's TF1 half only."""

from __future__ import annotations

from od_finetune.config.rows import TwoStageFamily, TwoStageRow
from od_finetune.models.backbones import nasnet
from od_finetune.models.layers import ConvHyperparams


def _override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """Activations are the cells' own."""
    del keras
    return hyperparams._replace(activation="none", depthwise_regularizer=hyperparams.regularizer)


_NASNET = TwoStageRow(
    family=TwoStageFamily(
        first=nasnet.FirstStage,
        second=nasnet.SecondStage,
        scope="",
        override=_override,
        backbone_rules=[],
        vocabularies=(),
    ),
    defaults=nasnet.DEFAULTS,
    keras=False,
    levels=(nasnet.FEATURES,),
    strides=(16,),
)

FASTER_RCNN_ROWS: dict[str, TwoStageRow] = {"faster_rcnn_nas": _NASNET}
