"""What a row of the tables of feature extractors says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from od_finetune.config import necks
from od_finetune.errors import UserError
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.normalization import SYMMETRIC, Normalization
from od_finetune.names import Rules, Vocabulary, nearest
from od_finetune.protos import faster_rcnn_pb2, ssd_pb2


class Family(NamedTuple):
    """A backbone, whatever neck is on it."""

    backbone: Callable[..., tf.Module]  # (scope, hyperparams, levels, depth_multiplier, min_depth, explicit_padding)
    scope: str
    override: Callable[[ConvHyperparams, bool], ConvHyperparams]  # (the config's hyperparams, keras)
    backbone_rules: Rules  # canonical -> TF2 name
    vocabularies: tuple[Vocabulary, ...]  # of published classification nets
    last_layer: int  # its number, from which names of layers count on
    layer_name: str = "Conv2d_"  # in front of such numbers
    normalize: Normalization = SYMMETRIC


class Row(NamedTuple):
    """One feature extractor type."""

    family: Family
    defaults: ConvHyperparams | None  # of the backbone, unless the config overrides them; None: it has to
    keras: bool  # a type of the OD API's TF2 half
    neck: Callable[[ssd_pb2.SsdFeatureExtractor, necks.NeckSource, ConvHyperparams], necks.Neck]
    levels: tuple[str, ...]  # of the backbone, those the neck may take, finest first
    tf2_scope: str  # in front of the neck's TF2 names
    tf2_neck: str = ""  # see necks.NeckSource; empty where the OD API has no such type
    tf2_lists: tuple[str, ...] = ()  # see necks.NeckSource
    arguments: dict[str, Any] = {}  # further ones of the backbone
    lite: dict[str, Any] = {}  # further ones where use_depthwise is set


class TwoStageFamily(NamedTuple):
    """A backbone whose last part looks at crops of what its first part sees."""

    first: Callable[..., tf.Module]  # (scope, hyperparams, levels, output_stride=...): images -> {level: features}
    second: Callable[..., tf.Module]  # (scope, hyperparams): crops -> features; see `models.heads.roi.RoiClassifier`
    scope: str  # below FirstStageFeatureExtractor and SecondStageFeatureExtractor; both end in it
    override: Callable[[ConvHyperparams, bool], ConvHyperparams]  # (the config's hyperparams, keras)
    backbone_rules: Rules  # canonical -> TF2 name, of both parts
    vocabularies: tuple[Vocabulary, ...]  # of published classification nets, for both scopes
    normalize: Normalization = SYMMETRIC
    last_layer: int = 0  # see Family
    layer_name: str = "Conv2d_"


TwoStageNeck = Callable[[faster_rcnn_pb2.FasterRcnnFeatureExtractor, necks.NeckSource, ConvHyperparams], necks.Neck]


class TwoStageRow(NamedTuple):
    """One feature extractor type of FasterRcnn."""

    family: TwoStageFamily
    defaults: ConvHyperparams  # of the backbone, unless the config overrides them
    keras: bool  # a type of the OD API's TF2 half
    levels: tuple[str, ...]  # of the first part; without a neck, the one to propose on and crop from
    strides: tuple[int, ...] = (8, 16)  # that first_stage_features_stride may be
    neck: TwoStageNeck | None = None  # builder of a feature pyramid; the backbone then has its full strides
    tf2_scope: str = ""  # in front of the neck's TF2 names
    arguments: dict[str, Any] = {}  # further ones of `first`
    second_arguments: dict[str, Any] = {}  # further ones of `second`


AnyRow = TypeVar("AnyRow")


def find(table: Mapping[str, AnyRow], kind: str, at: str) -> AnyRow:
    """The row of a feature extractor type, which the config names at `at`.

    Raises:
      UserError: there is none; the message has the nearest types.
    """
    if kind not in table:
        like = nearest(kind, table) or sorted(table)
        raise UserError(f"{at}.type: found {kind!r}, expected one of {', '.join(sorted(table))}; the nearest: "
                        f"{', '.join(like)}")
    return table[kind]
