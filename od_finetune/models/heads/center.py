"""CenterNet's heads (Zhou et al. 2019, arXiv:1904.07850): for each thing to predict a small net on the feature map."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ClassLayout, ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.keras_names import Numbering
from od_finetune.models.layers import ConvHyperparams, ConvUnit, conv_layer

SCOPE = "CenterNetHead"


class HeadOptions(NamedTuple):
    """The fields of PredictionHeadParams: a convolution with ReLU for each, before the last 1x1 convolution."""

    num_filters: tuple[int, ...] = (256,)
    kernel_sizes: tuple[int, ...] = (3,)


class HeadSpec(NamedTuple):
    """What one head predicts."""

    name: str  # of its prediction, e.g. `box/scale`
    channels: int
    options: HeadOptions = HeadOptions()
    bias_init: float = 0.0
    per_class: bool = False  # a channel is a class


class CenterHead(tf.Module):
    """One net per feature map that the backbone puts out; an hourglass's outputs have heads of their own.

    Args:
      spec: see `HeadSpec`.
      num_maps: how many feature maps there are.
      use_depthwise: the convolutions before the last one are separable.
    """

    def __init__(self, spec: HeadSpec, num_maps: int, use_depthwise: bool = False):
        super().__init__()
        self.spec = spec
        hyperparams = ConvHyperparams(tf_keras.initializers.GlorotUniform, plain_pointwise=True)
        self._nets = []
        for index in range(num_maps):
            scope = f"{SCOPE}/{spec.name}_{index}"
            hidden = [
                ConvUnit(f"{scope}/conv_{number}", hyperparams, filters, kernel_size, separable=use_depthwise)
                for number, (filters, kernel_size) in enumerate(zip(*spec.options, strict=True))
            ]
            last = conv_layer(f"{scope}/output", hyperparams, spec.channels, 1, bias_init=spec.bias_init)
            self._nets.append((hidden, last))
        self._hidden_kind = "separable_conv2d" if use_depthwise else "conv2d"

    def __call__(self, feature_maps: list[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Feature maps `[B, h, w, C]` -> a prediction `[B, h, w, channels]` from each."""
        predictions = []
        for features, (hidden, last) in zip(feature_maps, self._nets, strict=True):
            for unit in hidden:
                features = unit(features, training)
            predictions.append(last(features))
        return predictions

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope of each layer -> full name in the OD API's TF2 checkpoints; the last layer is made first."""
        names = {}
        for hidden, last in self._nets:
            names[last.name] = numbering.next("conv2d")
            names |= {unit.conv.name: numbering.next(self._hidden_kind) for unit in hidden}
        return names

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a list of sequential models."""
        return tf2_objects.listed(
            tf2_objects.sequential(
                [node for unit in hidden for node in (tf2_objects.layer(unit.conv), {})] + [tf2_objects.layer(last)]
            )
            for hidden, last in self._nets
        )

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where each class has its outputs in a variable of this head; None where it has none."""
        outputs = {last.name for _, last in self._nets}
        is_output = name.rpartition("/")[0] in outputs
        return ClassLayout(1, self.spec.channels) if self.spec.per_class and is_output else None
