"""R-FCN (Dai et al. 2016, arXiv:1605.06409): the whole image is classified at once, each position of a region by maps
of its own; a region only averages."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.boxes import position_sensitive
from od_finetune.fields import ClassLayout
from od_finetune.models.heads.roi import CODE_SIZE, SCOPE, RoiOutputs, Size
from od_finetune.models.layers import ConvHyperparams, ConvUnit

_BOXES, _CLASSES = f"{SCOPE}/refined_locations", f"{SCOPE}/class_predictions"


class RfcnOptions(NamedTuple):
    """The fields of RfcnBoxPredictor, heights before widths."""

    hyperparams: ConvHyperparams
    num_spatial_bins: tuple[int, int] = (3, 3)
    crop_size: tuple[int, int] = (12, 12)
    depth: int = 1024


class RfcnHead(tf.Module):
    """A 1x1 convolution, then one each to the position-sensitive maps of boxes and classes.

    Args:
      options: see `RfcnOptions`.
      num_classes: without background.
    """

    def __init__(self, options: RfcnOptions, num_classes: int):
        super().__init__()
        self._options, self._num_classes = options, num_classes
        rows, columns = options.num_spatial_bins
        self._bins = rows * columns
        self.reduce = ConvUnit(f"{SCOPE}/reduce_depth", options.hyperparams, options.depth)
        channels = self._bins * num_classes * CODE_SIZE
        self.boxes = ConvUnit(_BOXES, options.hyperparams, channels, activate=False)
        self.classes = ConvUnit(_CLASSES, options.hyperparams, self._bins * (num_classes + 1), activate=False)

    def __call__(self, features: tf.Tensor, boxes: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, h, w, D]`, regions `[B, P, 4]` -> box encodings `[B * P, C, 4]`, logits `[B * P, C + 1]`."""
        reduced = self.reduce(features, training)

        def pooled(maps: tf.Tensor) -> tf.Tensor:
            return position_sensitive.pool(maps, boxes, self._options.num_spatial_bins, self._options.crop_size)

        encodings = pooled(self.boxes(reduced, training))
        encodings = tf.reshape(encodings, [-1, self._num_classes, CODE_SIZE])
        return encodings, pooled(self.classes(reduced, training))

    def is_class_head(self, name: str) -> bool:
        """Whether a canonical name is a variable whose shape depends on the number of classes."""
        return self.class_layout(name) is not None

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its outputs in a variable; None for one that is the same for all classes."""
        scope = name.rpartition("/")[0].removesuffix("/BatchNorm")
        if scope == _CLASSES:
            return ClassLayout(self._bins, self._num_classes + 1, background=0)
        if scope == _BOXES:
            return ClassLayout(self._bins, self._num_classes, width=CODE_SIZE)
        return None


class RfcnClassifier(tf.Module):
    """A `roi.RoiClassifier` without crops: the rest of the backbone runs once for all regions."""

    mask_head = attention = None

    def __init__(self, extractor: tf.Module, head: RfcnHead):
        super().__init__()
        self.extractor, self.head = extractor, head

    def __call__(
        self,
        feature_maps: list[tf.Tensor],
        boxes: tf.Tensor,
        image_size: tuple[Size, Size],
        training: bool,
        around: None = None,
    ) -> RoiOutputs:
        """See `roi.RoiClassifier`; there is one feature map."""
        del image_size, around
        (feature_map,) = feature_maps
        features = self.extractor(feature_map, training)
        return RoiOutputs(*self.head(features, boxes, training), features)
