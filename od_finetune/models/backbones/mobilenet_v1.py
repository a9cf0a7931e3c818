"""MobileNet V1 (Howard et al. 2017, arXiv:1704.04861): a chain of depthwise separable convolutions."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from od_finetune.fields import ObjectTree
from od_finetune.models import tf2_objects
from od_finetune.models.backbones import spellings
from od_finetune.models.layers import BatchNorm, ConvHyperparams, ConvUnit
from od_finetune.models.stages import Block

# (stride, filters) of the depthwise separable blocks 1 to 13 that follow the first, full convolution.
_BLOCKS = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),
    (1, 1024),
)

# What the OD API builds the backbone with where the config does not override it (TF1's slim scope and the TF2
# extractor agree): weight decay 4e-5 (depthwise included), batch norm decay 0.9997.
DEFAULTS = ConvHyperparams(
    initializer=lambda: tf_keras.initializers.TruncatedNormal(stddev=0.09),
    regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    depthwise_regularizer=tf_keras.regularizers.L2(0.5 * 4e-5),
    activation="relu6",
    norm=BatchNorm(decay=0.9997, epsilon=0.001, center=True, scale=True),
)

# Canonical name -> full name in the OD API's TF2 checkpoints, which follow tf_keras.applications.MobileNet.
TF2_RULES = [
    (r"/MobilenetV1/Conv2d_0/", "/conv1/"),
    (r"/MobilenetV1/Conv2d_(\d+)_depthwise/", r"/conv_dw_\1/"),
    (r"/MobilenetV1/Conv2d_(\d+)_pointwise/", r"/conv_pw_\1/"),
    (r"^FeatureExtractor/(conv1|conv_[dp]w_\d+)/BatchNorm/", r"\1_bn/"),
    (r"^FeatureExtractor/(conv1|conv_[dp]w_\d+)/", r"\1/"),
]


def _layers(names: Callable[[int], tuple[str, str]]) -> list[spellings.Layer]:
    """Every convolution of the network; `names(0 to 26)` of them in their order."""
    scopes = ["Conv2d_0"]
    for block in range(1, len(_BLOCKS) + 1):
        scopes += [f"Conv2d_{block}_depthwise", f"Conv2d_{block}_pointwise"]
    return [spellings.Layer(f"MobilenetV1/{scope}", *names(index)) for index, scope in enumerate(scopes)]


def _timm(index: int) -> tuple[str, str]:
    """Blocks are numbered within the five resolutions."""
    if index == 0:
        return "conv_stem", "bn1"
    starts, block = (0, 1, 3, 5, 11), (index - 1) // 2
    stage = max(number for number, start in enumerate(starts) if start <= block)
    scope = f"blocks.{stage}.{block - starts[stage]}"
    return (f"{scope}.conv_dw", f"{scope}.bn1") if index % 2 else (f"{scope}.conv_pw", f"{scope}.bn2")


def _gluon(index: int) -> tuple[str, str]:
    """Convolution, norm and activation follow each other in one sequence."""
    return f"features.{3 * index}", f"features.{3 * index + 1}"


def _tf_vision(root: str) -> list[spellings.Layer]:
    """Blocks are the weighted layers of a Keras model, numbered."""

    def names(index: int) -> tuple[str, str]:
        scope, second = f"{root}layer_with_weights-{(index + 1) // 2}", index > 0 and index % 2 == 0
        conv = "_conv1" if second else "_dwconv0" if index else "_conv0"
        return f"{scope}/{conv}", f"{scope}/_norm{int(second)}"

    return _layers(names)


VOCABULARIES = (
    spellings.vocabulary("timm", _layers(_timm), spellings.TORCH, pads_evenly=True),
    spellings.vocabulary("GluonCV", _layers(_gluon), spellings.GLUON, pads_evenly=True),
    *(
        spellings.vocabulary(
            "GluonCV parameter names",
            _layers(lambda index, prefix=prefix: (f"{prefix}conv{index}", f"{prefix}batchnorm{index}")),
            spellings.MXNET,
            pads_evenly=True,
        )
        for prefix in ("mobilenet0_", "")
    ),
    *spellings.tf_vision(_tf_vision),
)


def override(hyperparams: ConvHyperparams, keras: bool) -> ConvHyperparams:
    """What `override_base_feature_extractor_hyperparams` makes of the config's hyperparams for the backbone."""
    del keras  # both of the OD API's V1 extractors take them as they are, for depthwise kernels too
    return hyperparams._replace(depthwise_regularizer=hyperparams.regularizer)


class MobilenetV1(tf.Module):
    """Feature levels `Conv2d_0`, `Conv2d_<n>_depthwise`, `Conv2d_<n>_pointwise` up to the last one asked for.

    Args:
      scope: canonical scope, e.g. `FeatureExtractor/MobilenetV1`.
      hyperparams: of every layer.
      levels: names of the feature levels that are wanted; layers above the last are not built.
      depth_multiplier, min_depth: filters become max(int(filters * depth_multiplier), min_depth).
      explicit_padding: see `layers.fixed_padding`.
    """

    def __init__(
        self,
        scope: str,
        hyperparams: ConvHyperparams,
        levels: tuple[str, ...],
        depth_multiplier: float = 1.0,
        min_depth: int = 8,
        explicit_padding: bool = False,
    ):
        super().__init__()
        self._levels = tuple(levels)
        self._names: list[str] = []
        self._units: list[ConvUnit] = []

        def add(name: str, filters: int | None, kernel_size: int, stride: int) -> None:
            if set(self._levels) <= set(self._names):
                return
            depth = None if filters is None else max(int(filters * depth_multiplier), min_depth)
            self._names.append(name)
            self._units.append(
                ConvUnit(f"{scope}/{name}", hyperparams, depth, kernel_size, stride, explicit_padding)
            )

        add("Conv2d_0", 32, 3, 2)
        for index, (stride, filters) in enumerate(_BLOCKS, start=1):
            add(f"Conv2d_{index}_depthwise", None, 3, stride)
            add(f"Conv2d_{index}_pointwise", filters, 1, 1)

    def blocks(self) -> list[Block]:
        """`Conv2d_<n>`, a depthwise separable block (0: the first convolution)."""
        units: dict[str, list[ConvUnit]] = {}
        for name, unit in zip(self._names, self._units, strict=True):
            units.setdefault("_".join(name.split("_")[:2]), []).append(unit)
        strides = [2, *(stride for stride, _ in _BLOCKS)]
        return [Block(name, stride, group) for (name, group), stride in zip(units.items(), strides, strict=False)]

    def tf2_objects(self) -> ObjectTree:
        """Its node in the object graph of the OD API's TF2 checkpoints: a functional model."""
        return tf2_objects.functional(node for unit in self._units for node in tf2_objects.unit(unit))

    def __call__(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised `[B, H, W, 3]` -> the feature levels `[B, h, w, C]` by name."""
        features = {}
        outputs = images
        for name, unit in zip(self._names, self._units, strict=True):
            outputs = unit(outputs, training)
            features[name] = outputs
        return {level: features[level] for level in self._levels}
