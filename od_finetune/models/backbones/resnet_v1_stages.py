"""ResNet V1 cut in two, as two-stage detectors use it: blocks 1 to 3 see the image, block 4 sees crops."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.fields import ObjectTree
from od_finetune.models.backbones.resnet_v1 import ResnetV1
from od_finetune.models.layers import ConvHyperparams
from od_finetune.models.stages import Block

_LAST, _LAST_OF_FIRST = "block4", "block3"


class FirstStage(tf.Module):
    """Feature level `block3`.

    Args:
      scope, hyperparams, depth_multiplier, num_layers, output_stride, keras: see `ResnetV1`.
      levels: `("block3",)`.

    In slim the whole network is built, and checkpoints hold its block 4, too, which nothing is made of. It is here for
    them (not in `keras`): its variables are created, but it is never called again.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        *,
        num_layers: int = 50,
        output_stride: int = 16,
        keras: bool = False,
    ):
        super().__init__()
        common = dict(depth_multiplier=depth_multiplier, num_layers=num_layers, keras=keras)
        self.network = ResnetV1(scope, hyperparams, levels, output_stride=output_stride, **common)
        self.idle = None if keras else ResnetV1(scope, hyperparams, (_LAST,), first_block=4, **common)
        self._idle_built = keras

    def blocks(self) -> list[Block]:
        """Those of `ResnetV1`; the idle block belongs to the last one."""
        blocks = self.network.blocks()
        if self.idle is not None:
            blocks[-1] = blocks[-1]._replace(module=[blocks[-1].module, self.idle])
        return blocks

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a functional model."""
        return self.network.tf2_objects()

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        features = self.network(images, training)
        if not self._idle_built:
            self.idle(features[_LAST_OF_FIRST], training=False)
            self._idle_built = True
        return features


class SecondStage(tf.Module):
    """Block 4 on crops of `block3`.

    Args:
      scope, hyperparams, depth_multiplier, num_layers, entry_stride, keras: see `ResnetV1`.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        depth_multiplier: float = 1.0,
        *,
        num_layers: int = 50,
        entry_stride: int = 1,
        keras: bool = False,
    ):
        super().__init__()
        self.network = ResnetV1(
            scope,
            hyperparams,
            (_LAST,),
            depth_multiplier,
            num_layers=num_layers,
            first_block=4,
            entry_stride=entry_stride,
            keras=keras,
        )

    def blocks(self) -> list[Block]:
        """Those of `ResnetV1`."""
        return self.network.blocks()

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a functional model."""
        return self.network.tf2_objects()

    def __call__(self, crops: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[N, h, w, C]` -> `[N, h', w', D]`."""
        return self.network(crops, training)[_LAST]
