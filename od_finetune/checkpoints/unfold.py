"""The weights of a frozen graph under variables' names, and batch norms that were folded into convolutions undone.

Graphs frozen by TF1 have each variable as a constant of its name. Graphs frozen by TF2 name constants by the operation
that reads them (`Conv/Conv2D/ReadVariableOp/resource`), so that the name follows from the operation: layer and role.

Folding (TensorFlow's `fold_batch_norms`, Grappler's remapper, the TensorFlow.js converter) multiplies a norm's scale
into the kernel before it and leaves an addition: y = conv(x, w * s) + b. That is the same as the kernel w * s followed
by a batch norm with gamma 1, beta b, mean 0 and variance 1 - epsilon, which is what is made of it. What the statistics
were cannot be known any more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from od_finetune.checkpoints.arrays import ArraySource
from od_finetune.checkpoints.graph import Constant, Graph, Node, plain_name

EPSILON = 0.001
"""Which an unfolded batch norm is to be computed with; its variance is 1 - EPSILON."""
_DEFAULT_EPSILON = 1e-4  # of the FusedBatchNorm ops

_KERNELS = {
    "Conv2D": "weights",
    "_FusedConv2D": "weights",
    "DepthwiseConv2dNative": "depthwise_weights",
    "FusedDepthwiseConv2dNative": "depthwise_weights",
    "_FusedDepthwiseConv2dNative": "depthwise_weights",
    "Conv2DBackpropInput": "weights",
    "MatMul": "weights",
    "_FusedMatMul": "weights",
}
_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx")
_ADDITIONS = ("BiasAdd", "BiasAddV1", "Add", "AddV2")
_NORM_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")
_BIASES = ("biases", "bias")
_LEAVES = {"weights", "depthwise_weights", "pointwise_weights", "kernel", "depthwise_kernel", "pointwise_kernel"} | {
    *_BIASES,
    *_NORM_LEAVES,
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
_NORM_OPERATION = re.compile(r"/(FusedBatchNorm(V\d)?(_\d+)?|batchnorm)(/.*)?$")


@dataclasses.dataclass
class _Weights:
    entries: dict[str, Constant] = dataclasses.field(default_factory=dict)
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    epsilons: dict[str, float] = dataclasses.field(default_factory=dict)
    unfolded: list[str] = dataclasses.field(default_factory=list)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)  # Const -> the entry it became first
    clashes: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, constant: Constant, key: str | None = None) -> str:
        """Enters a constant; under a longer name if there is another one of that name."""
        if key is not None and self.keys.get(key) == name:
            return name
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


def graph_source(path: str, kind: str, nodes: Mapping[str, Node]) -> ArraySource:
    """What a frozen graph holds, as a Source.

    Names are the variables' own where the constants still have them, else `<layer>/<role>` with TF1's roles
    (`weights`, `depthwise_weights`, `biases`, `BatchNorm/gamma`); Keras' spelling of the role is an alias. Constants
    that are no parameter of a layer (anchors, shapes) are `others`.

    Args:
      path, kind: of the Source.
      nodes: by key; see `graph.Node`.
    """
    graph, weights = Graph(nodes), _Weights()
    for key, node in nodes.items():
        if node.op in _KERNELS and len(node.inputs) > 1:
            _convolution(graph, key, weights)
        elif node.op in _NORMS and len(node.inputs) > 4:
            _norm(graph, node, node.inputs[1:5], weights)
        elif node.op == "Rsqrt" and node.inputs:
            _decomposed_norm(graph, key, weights)
    _named(graph, weights)
    others = {
        node.name: node.constant
        for key, node in nodes.items()
        if node.constant is not None and key not in weights.keys and node.name not in weights.entries
    }
    _without_root(weights)
    everything = {**others, **weights.entries}
    return ArraySource(
        path,
        kind,
        {name: constant.shape for name, constant in weights.entries.items()},
        lambda name: everything[name].load(),
        others={name: constant.shape for name, constant in others.items()},
        second_names=weights.aliases,
        notes=_notes(weights),
        epsilons=weights.epsilons,
    )


def _convolution(graph: Graph, key: str, weights: _Weights) -> None:
    """Enters the kernel, and bias or folded norm behind it."""
    node = graph.nodes[key]
    source = graph.constant(node.inputs[1])
    if source is None or len(graph.nodes[source].constant.shape) < 2:
        return
    kernel = graph.nodes[source].constant
    name = _variable(graph.nodes[source].name)
    if name is None:
        scope = _layer(graph.nodes[source].name, node.name)
        leaf = _KERNELS[node.op]
        if leaf == "weights" and "separable_conv2d" in node.name:
            leaf = "pointwise_weights"
        name = f"{scope}/{leaf}"
    scope = name.rpartition("/")[0]
    weights.add(name, kernel, source)
    channels = int(np.prod(kernel.shape[-2:])) if "epthwise" in node.op else kernel.shape[-1]
    if node.op == "Conv2DBackpropInput":
        channels = kernel.shape[-2]
    _affine(graph, key, scope, channels, weights)


def _affine(graph: Graph, key: str, scope: str, channels: int, weights: _Weights) -> None:
    """Enters what is added to and multiplied with a convolution's outputs: its bias, else a norm that was folded."""
    scales: list[Constant] = []
    offsets: list[tuple[float, Constant | None]] = []  # (sign, constant), (0, None) for "times the latest scale"
    norm_scope = ""
    for step in _steps(graph, key, channels, weights):
        sign, node, source = step
        constant = graph.nodes[source].constant
        named = _variable(graph.nodes[source].name)
        leaf = named.rpartition("/")[2] if named else ""
        if sign and not scales and not offsets and (leaf in _BIASES or _reads_bias(graph.nodes[source].name, scope)):
            weights.add(named or f"{scope}/biases", _vector(constant), source)
            continue
        weights.keys.setdefault(source, "")
        stripped = _NORM_OPERATION.sub("", plain_name(node.name))
        if leaf in _NORM_LEAVES:
            norm_scope = named.rpartition("/")[0]
        elif stripped != plain_name(node.name):
            norm_scope = stripped
        if sign:
            offsets.append((sign, constant))
        else:
            scales.append(constant)
            offsets.append((0, constant))
    if scales or offsets:
        _unfold(norm_scope or f"{scope}/BatchNorm", scope, channels, scales, offsets, weights)


def _unfold(
    scope: str,
    layer: str,
    channels: int,
    scales: list[Constant],
    offsets: list[tuple[float, Constant | None]],
    weights: _Weights,
) -> None:
    def gamma() -> np.ndarray:
        product = np.ones([channels], np.float32)
        for scale in scales:
            product = product * _flat(scale)
        return product

    def beta() -> np.ndarray:
        total = np.zeros([channels], np.float32)
        for sign, constant in offsets:
            total = total + np.float32(sign) * _flat(constant) if sign else total * _flat(constant)
        return total

    values: dict[str, Callable[[], np.ndarray]] = {
        "gamma": gamma,
        "beta": beta,
        "moving_mean": lambda: np.zeros([channels], np.float32),
        "moving_variance": lambda: np.full([channels], 1 - EPSILON, np.float32),
    }
    for leaf, load in values.items():
        weights.add(f"{scope}/{leaf}", Constant((channels,), load))
    weights.aliases[f"{layer}/biases"] = weights.aliases[f"{layer}/bias"] = f"{scope}/beta"
    weights.epsilons[scope] = EPSILON
    weights.unfolded.append(scope)


def _steps(graph: Graph, key: str, channels: int, weights: _Weights) -> list[tuple[float, Node, str]]:
    """(1 added, -1 subtracted, 0 multiplied; the node; its Const) of what follows a convolution, in order."""
    node = graph.nodes[key]
    steps: list[tuple[float, Node, str]] = []
    fused = node.attributes.get("fused_ops", ())
    if fused:
        arguments = node.inputs[2:]
        if fused[0] == "BiasAdd" and arguments and (source := _per_channel(graph, arguments[0], channels)):
            steps.append((1, node, source))
        elif fused[0] == "FusedBatchNorm" and len(arguments) > 3:
            _norm(graph, node, arguments[:4], weights)
        if len(fused) > 1 or fused[0] != "BiasAdd":
            return steps
    while len(users := graph.users(key)) == 1 and len(steps) < 8:
        key = users[0]
        node = graph.nodes[key]
        if node.op not in (*_ADDITIONS, "Mul", "Sub"):
            break
        sources = [_per_channel(graph, operand, channels) for operand in node.inputs[:2]]
        at = 1 if len(sources) > 1 and sources[1] else 0
        if not any(sources) or (node.op == "Sub" and at == 0):
            break
        steps.append(({"Mul": 0, "Sub": -1}.get(node.op, 1), node, sources[at]))
    return steps


def _per_channel(graph: Graph, operand: str, channels: int) -> str | None:
    """The Const behind an operand if it has one number per channel: `[C]` or `[1, 1, 1, C]`."""
    source = graph.constant(operand)
    if source is None:
        return None
    constant = graph.nodes[source].constant
    shape = constant.shape
    fits = bool(shape) and int(np.prod(shape)) == channels == max(shape[-1], shape[1] if len(shape) == 4 else 0)
    return source if fits and constant.floating else None


def _norm(graph: Graph, node: Node, inputs: tuple[str, ...], weights: _Weights) -> None:
    """Enters scale, offset, mean and variance of one FusedBatchNorm."""
    sources = [graph.constant(operand) for operand in inputs]
    names = [_variable(graph.nodes[source].name) if source else None for source in sources]
    scope = next((name.rpartition("/")[0] for name in names if name), None)
    if scope is None:
        read = next((graph.nodes[source].name for source in sources if source), "")
        own = plain_name(node.name)
        scope = _NORM_OPERATION.sub("", own)
        if scope == own:  # fused into the convolution, which gives it its own name
            scope = re.sub(r"/ReadVariableOp(_\d+)?$", "", _NORM_OPERATION.sub("", plain_name(read)))
    for leaf, source, name in zip(_NORM_LEAVES, sources, names, strict=True):
        if source is not None:
            weights.add(name or f"{scope}/{leaf}", _vector(graph.nodes[source].constant), source)
    weights.epsilons[scope] = float(node.attributes.get("epsilon", _DEFAULT_EPSILON))


def _decomposed_norm(graph: Graph, key: str, weights: _Weights) -> None:
    """Enters a norm computed as x * k + (beta - mean * k), k = gamma * rsqrt(variance + epsilon)."""
    addition = graph.nodes.get(graph.nodes[key].inputs[0])
    if addition is None or addition.op not in _ADDITIONS or len(addition.inputs) < 2:
        return
    operands = [graph.constant(operand) for operand in addition.inputs[:2]]
    constants = {source: graph.nodes[source].constant for source in operands if source}
    variance = next((source for source, constant in constants.items() if len(constant.shape) == 1), None)
    epsilon = next((constant for constant in constants.values() if constant.shape == ()), None)
    if variance is None or epsilon is None:
        return
    found = {"moving_variance": variance}
    factor = key
    for user in graph.users(key):
        if graph.nodes[user].op == "Mul" and (gamma := _other_constant(graph, user)):
            found["gamma"], factor = gamma, user
    for user in graph.users(factor):
        mean = _other_constant(graph, user)
        if graph.nodes[user].op == "Mul" and mean and user != factor:
            found["moving_mean"] = mean
            for difference in graph.users(user):
                if graph.nodes[difference].op == "Sub" and (beta := graph.constant(graph.nodes[difference].inputs[0])):
                    found["beta"] = beta
    if "moving_mean" not in found:
        return
    names = {leaf: _variable(graph.nodes[source].name) for leaf, source in found.items()}
    own = _NORM_OPERATION.sub("", plain_name(graph.nodes[key].name))
    scope = next((name.rpartition("/")[0] for name in names.values() if name), own)
    for leaf, source in found.items():
        weights.add(names[leaf] or f"{scope}/{leaf}", _vector(graph.nodes[source].constant), source)
    weights.epsilons[scope] = float(epsilon.load())


def _other_constant(graph: Graph, key: str) -> str | None:
    return next((source for operand in graph.nodes[key].inputs if (source := graph.constant(operand))), None)


def _named(graph: Graph, weights: _Weights) -> None:
    """Enters what else is read as a variable is: `<name>/read`."""
    for key, node in graph.nodes.items():
        if node.constant is None or key in weights.keys or not node.constant.floating:
            continue
        readers = [graph.nodes[user] for user in graph.consumers.get(key, ())]
        name = plain_name(node.name)
        known = _variable(node.name) or any(reader.name == f"{node.name}/read" for reader in readers)
        if known and name not in weights.entries:  # of a folded norm, the old constants may lie about
            weights.add(name, node.constant, key)


def _without_root(weights: _Weights) -> None:
    """A scope that all names share (a Keras model's name) may be left out in looking them up."""
    roots = {name.split("/")[0] for name in weights.entries}
    if len(roots) == 1 and all(name.count("/") > 1 for name in weights.entries):
        skip = len(roots.pop()) + 1
        known = {**weights.aliases, **{name: name for name in weights.entries}}
        weights.aliases |= {name[skip:]: entry for name, entry in known.items()}


def _variable(name: str) -> str | None:
    """The variable that a constant was, by its name; None if it is named after an operation."""
    name = plain_name(name)
    return name if name.rpartition("/")[2] in _LEAVES and "/" in name else None


def _layer(constant: str, node: str) -> str:
    """The layer that a kernel belongs to, by the name of the constant if that is of a layer, else of the operation."""
    for name in (plain_name(constant), plain_name(node)):
        scope = _OPERATION.sub("", name)
        if scope != name:
            return scope
    return plain_name(node)


def _reads_bias(constant: str, scope: str) -> bool:
    return re.fullmatch(re.escape(scope) + r"/BiasAdd(_\d+)?", plain_name(constant)) is not None


def _flat(constant: Constant) -> np.ndarray:
    return constant.load().reshape(-1).astype(np.float32)


def _vector(constant: Constant) -> Constant:
    """`[1, 1, 1, C]` as `[C]`."""
    if len(constant.shape) == 1:
        return constant
    return Constant((int(np.prod(constant.shape)),), lambda: constant.load().reshape(-1), constant.floating)


def _same(one: Constant, other: Constant) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one.load(), other.load()))


def _notes(weights: _Weights) -> tuple[str, ...]:
    notes = []
    if weights.unfolded:
        shown = ", ".join(weights.unfolded[:3]) + (", ..." if len(weights.unfolded) > 3 else "")
        notes.append(
            f"{len(weights.unfolded)} batch norms were folded into the convolutions before them and are unfolded: "
            f"kernels keep the factor, beta is the offset, mean 0, variance {1 - EPSILON:g} ({shown}). Inference is "
            "the same; their true statistics are lost, so that in training mode they normalise differently: freeze "
            "them, or expect a warm-up."
        )
    if weights.clashes:
        shown = ", ".join(sorted(set(weights.clashes))[:3])
        notes.append(
            f"{len(weights.clashes)} constants have a name that another one with other values has; the first keeps "
            f"it, the rest have '@' and a number behind it: {shown}."
        )
    return tuple(notes)
