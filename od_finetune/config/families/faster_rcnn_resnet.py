"""ResNet V1 with 50, 101 or 152 layers: Faster R-CNN, TF1 and TF2."""

from __future__ import annotations

from od_finetune.config.rows import TwoStageFamily, TwoStageRow
from od_finetune.models.backbones import resnet_v1, resnet_v1_names, resnet_v1_stages
from od_finetune.models.normalization import IMAGENET_MEANS


def _two_stage_family(num_layers: int) -> TwoStageFamily:
    return TwoStageFamily(
        first=resnet_v1_stages.FirstStage,
        second=resnet_v1_stages.SecondStage,
        scope=f"resnet_v1_{num_layers}",
        override=resnet_v1.override,
        backbone_rules=resnet_v1.TF2_RULES,
        vocabularies=resnet_v1_names.vocabularies(num_layers),
        normalize=IMAGENET_MEANS,
    )


def _faster_rcnn(num_layers: int, keras: bool) -> TwoStageRow:
    # Both halves leave these backbones without weight decay.
    defaults = (resnet_v1.KERAS_DEFAULTS if keras else resnet_v1.DEFAULTS)._replace(regularizer=None)
    return TwoStageRow(
        family=_two_stage_family(num_layers),
        defaults=defaults,
        keras=keras,
        levels=("block3",),
        arguments={"num_layers": num_layers, "keras": keras},
        # In slim the last block has no stride, in Keras it has that of the whole net.
        second_arguments={"num_layers": num_layers, "keras": keras, "entry_stride": 2 if keras else 1},
    )


FASTER_RCNN_ROWS: dict[str, TwoStageRow] = {
    **{f"faster_rcnn_resnet{layers}": _faster_rcnn(layers, keras=False) for layers in (50, 101, 152)},
    **{f"faster_rcnn_resnet{layers}_keras": _faster_rcnn(layers, keras=True) for layers in (50, 101, 152)},
}
