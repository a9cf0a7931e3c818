"""ResNet V1 with a feature pyramid: RetinaNet (Lin et al. 2017, arXiv:1708.02002), TF1 and TF2."""

from __future__ import annotations

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.errors import UserError
from od_finetune.models.backbones import resnet_v1, resnet_v1_names
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.normalization import IMAGENET_MEANS
from od_finetune.protos import ssd_pb2

LEVELS = ("block1", "block2", "block3", "block4")


def _family(num_layers: int) -> Family:
    return Family(
        backbone=resnet_v1.ResnetV1,
        scope=f"FeatureExtractor/resnet_v1_{num_layers}",
        override=resnet_v1.override,
        backbone_rules=resnet_v1.TF2_RULES,
        vocabularies=resnet_v1_names.vocabularies(num_layers),
        last_layer=4,
        layer_name="block",
        normalize=IMAGENET_MEANS,
    )


def _pyramid(
    proto: ssd_pb2.SsdFeatureExtractor, source: necks.NeckSource, hyperparams: ConvHyperparams
) -> necks.Neck:
    """A feature pyramid of full convolutions.

    Raises:
      UserError: explicit padding or separable convolutions are asked for, which the OD API's ResNets do not have.
    """
    for field in ("use_explicit_padding", "use_depthwise"):
        if getattr(proto, field):
            raise UserError(f"{necks.AT}.{field}: found true, expected false, as {proto.type} has no such variant; "
                            "remove the field")
    return necks.build_fpn(proto, source, hyperparams)


def _row(num_layers: int, keras: bool) -> Row:
    return Row(
        family=_family(num_layers),
        defaults=resnet_v1.KERAS_DEFAULTS if keras else resnet_v1.DEFAULTS,
        keras=keras,
        neck=_pyramid,
        levels=LEVELS,
        tf2_scope=f"ResNet{num_layers}V1_FPN",
        tf2_neck="_resnet_block_names",
        arguments={"num_layers": num_layers, "keras": keras},
    )


ROWS: dict[str, Row] = {
    f"ssd_resnet{num_layers}_v1_fpn{'_keras' if keras else ''}": _row(num_layers, keras)
    for num_layers in resnet_v1.UNITS
    for keras in (False, True)
}
