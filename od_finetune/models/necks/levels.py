"""No neck: feature levels of the backbone as they are."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.fields import ObjectTree


class Levels(tf.Module):
    """`{level: features}` -> the features of `levels`, in this order."""

    def __init__(self, levels: tuple[str, ...]):
        super().__init__()
        self._levels = levels

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """See the class."""
        del training
        return [features[level] for level in self._levels]

    def tf2_model(self, backbone: ObjectTree) -> ObjectTree:
        """The node of a two-stage detector's first stage in the object graph of the OD API's TF2 checkpoints: the
        backbone's own."""
        return backbone
