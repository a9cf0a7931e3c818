"""What is gathered from a frozen graph: constants under variables' names, and what is to be said about them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from od_finetune.checkpoints.graph import Constant, plain_name

EPSILON = 0.001
"""Which an unfolded batch norm is to be computed with; its variance is 1 - EPSILON."""
NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
BIASES = ("biases", "bias")
_LEAVES = {"weights", "depthwise_weights", "pointwise_weights", "kernel", "depthwise_kernel", "pointwise_kernel"} | {
    *BIASES,
    *NORM_LEAVES,
}
_KERAS_LEAVES = {
    "weights": "kernel",
    "depthwise_weights": "depthwise_kernel",
    "pointwise_weights": "pointwise_kernel",
    "biases": "bias",
}
# What a layer's operations are called within its scope.
_OPERATION = re.compile(
    r"/(separable_conv2d(/depthwise)?|Conv2D|depthwise|convolution|conv2d_transpose|MatMul|Tensordot/MatMul|BiasAdd"
    r"|Relu6?|Sigmoid)(_\d+)?$"
)


@dataclasses.dataclass
class GraphWeights:
    """Entries by name, second spellings, epsilons by scope, and the scopes of norms that were folded."""

    entries: dict[str, Constant] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    epsilons: dict[str, float] = dataclasses.field(default_factory=dict)
    unfolded: list[str] = dataclasses.field(default_factory=list)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)  # Const -> the entry it became first
    clashes: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, constant: Constant, key: str | None = None) -> str:
        """Enters a constant; under a longer name if there is another one of that name."""
        known = self.keys.get(key, "") if key is not None else ""
        if known.partition("@")[0] == name:
            return known
        if name in self.entries:
            if _same(self.entries[name], constant):
                return name
            self.clashes.append(name)
            name = f"{name}@{len(self.clashes)}"
        self.entries[name] = constant
        if key is not None:
            self.keys.setdefault(key, name)
        scope, _, leaf = name.rpartition("/")
        if leaf in _KERAS_LEAVES:
            self.aliases[f"{scope}/{_KERAS_LEAVES[leaf]}"] = name
        return name

    def add_short_names(self) -> None:
        """A scope that all names share (a Keras model's name) may be left out in looking them up."""
        roots = {name.split("/")[0] for name in self.entries}
        if len(roots) == 1 and all(name.count("/") > 1 for name in self.entries):
            skip = len(roots.pop()) + 1
            known = {**self.aliases, **{name: name for name in self.entries}}
            self.aliases |= {name[skip:]: entry for name, entry in known.items()}

    def notes(self) -> tuple[str, ...]:
        """Sentences for the restore plan."""
        notes = []
        if self.unfolded:
            shown = ", ".join(self.unfolded[:3]) + (", ..." if len(self.unfolded) > 3 else "")
            notes.append(
                f"{len(self.unfolded)} batch norms were folded into the convolutions before them and are unfolded: "
                f"kernels keep the factor, beta is the offset, mean 0, variance {1 - EPSILON:g} ({shown}). Inference "
                "is the same; their true statistics are lost, so that in training mode they normalise differently: "
                "freeze them, or expect a warm-up."
            )
        if self.clashes:
            shown = ", ".join(sorted(set(self.clashes))[:3])
            notes.append(
                f"{len(self.clashes)} constants have a name that another one with other values has; the first keeps "
                f"it, the rest have '@' and a number behind it: {shown}."
            )
        return tuple(notes)


def variable(name: str) -> str | None:
    """The variable that a constant was, by its name; None if it is named after an operation."""
    name = plain_name(name)
    return name if name.rpartition("/")[2] in _LEAVES and "/" in name else None


def layer(constant: str, node: str) -> str:
    """The layer that a kernel belongs to, by the name of the constant if that is of a layer, else of the operation."""
    for name in (plain_name(constant), plain_name(node)):
        scope = _OPERATION.sub("", name)
        if scope != name:
            return scope
    return plain_name(node)


def reads_bias(constant: str, scope: str) -> bool:
    """Whether a constant is what the layer `scope` reads as its bias, by the name TF2 gives it."""
    return re.fullmatch(re.escape(scope) + r"/BiasAdd(_\d+)?", plain_name(constant)) is not None


def vector(constant: Constant) -> Constant:
    """`[1, 1, 1, C]` as `[C]`."""
    if len(constant.shape) == 1:
        return constant
    return Constant((int(np.prod(constant.shape)),), lambda: constant.load().reshape(-1), constant.floating)


def _same(one: Constant, other: Constant) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one.load(), other.load()))
