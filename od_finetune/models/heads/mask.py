"""Mask R-CNN's mask head (He et al. 2017, arXiv:1703.06870): convolutions on each region's features."""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from od_finetune.fields import ClassLayout, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.heads.roi import SCOPE
from od_finetune.models.layers import ConvHyperparams, ConvUnit, conv_layer
from od_finetune.names import Rules

_KERNEL_SIZE = 3
# How much features and classes weigh, on a logarithmic scale, where the width of the convolutions is to follow from
# their numbers (the OD API's way).
_FEATURE_WEIGHT, _CLASS_WEIGHT = 2.0, 3.0


class MaskHeadOptions(NamedTuple):
    """The fields of MaskRCNNBoxPredictor that its masks have."""

    hyperparams: ConvHyperparams
    height: int = 15
    width: int = 15
    conv_depth: int = 256  # 0: see `depth_between`
    num_conv_layers: int = 2  # the last one, which predicts, included
    class_agnostic: bool = False
    convolve_then_upsample: bool = False


def depth_between(features: int, classes: int) -> int:
    """The power of two nearest to a mean, on a logarithmic scale, of both numbers."""
    weighted = _FEATURE_WEIGHT * math.log2(features) + _CLASS_WEIGHT * math.log2(classes)
    return 2 ** round(weighted / (_FEATURE_WEIGHT + _CLASS_WEIGHT))


def tf2_rules(options: MaskHeadOptions) -> Rules:
    """Canonical name -> full name in the OD API's TF2 checkpoints."""
    *hidden, last = _names(options)
    scope = "mask_rcnn_keras_box_predictor/mask_rcnn_mask_head/MaskPredictor"
    rules: Rules = [(rf"^{SCOPE}/{last}/", f"{scope}_last_conv2d/")]
    for index, name in enumerate(hidden):
        upsamples = options.convolve_then_upsample and index == len(hidden) - 1
        kind, number = ("upsample_", "") if upsamples else ("", f"_{index}")
        rules.append((rf"^{SCOPE}/{name}/BatchNorm/", f"{scope}_{kind}batchnorm{number}/"))
        rules.append((rf"^{SCOPE}/{name}/", f"{scope}_{kind}conv2d{number}/"))
    return rules


def _names(options: MaskHeadOptions) -> list[str]:
    count = options.num_conv_layers + options.convolve_then_upsample
    return ["Conv", *(f"Conv_{index}" for index in range(1, count))]


class MaskHead(tf.Module):
    """Features resized to the masks' size, then convolved; or convolved, enlarged by whole numbers, convolved again.

    Args:
      options: see `MaskHeadOptions`.
      num_classes: without background.
    """

    def __init__(self, options: MaskHeadOptions, num_classes: int):
        super().__init__()
        self._options, self._num_classes = options, num_classes
        self._hidden: list[ConvUnit] | None = None  # their width may depend on the features', known at the first call
        self._num_masks = 1 if options.class_agnostic else num_classes
        self._last_scope = f"{SCOPE}/{_names(options)[-1]}"
        self._last = conv_layer(self._last_scope, options.hyperparams, self._num_masks, _KERNEL_SIZE)

    def _units(self, channels: int) -> list[ConvUnit]:
        options = self._options
        depth = options.conv_depth or depth_between(channels, self._num_classes)
        names = _names(options)[:-1]
        return [ConvUnit(f"{SCOPE}/{name}", options.hyperparams, depth, _KERNEL_SIZE) for name in names]

    def __call__(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[N, h, w, D]` -> logits `[N, K, height, width]`; K is the number of classes, or 1 if they share a mask."""
        options = self._options
        if self._hidden is None:
            self._hidden = self._units(features.shape[-1])
        size = [options.height, options.width]
        if not options.convolve_then_upsample:
            features = tf.compat.v1.image.resize_bilinear(features, size, align_corners=True)
        for index, unit in enumerate(self._hidden):
            if options.convolve_then_upsample and index == len(self._hidden) - 1:
                features = _enlarged(features, *size)
            features = unit(features, training)
        return tf.transpose(self._last(features), [0, 3, 1, 2])

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints."""
        units = [node for unit in self._hidden or [] for node in tf2_objects.unit(unit)]
        upsampling: list[ObjectTree] = [{}] * self._options.convolve_then_upsample
        split = len(units) - 3 if upsampling else len(units)  # before the last unit
        nodes = [*units[:split], *upsampling, *units[split:], tf2_objects.layer(self._last)]
        return {"_mask_predictor_layers": tf2_objects.listed(nodes)}

    def is_class_head(self, name: str) -> bool:
        """Whether a canonical name is a variable whose shape depends on the number of classes."""
        return self.class_layout(name) is not None

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its mask in a variable; None for one that is the same for all classes."""
        if self._options.class_agnostic or name.rpartition("/")[0] != self._last_scope:
            return None
        return ClassLayout(groups=1, slots=self._num_classes)


def _enlarged(features: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Nearest neighbours, by how often the features' sides go into the masks'."""
    rows, columns = height // features.shape[1], width // features.shape[2]
    return tf.repeat(tf.repeat(features, rows, axis=1), columns, axis=2)
