"""Under which names other frameworks' classification nets keep ResNet V1 with 50, 101 or 152 layers."""

from __future__ import annotations

from collections.abc import Callable

from od_finetune.models.backbones import spellings
from od_finetune.models.backbones.resnet_v1 import UNITS
from od_finetune.names import FRAMEWORK_EPSILON, Rules, Vocabulary

_ROOT, _CONV = r"^.*/resnet_v1_\d+/conv1", "/bottleneck_v1/"
_STRIDES = (
    "the checkpoint's network has the stride of a block in its first 3x3 convolution, this model in the 1x1 "
    "convolution before that"
)
_COLOURS = "its images had a mean of 0 and a deviation of 1 in each channel, this model's keep their deviation"
_ADVICE = "the weights fit, but the activations differ until the backbone, its norms' statistics included, has trained"
_EARLY_PADDING = "it pads the first convolution as TensorFlow does, this model evenly"
_PADDING = "it pads strided convolutions and the pooling evenly, this model the pooling as TensorFlow does"


def vocabularies(num_layers: int) -> tuple[Vocabulary, ...]:
    """Of the network with so many layers, for every scope it may be in. All of them are what is called V1.5 or V1b:
    their note says how it differs."""
    torch = [("/shortcut/BatchNorm/", "/downsample.1/"), ("/shortcut/", "/downsample.0/"), *_numbered("/bn{}/")]
    blocks = _units(num_layers, lambda block, unit, _: f"layer{block}.{unit}")
    root = [(rf"{_ROOT}/BatchNorm/", "bn1/"), (rf"{_ROOT}/", "conv1/")]
    evenly = "; ".join((_STRIDES, _PADDING, _COLOURS, _ADVICE))
    return (
        _vocabulary("torchvision and timm", [*root, *blocks, *torch, *_dotted(spellings.TORCH)], evenly),
        _vocabulary("GluonCV V1b", [*root, *blocks, *torch, *_dotted(spellings.GLUON)], evenly),
        *(_tf_vision(num_layers, root) for root in spellings.TF_VISION_ROOTS),
    )


def _vocabulary(name: str, rules: Rules, note: str) -> Vocabulary:
    return Vocabulary(name, rules, FRAMEWORK_EPSILON, note=note)


def _tf_vision(num_layers: int, root: str) -> Vocabulary:
    """By object path: the weighted layers of a Keras model, numbered. Its published networks have another epsilon than
    TF-Vision's default."""
    layer = f"{root}layer_with_weights-"
    rules = [
        (rf"{_ROOT}/BatchNorm/", f"{layer}1/"),
        (rf"{_ROOT}/", f"{layer}0/"),
        *_units(num_layers, lambda block, unit, index: f"{layer}{index + 2}"),
        ("/shortcut/BatchNorm/", "/_norm0/"),
        ("/shortcut/", "/_shortcut/"),
        *_numbered("/_norm{}/", "/_conv{}/"),
        *spellings.KERAS,
    ]
    return _vocabulary("TF-Vision", rules, "; ".join((_STRIDES, _EARLY_PADDING, _COLOURS, _ADVICE)))


def _units(num_layers: int, spell: Callable[[int, int, int], str]) -> Rules:
    """From a unit's scope to its name there: `spell(block from 1, unit from 0, its number among all)`, and a slash."""
    places = [(block, unit) for block, count in enumerate(UNITS[num_layers], start=1) for unit in range(count)]
    return [
        (rf"^.*/resnet_v1_\d+/block{block}/unit_{unit + 1}{_CONV}", f"{spell(block, unit, index)}/")
        for index, (block, unit) in enumerate(places)
    ]


def _numbered(norm: str, conv: str = "/conv{}/") -> Rules:
    """Of the three convolutions of a unit."""
    return [(r"/conv([123])/BatchNorm/", norm.format(r"\1")), (r"/conv([123])/", conv.format(r"\1"))]


def _dotted(leaves: Rules) -> Rules:
    """Dots between all names."""
    return [*leaves, (r"^(layer\d\.\d+)/", r"\1.")]
