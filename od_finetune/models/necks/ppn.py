"""Pooling pyramid (Jin et al. 2018, arXiv:1807.03284): one feature map at ever lower resolutions."""

from __future__ import annotations

import tensorflow as tf

from od_finetune.models.layers import ConvHyperparams, ConvUnit


class PoolingPyramid(tf.Module):
    """Each map is the maximum over 2x2 of the one before, so that all have the same features and one head serves them.

    Args:
      level: the backbone's level that is the first map.
      num_maps: of all, the first included.
      depth: channels of a 1x1 convolution before all this; 0: there is none.
      scope, hyperparams: of that convolution, `<scope>/Base_Conv2d_1x1_<depth>`.
    """

    def __init__(
        self,
        level: str,
        num_maps: int,
        depth: int = 0,
        scope: str = "",
        hyperparams: ConvHyperparams | None = None,
    ):
        super().__init__()
        self._level = level
        self._num_maps = num_maps
        self._base = ConvUnit(f"{scope}/Base_Conv2d_1x1_{depth}", hyperparams, depth) if depth else None

    def __call__(self, features: dict[str, tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """Backbone levels by name -> maps `[B, h, w, C]`, finest first."""
        maps = [features[self._level]]
        if self._base is not None:
            maps[0] = self._base(maps[0], training)
        for _ in range(self._num_maps - 1):
            maps.append(tf.nn.max_pool2d(maps[-1], 2, 2, "SAME"))
        return maps
