"""Under which names other frameworks' classification nets keep a backbone: from layer names to `names.Vocabulary`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from od_finetune.names import FRAMEWORK_EPSILON, Rules, Vocabulary

# From a canonical leaf to a framework's, after a layer's own name and a slash.
TORCH: Rules = [
    (r"/(?:weights|depthwise_weights|gamma)$", ".weight"),
    (r"/(?:biases|beta)$", ".bias"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
]
GLUON: Rules = [  # what `save_parameters` writes: the path of attributes
    (r"/(?:weights|depthwise_weights)$", ".weight"),
    (r"/biases$", ".bias"),
    (r"/(gamma|beta)$", r".\1"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
]
KERAS: Rules = [
    (r"/weights$", "/kernel"),
    (r"/depthwise_weights$", "/depthwise_kernel"),
    (r"/biases$", "/bias"),
]
MXNET: Rules = [(pattern, replacement.replace(".", "_")) for pattern, replacement in GLUON]  # parameters' own names


# Where tf-models-official's checkpoints have a backbone: its own checkpoint items, a training's (of a detector, of a
# classifier), a backbone alone.
TF_VISION_ROOTS = ("backbone/", "model/backbone/", "model/_backbone/", "model/layer_with_weights-0/", "model/", "")


class Layer(NamedTuple):
    """A convolution and its batch norm, by name."""

    scope: str  # the end of the convolution's canonical scope, e.g. `MobilenetV2/expanded_conv/project`
    conv: str
    norm: str


def vocabulary(
    name: str,
    layers: Iterable[Layer],
    leaves: Rules,
    epsilon: float | None = FRAMEWORK_EPSILON,
    pads_evenly: bool = False,
) -> Vocabulary:
    """The vocabulary in which `layers` have these names, and their variables those `leaves`."""
    rules: Rules = []
    for layer in layers:
        scope = re.escape(layer.scope)
        rules.append((rf"^.*/{scope}/BatchNorm/", f"{layer.norm}/"))
        rules.append((rf"^.*/{scope}/", f"{layer.conv}/"))
    return Vocabulary(name, rules + leaves, epsilon, pads_evenly)


def tf_vision(layers: Callable[[str], Iterable[Layer]]) -> tuple[Vocabulary, ...]:
    """The vocabularies of tf-models-official's vision checkpoints, by object path; `layers` makes them of a root."""
    return tuple(vocabulary("TF-Vision", layers(root), KERAS, 1e-3) for root in TF_VISION_ROOTS)
