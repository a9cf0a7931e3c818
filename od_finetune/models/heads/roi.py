"""Second stage of Faster R-CNN (Ren et al. 2015, arXiv:1506.01497): regions cropped out of the feature maps, classified
and their boxes refined."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf
import tf_keras

from od_finetune import randomness
from od_finetune.boxes import roi_pool
from od_finetune.fields import ClassLayout, ContextBank, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.heads.context import ContextAttention
from od_finetune.models.heads.dense import BOX_SCOPE, CLASS_SCOPE
from od_finetune.models.layers import ConvHyperparams, dense_layer
from od_finetune.names import Rules

SCOPE = "SecondStageBoxPredictor"
CODE_SIZE = 4
Size = int | tf.Tensor

# Canonical name -> full name in the OD API's TF2 checkpoints.
TF2_RULES: Rules = [
    (rf"^{SCOPE}/{BOX_SCOPE}/", f"mask_rcnn_keras_box_predictor/mask_rcnn_box_head/{BOX_SCOPE}_dense/"),
    (rf"^{SCOPE}/{CLASS_SCOPE}/", f"mask_rcnn_keras_box_predictor/mask_rcnn_class_head/{CLASS_SCOPE}_dense/"),
]


class RoiOutputs(NamedTuple):
    """What the second stage says of `N = B * P` regions."""

    box_encodings: tf.Tensor  # float32 [N, K, 4]; K is the number of classes, or 1 where they share a box
    class_predictions: tf.Tensor  # logits, float32 [N, C + 1], background first
    features: tf.Tensor  # what they were made of: float32 [N, h, w, D], of R-FCN [B, h, w, D]
    masks: tf.Tensor | None = None  # logits, float32 [N, K, m, n]; while training, where there is a mask head


class Surroundings(NamedTuple):
    """What regions attend to, where there is attention."""

    bank: ContextBank
    count: tf.Tensor  # int32 [B]; how many of the image's regions are no padding


class RoiClassifier(Protocol):
    """The second stage: `CropClassifier`, or another way to look at regions. A tf.Module."""

    extractor: tf.Module  # its part of the backbone: `blocks()`, (features [N, h, w, C], training) -> [N, h', w', D]
    head: tf.Module  # `is_class_head(name)` and `class_layout(name)`, as fields.Detector has them
    mask_head: tf.Module | None  # likewise, (features [N, h', w', D], training) -> logits [N, K, m, n]; K as above
    attention: ContextAttention | None

    def __call__(
        self,
        feature_maps: list[tf.Tensor],
        boxes: tf.Tensor,
        image_size: tuple[Size, Size],
        training: bool,
        around: Surroundings | None = None,
    ) -> RoiOutputs:
        """Feature maps `[B, h, w, C]` (finest first), boxes `[B, P, 4]` (normalised to the network's input, whose
        height and width in pixels `image_size` is) -> see `RoiOutputs`. `around` where there is attention."""

    def masks(self, feature_maps: list[tf.Tensor], boxes: tf.Tensor, image_size: tuple[Size, Size]) -> tf.Tensor:
        """The same -> logits `[B * P, K, m, n]`, at inference; called only where there is a mask head."""


class RoiCrop(tf.Module):
    """Crops regions to one size, then pools their cells.

    Args:
      size: side of a crop in cells.
      kernel_size, stride: of the max pooling after it.
    """

    def __init__(self, size: int, kernel_size: int, stride: int):
        super().__init__()
        self._size, self._kernel_size, self._stride = size, kernel_size, stride

    def __call__(self, feature_maps: list[tf.Tensor], boxes: tf.Tensor, image_size: tuple[Size, Size]) -> tf.Tensor:
        """See `RoiClassifier` -> `[B * P, size', size', C]`."""
        crops = roi_pool.crop(feature_maps, boxes, self._size, image_size)
        if self._kernel_size == self._stride == 1:
            return crops
        return tf.nn.max_pool2d(crops, self._kernel_size, self._stride, "VALID")


class CropClassifier(tf.Module):
    """Faster R-CNN's `RoiClassifier`: crops, the rest of the backbone on each, a box head on that, and Mask R-CNN's
    (He et al. 2017, arXiv:1703.06870) mask head if there is one.

    Args:
      crop, extractor, head, mask_head: see above.
      attention: what it says of the crops (`attends_to_crops`), or of what the rest of the backbone makes of them, is
        added to them. Not with masks, which crop anew.
    """

    def __init__(
        self,
        crop: RoiCrop,
        extractor: tf.Module,
        head: tf.Module,
        mask_head: tf.Module | None = None,
        attention: ContextAttention | None = None,
        attends_to_crops: bool = False,
    ):
        super().__init__()
        self.crop, self.extractor, self.attention = crop, extractor, attention
        self.head, self.mask_head = head, mask_head
        self._attends_to_crops = attends_to_crops

    def features(
        self,
        feature_maps: list[tf.Tensor],
        boxes: tf.Tensor,
        image_size: tuple[Size, Size],
        training: bool,
        around: Surroundings | None = None,
    ) -> tf.Tensor:
        """See `RoiClassifier` -> `[B * P, h, w, D]`: what box and mask heads take."""
        crops = self.crop(feature_maps, boxes, image_size)
        if self.attention is None:
            return self.extractor(crops, training)
        if self._attends_to_crops:
            crops += self.attention(crops, around.count, around.bank, training)
            return self.extractor(crops, training)
        features = self.extractor(crops, training)
        return features + self.attention(features, around.count, around.bank, training)

    def __call__(
        self,
        feature_maps: list[tf.Tensor],
        boxes: tf.Tensor,
        image_size: tuple[Size, Size],
        training: bool,
        around: Surroundings | None = None,
    ) -> RoiOutputs:
        """See `RoiClassifier`."""
        features = self.features(feature_maps, boxes, image_size, training, around)
        masks = self.mask_head(features, training) if training and self.mask_head is not None else None
        return RoiOutputs(*self.head(features, training), features, masks)

    def masks(self, feature_maps: list[tf.Tensor], boxes: tf.Tensor, image_size: tuple[Size, Size]) -> tf.Tensor:
        """See `RoiClassifier`."""
        return self.mask_head(self.features(feature_maps, boxes, image_size, False), False)


class BoxHeadOptions(NamedTuple):
    """The fields of MaskRCNNBoxPredictor that its box and class layers have."""

    hyperparams: ConvHyperparams
    share_box_across_classes: bool = False
    dropout_keep_probability: float = 1.0  # before both layers, while training; 1 = no dropout
    use_dropout: bool = False  # the layer counts in TF2 checkpoints, whatever it keeps


class BoxHead(tf.Module):
    """Two fully connected layers on the mean of a region's features.

    Args:
      options: see `BoxHeadOptions`.
      num_classes: without background.
    """

    def __init__(self, options: BoxHeadOptions, num_classes: int):
        super().__init__()
        self._options, self._num_classes = options, num_classes
        self._num_boxes = 1 if options.share_box_across_classes else num_classes
        self.boxes = dense_layer(f"{SCOPE}/{BOX_SCOPE}", options.hyperparams, self._num_boxes * CODE_SIZE)
        self.classes = dense_layer(f"{SCOPE}/{CLASS_SCOPE}", options.hyperparams, num_classes + 1)

    def __call__(self, features: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """`[N, h, w, D]` -> box encodings `[N, K, 4]` and class logits `[N, C + 1]`, background first."""
        pooled = tf.reduce_mean(features, axis=[1, 2])
        boxes, classes = self.boxes(self._dropped(pooled, training)), self.classes(self._dropped(pooled, training))
        return tf.reshape(boxes, [-1, self._num_boxes, CODE_SIZE]), classes

    def tf2_objects(self) -> ObjectTree:
        """Its part of the box predictor in the object graph of the OD API's TF2 checkpoints. Layers flatten the mean,
        drop features, and give the result its shape."""

        def layers(layer: tf_keras.layers.Layer) -> ObjectTree:
            before: list[ObjectTree] = [{} for _ in range(1 + self._options.use_dropout)]
            return tf2_objects.listed([*before, tf2_objects.layer(layer), {}])

        return {
            "_box_prediction_head": {"_box_encoder_layers": layers(self.boxes)},
            "_class_prediction_head": {"_class_predictor_layers": layers(self.classes)},
        }

    def _dropped(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        rate = 1.0 - self._options.dropout_keep_probability
        if not training or rate <= 0:
            return features
        return tf.nn.experimental.stateless_dropout(features, rate, randomness.next_seed())

    def is_class_head(self, name: str) -> bool:
        """Whether a canonical name is a variable whose shape depends on the number of classes."""
        return self.class_layout(name) is not None

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its outputs in a variable; None for one that is the same for all classes."""
        scope = name.rpartition("/")[0]
        if scope == f"{SCOPE}/{CLASS_SCOPE}":
            return ClassLayout(groups=1, slots=self._num_classes + 1, background=0)
        if scope == f"{SCOPE}/{BOX_SCOPE}" and not self._options.share_box_across_classes:
            return ClassLayout(groups=1, slots=self._num_classes, width=CODE_SIZE)
        return None
