"""Draws the mask of one object (Birodkar et al., DeepMAC, 2021, arXiv:2104.00613), see `boxes/center_deepmac.py`."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from od_finetune.errors import UserError
from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones.hourglass import Architecture, Hourglass
from od_finetune.models.keras_names import Numbering
from od_finetune.models.layers import ConvHyperparams, conv_layer


def architectures(width: int) -> dict[str, Architecture]:
    """The config's network_type -> sizes, for a first convolution of `width` channels (num_init_channels)."""
    deep = tuple(width * factor for factor in (2, 2, 3, 3, 3, 4))
    return {
        "hourglass10": Architecture(width, (2 * width, 2 * width), (1, 1)),
        "hourglass20": Architecture(width, (2 * width, 2 * width, 3 * width), (1, 2, 2)),
        "hourglass32": Architecture(width, (2 * width, 2 * width, 3 * width, 3 * width), (2, 2, 2, 2)),
        "hourglass52": Architecture(width, deep, (2, 2, 2, 2, 2, 4)),
        "hourglass100": Architecture(width, deep, (4, 4, 4, 4, 4, 8)),
    }


class MaskNetwork(tf.Module):
    """An hourglass at the resolution of its input, then a 1x1 convolution.

    Args:
      scope: canonical scope.
      architecture: of the hourglass.
      channels: of the two inputs.
      use_instance_embedding: False draws without the second one.
    """

    def __init__(
        self, scope: str, architecture: Architecture, channels: tuple[int, int], use_instance_embedding: bool = True
    ):
        super().__init__()
        self.hourglass = Hourglass(f"{scope}/Hourglass", architecture, downsample=False)
        self.output = conv_layer(f"{scope}/output", ConvHyperparams(tf_keras.initializers.GlorotUniform), 1, 1)
        self._channels, self._with_instance = channels, use_instance_embedding

    @property
    def multiple(self) -> int:
        """Of which height and width of the input have to be."""
        return self.hourglass.multiple

    def __call__(self, inputs: tf.Tensor, instances: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What `center_deepmac.head_inputs` gives, `[N, h, w, P]` and `[N, E]`, -> logits `[N, h, w]`.

        Raises:
          UserError: height or width is not a multiple of `multiple`.
        """
        if any(size is not None and size % self.multiple for size in inputs.shape[1:3]):
            raise UserError(f"model.center_net.deepmac_mask_estimation: found masks of {inputs.shape[1]} x "
                            f"{inputs.shape[2]}, expected multiples of {self.multiple} for this network_type")
        if self._with_instance:
            size = tf.shape(inputs)
            spread = tf.tile(instances[:, None, None], [1, size[1], size[2], 1])
            inputs = tf.concat([inputs, spread], axis=-1)
        features = self.hourglass(inputs, training)
        return self.output(list(features.values())[-1])[..., 0]

    def build(self) -> None:
        """Creates all variables; idempotent."""
        if not self.output.built:
            pixels, instances = self._channels
            # In a function's graph tf_keras creates variables outside of it.
            with tf.__internal__.FuncGraph("build").as_default():
                inputs = tf.compat.v1.placeholder(tf.float32, [1, self.multiple, self.multiple, pixels])
                self(inputs, tf.compat.v1.placeholder(tf.float32, [1, instances]))

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        """Canonical scope -> full name in the OD API's TF2 checkpoints."""
        names = self.hourglass.tf2_names(numbering, outer="")
        return {**names, self.output.name: numbering.next("conv2d")}

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of those checkpoints."""
        return {"_net": self.hourglass.tf2_network(), "project_out": tf2_objects.layer(self.output)}
