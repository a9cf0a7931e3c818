"""TABLE: feature_extractor.type of a center_net -> backbone and neck."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tf_keras

from od_finetune.config.rows import find
from od_finetune.errors import UserError
from od_finetune.models import upsampling
from od_finetune.models.backbones import hourglass, mobilenet_v2, resnet_v1, resnet_v1_names, resnet_v2
from od_finetune.models.detectors import center_extractors
from od_finetune.models.detectors.center_net import Extractor
from od_finetune.models.layers import BatchNorm, ConvHyperparams
from od_finetune.models.necks.decoders import Deconvolutions, TopDown
from od_finetune.models.necks.levels import Levels
from od_finetune.models.normalization import IDENTITY, ChannelNormalization, Normalization
from od_finetune.names import Vocabulary
from od_finetune.protos import center_net_pb2

AT = "model.center_net.feature_extractor"
Proto = center_net_pb2.CenterNetFeatureExtractor

_COARSEST = 32  # stride of the coarsest level of a backbone
_SYMMETRIC = Normalization(1.0 / 127.5, -1.0)
_CAFFE = Normalization(1.0, (-103.939, -116.779, -123.68))  # blue first

# tf_keras.applications.ResNet50's; unlike the OD API's other ResNets its convolutions have biases.
_RESNET_V1 = ConvHyperparams(
    initializer=tf_keras.initializers.GlorotUniform,
    norm=BatchNorm(decay=0.99, epsilon=1.001e-5, center=True, scale=True),
    force_use_bias=True,
)


class Row(NamedTuple):
    """One feature extractor type."""

    build: Callable[[Proto], Extractor]
    vocabularies: tuple[Vocabulary, ...] = ()  # of published classification nets
    then: Normalization = IDENTITY  # of pixel values, after channel_means and channel_stds
    then_reverse: bool = False  # see ChannelNormalization
    options: tuple[str, ...] = ()  # the fields that this type has beside those of all types


def _hourglass(size: int) -> Row:
    def build(proto: Proto) -> Extractor:
        del proto
        architecture = hourglass.ARCHITECTURES[size]
        backbone = hourglass.Hourglass("FeatureExtractor/Hourglass", architecture)
        return Extractor(
            backbone=backbone,
            neck=Levels(backbone.levels),
            num_maps=architecture.hourglasses,
            multiple=backbone.multiple,
            numbered=(backbone,),
            tf2_objects=center_extractors.hourglass,
        )

    return Row(build)


def _resnet_v1_fpn(num_layers: int) -> Row:
    def build(proto: Proto) -> Extractor:
        del proto
        scope, levels = f"FeatureExtractor/resnet_v1_{num_layers}", ("block1", "block2", "block3", "block4")
        neck = TopDown(scope, levels)
        return Extractor(
            backbone=resnet_v1.ResnetV1(
                scope, _RESNET_V1, levels, num_layers=num_layers, keras=True, pad_pooling=True
            ),
            neck=neck,
            num_maps=1,
            multiple=_COARSEST,
            numbered=(neck,),
            tf2_objects=center_extractors.resnet,
            backbone_rules=resnet_v1.TF2_RULES,
            vocabularies=resnet_v1_names.vocabularies(num_layers),
        )

    return Row(build, resnet_v1_names.vocabularies(num_layers), _CAFFE, then_reverse=True)


def _resnet_v2(num_layers: int) -> Row:
    def build(proto: Proto) -> Extractor:
        del proto
        scope = f"FeatureExtractor/resnet_v2_{num_layers}"
        neck = Deconvolutions(scope)
        return Extractor(
            backbone=resnet_v2.ResnetV2(scope, num_layers=num_layers),
            neck=neck,
            num_maps=1,
            multiple=1,
            numbered=(neck,),
            tf2_objects=center_extractors.resnet,
            backbone_rules=resnet_v2.TF2_RULES,
            vocabularies=resnet_v2.VOCABULARIES,
        )

    return Row(build, resnet_v2.VOCABULARIES, _SYMMETRIC)


def _mobilenet_v2(proto: Proto) -> Extractor:
    del proto
    scope = "FeatureExtractor/MobilenetV2"
    neck = Deconvolutions(scope, kernel_size=1)
    return Extractor(
        backbone=mobilenet_v2.MobilenetV2(scope, mobilenet_v2.KERAS_DEFAULTS, ("layer_19",)),
        neck=neck,
        num_maps=1,
        multiple=1,
        numbered=(neck,),
        tf2_objects=center_extractors.mobilenet,
        backbone_rules=mobilenet_v2.TF2_RULES,
        vocabularies=mobilenet_v2.VOCABULARIES,
    )


def _mobilenet_v2_fpn(separable: bool) -> Row:
    def build(proto: Proto) -> Extractor:
        scope, levels = "FeatureExtractor/MobilenetV2", ("layer_4", "layer_7", "layer_11", "layer_19")
        neck = TopDown(
            scope,
            levels,
            (64, 32, 24),
            separable=separable or proto.use_separable_conv,
            interpolation=proto.upsampling_interpolation,
        )
        return Extractor(
            backbone=mobilenet_v2.MobilenetV2(
                scope, mobilenet_v2.KERAS_DEFAULTS, levels, depth_multiplier=proto.depth_multiplier
            ),
            neck=neck,
            num_maps=1,
            multiple=_COARSEST,
            numbered=(neck,),
            tf2_objects=center_extractors.mobilenet_fpn,
            backbone_rules=mobilenet_v2.TF2_RULES,
            vocabularies=mobilenet_v2.VOCABULARIES,
        )

    options = ("depth_multiplier", "use_separable_conv", "upsampling_interpolation")
    return Row(build, mobilenet_v2.VOCABULARIES, _SYMMETRIC, options=options)


TABLE: dict[str, Row] = {
    **{f"hourglass_{size}": _hourglass(size) for size in hourglass.ARCHITECTURES},
    "resnet_v1_50_fpn": _resnet_v1_fpn(50),
    "resnet_v1_101_fpn": _resnet_v1_fpn(101),
    "resnet_v2_50": _resnet_v2(50),
    "resnet_v2_101": _resnet_v2(101),
    "mobilenet_v2": Row(_mobilenet_v2, mobilenet_v2.VOCABULARIES, _SYMMETRIC),
    "mobilenet_v2_fpn": _mobilenet_v2_fpn(separable=False),
    "mobilenet_v2_fpn_sep_conv": _mobilenet_v2_fpn(separable=True),
}


def build_extractor(proto: Proto) -> tuple[Extractor, ChannelNormalization]:
    """Backbone and neck of a CenterNet, and what becomes of pixel values before them.

    Raises:
      UserError: the type is not in TABLE, or a field asks for what it does not have.
    """
    row = find(TABLE, proto.type, AT)
    _check_options(proto, row)
    means, deviations = _three(proto, "channel_means", 0.0), _three(proto, "channel_stds", 1.0)
    normalize = ChannelNormalization(means, deviations, proto.bgr_ordering, row.then, row.then_reverse)
    return row.build(proto), normalize


def _check_options(proto: Proto, row: Row) -> None:
    for field in ("depth_multiplier", "use_separable_conv", "upsampling_interpolation"):
        value, default = getattr(proto, field), proto.DESCRIPTOR.fields_by_name[field].default_value
        if field not in row.options and value != default:
            having = ", ".join(name for name, other in TABLE.items() if field in other.options)
            raise UserError(f"{AT}.{field}: found {value!r}, but {proto.type} has no such choice; remove the field, or "
                            f"take one of {having}")
    if proto.upsampling_interpolation not in upsampling.METHODS:
        raise UserError(f"{AT}.upsampling_interpolation: found {proto.upsampling_interpolation!r}, expected "
                        f"{' or '.join(upsampling.METHODS)}")


def _three(proto: Proto, field: str, default: float) -> tuple[float, ...]:
    values = tuple(getattr(proto, field)) or (default,) * 3
    if len(values) != 3:
        raise UserError(f"{AT}.{field}: found {len(values)} values, expected 3, one per channel")
    if field == "channel_stds" and 0.0 in values:
        found = ", ".join(f"{value:g}" for value in values)
        raise UserError(f"{AT}.{field}: found 0 among {found}; pixels are divided by them")
    return values
