"""What detectors have in common: images in, and variables by canonical name."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune import fields
from od_finetune.models import image_resizers, layers
from od_finetune.models.image_resizers import Resizer
from od_finetune.models.normalization import Normalization
from od_finetune.names import Rules, Vocabulary, apply_rules

# Canonical leaf -> tf_keras's, after the rules of the part.
TF2_LEAVES: Rules = [
    (r"/weights$", "/kernel"),
    (r"/depthwise_weights$", "/depthwise_kernel"),
    (r"/pointwise_weights$", "/pointwise_kernel"),
    (r"/biases$", "/bias"),
]

PartRules = dict[str, Rules]  # of `backbone`, `neck` and `head`


class Inputs(NamedTuple):
    """What becomes of images before the network."""

    resizer: Resizer
    normalize: Normalization  # of pixel values, as the backbone's pretrained weights expect


class NetworkDetector(tf.Module, abc.ABC):
    """The part of `fields.Detector` that follows from the network's modules, which are attributes of the detector in
    the order of the forward pass.

    Args:
      inputs: see `Inputs`.
      num_classes: without background.
      rules: from canonical names to those of TF2 checkpoints, by part.
      vocabularies: of the backbone in published classification nets.
    """

    context_size: tuple[int, int] | None = None

    def __init__(self, inputs: Inputs, num_classes: int, rules: PartRules, vocabularies: tuple[Vocabulary, ...]):
        super().__init__()
        self.num_classes = num_classes
        self._resizer, self._normalize = inputs
        self._rules, self._vocabularies = rules, vocabularies
        self._parts: dict[str, str] = {}  # canonical scope -> part, filled once the network is built
        self._built = False

    @abc.abstractmethod
    def _call_layers(self, images: tf.Tensor) -> None:
        """Calls every layer that has variables once, on normalised images `[1, h, w, C]`."""

    @abc.abstractmethod
    def _modules_of_parts(self) -> dict[str, list[tf.Module]]:
        """The modules of `backbone` and `neck`; everything else is `head`."""

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[H, W, 3]` (0..255, any dtype) -> float32 `[h, w, 3]` and its true shape int32 `[3]`."""
        return self._resizer(image)

    def normalize(self, images: tf.Tensor, true_shapes: tf.Tensor | None = None) -> tf.Tensor:
        """Resized images (0..255) -> what the backbone takes, float32; see `fields.Detector`."""
        normalized = self._normalize(images)
        if true_shapes is None or None not in self._resizer.static_size:
            return normalized
        return image_resizers.zero_beyond(self._resizer, normalized, true_shapes)

    def preprocess(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, 3]` (0..255) -> resized and normalised `[B, h, w, 3]` and true shapes int32 `[B, 3]`."""
        resized, true_shape = self._resizer(images)
        return self.normalize(resized), tf.tile(true_shape[tf.newaxis], [tf.shape(images)[0], 1])

    def build(self) -> None:
        """Creates all variables by tracing the network once; idempotent."""
        if self._built:
            return
        height, width = self._resizer.static_size
        # In a function's graph tf_keras creates variables outside of it; a tf.function would trace twice.
        with tf.__internal__.FuncGraph("build").as_default():
            self._call_layers(tf.compat.v1.placeholder(tf.float32, [1, height, width, self._resizer.channels]))
        self._built = True

    def weighted_layers(self) -> dict[str, tf_keras.layers.Layer]:
        """Every layer that owns variables, by canonical scope, in the order of the forward pass."""
        self.build()
        return layers.weighted_layers(self)

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable by canonical name, moving statistics included, in the order of the forward pass."""
        self.build()
        return layers.named_variables(self)

    def regularizers(self) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
        """Regulariser by canonical variable name, for the variables that have one."""
        self.build()
        return layers.regularizers(self)

    def tf2_names(self) -> dict[str, str]:
        """Canonical name -> the full name the OD API's TF2 checkpoints store for the same variable."""
        rules = {part: [*own, *TF2_LEAVES] for part, own in self._rules.items()}
        return {name: apply_rules(name, rules[self.part(name)]) for name in self.named_variables()}

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Under which names published classification nets have the backbone."""
        return self._vocabularies

    def part(self, name: str) -> str:
        """`backbone`, `neck` or `head`: what a canonical variable name belongs to."""
        if not self._parts:
            self._parts.update(dict.fromkeys(self.weighted_layers(), "head"))
            for part, modules in self._modules_of_parts().items():
                self._parts.update((scope, part) for module in modules for scope in layers.weighted_layers(module))
        return self._parts[name.rpartition("/")[0]]

    def _rest_of(self, stages: list[fields.Stage], name: str) -> list[fields.Stage]:
        """The one stage of all variables that are in none of `stages`; none where there are none."""
        covered = {variable for stage in stages for variable in stage.variables}
        rest = tuple(variable for variable in self.named_variables() if variable not in covered)
        return [fields.Stage((name,), rest)] if rest else []
