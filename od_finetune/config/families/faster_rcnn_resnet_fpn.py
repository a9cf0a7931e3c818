"""ResNet V1 with a feature pyramid (Lin et al. 2017, arXiv:1612.03144) in Faster R-CNN, of the OD API's TF2 half."""

from __future__ import annotations

from od_finetune.config import necks
from od_finetune.config.families.resnet import LEVELS
from od_finetune.config.rows import TwoStageFamily, TwoStageRow
from od_finetune.models.backbones import fully_connected, resnet_v1, resnet_v1_names
from od_finetune.models.normalization import IMAGENET_MEANS


def _row(num_layers: int) -> TwoStageRow:
    family = TwoStageFamily(
        first=resnet_v1.ResnetV1,
        second=fully_connected.FullyConnected,
        scope=f"resnet_v1_{num_layers}",
        override=resnet_v1.override,
        backbone_rules=[*resnet_v1.TF2_RULES, *fully_connected.TF2_RULES],
        vocabularies=resnet_v1_names.vocabularies(num_layers),
        normalize=IMAGENET_MEANS,
        last_layer=4,
        layer_name="block",
    )
    return TwoStageRow(
        family=family,
        defaults=resnet_v1.KERAS_DEFAULTS,
        keras=True,
        levels=LEVELS,
        neck=necks.build_two_stage_fpn,
        tf2_scope="private__resnet_fpn",
        arguments={"num_layers": num_layers, "keras": True},
    )


FASTER_RCNN_ROWS: dict[str, TwoStageRow] = {
    f"faster_rcnn_resnet{num_layers}_fpn_keras": _row(num_layers) for num_layers in resnet_v1.UNITS
}
