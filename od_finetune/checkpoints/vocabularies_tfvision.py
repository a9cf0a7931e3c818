"""Names of backbones in checkpoints of tf-models-official's `official.vision`.

Its Keras names depend on what was built before in the same process (`conv2dbn_block_3/conv2d/kernel`), its object paths
do not: weighted layers are numbered in order, `layer_with_weights-0` the first convolution, then one per block.
Where the backbone hangs depends on what was saved: `backbone/...` (the model garden's own checkpoint items),
`model/backbone/...` (a training checkpoint), `model/...` or nothing (a backbone alone).
"""

from __future__ import annotations

import re

_ROOTS = ("backbone/", "model/backbone/", "model/", "")
_LEAVES = {"weights": "kernel", "depthwise_weights": "depthwise_kernel", "biases": "bias"}

# MobileNet V1: depthwise and pointwise convolution of block k are layer k. V2: block k is layer k + 1, the first
# convolution layer 0, the last one layer 18; a block's parts have the same numbers whether it expands or not.
_V1 = re.compile(r"MobilenetV1/Conv2d_(?P<block>\d+)(_(?P<part>depthwise|pointwise))?")
_V1_PARTS = {None: ("_conv0", "_norm0"), "depthwise": ("_dwconv0", "_norm0"), "pointwise": ("_conv1", "_norm1")}
_V2 = re.compile(r"MobilenetV2/(Conv(?P<last>_1)?|expanded_conv(_(?P<block>\d+))?/(?P<part>expand|depthwise|project))")
_V2_PARTS = {"expand": ("_conv0", "_norm0"), "depthwise": ("_conv1", "_norm1"), "project": ("_conv2", "_norm2")}
_V2_LAST = 18


def spell(name: str, tf2_name: str) -> list[str]:
    """The object paths that a canonical name may have there; none for a variable of no backbone that is known."""
    scope, _, leaf = name.rpartition("/")
    layer, _, norm = scope.partition("/BatchNorm")
    for layers in (_mobilenet_v1, _mobilenet_v2):
        found = layers(layer)
        if found and not norm:
            number, (convolution, normalization) = found
            part = normalization if scope.endswith("/BatchNorm") else convolution
            return [f"{root}layer_with_weights-{number}/{part}/{_LEAVES.get(leaf, leaf)}" for root in _ROOTS]
    return []


def _mobilenet_v1(layer: str) -> tuple[int, tuple[str, str]] | None:
    match = _end(_V1, layer)
    return (int(match["block"]), _V1_PARTS[match["part"]]) if match else None


def _mobilenet_v2(layer: str) -> tuple[int, tuple[str, str]] | None:
    match = _end(_V2, layer)
    if match is None:
        return None
    if match["part"] is None:
        return (_V2_LAST if match["last"] else 0), _V2_PARTS["expand"]
    return int(match["block"] or 0) + 1, _V2_PARTS[match["part"]]


def _end(pattern: re.Pattern[str], layer: str) -> re.Match[str] | None:
    """The match of a whole layer's scope behind the one scope that a detector's backbone stands in."""
    return pattern.fullmatch(layer) or pattern.fullmatch(layer.partition("/")[2])

