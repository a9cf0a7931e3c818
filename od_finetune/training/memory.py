"""Memory of the tensors of a traced graph."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence
from typing import Any

import tensorflow as tf

# The result is the input's own buffer under another shape or name.
_VIEWS = frozenset({"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"})
# No activation: weights, and what is there before the step.
_GIVEN = frozenset({"Const", "Placeholder", "ReadVariableOp", "NoOp"})
# Elementwise: may write the result into an input that nobody reads afterwards.
_IN_PLACE = frozenset(
    "Relu Relu6 Elu Sigmoid Tanh ReluGrad Relu6Grad SigmoidGrad BiasAdd Add AddV2 AddN Sub Mul RealDiv Neg Exp Log "
    "Square Sqrt Rsqrt Maximum Minimum".split()
)


def size(tensor: Any) -> int:
    """Bytes of a tensor or variable; 0 where its shape is open."""
    return (tensor.shape.num_elements() or 0) * tensor.dtype.size


def moved(operation: tf.Operation) -> int:
    """Bytes that an operation reads and writes; 0 for a view, a constant or a variable's value."""
    if operation.type in _VIEWS | _GIVEN:
        return 0
    return sum(map(size, operation.inputs)) + sum(map(size, operation.outputs))


def buffer(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor that owns the memory of `tensor`."""
    while tensor.op.type in _VIEWS:
        tensor = tensor.op.inputs[0]
    return tensor


def kept(
    forward: Collection[tf.Operation], backward: Sequence[tf.Operation], shapes_only: Collection[str]
) -> list[tf.Tensor]:
    """The tensors that `backward` operations read of those that `forward` ones made, each once.

    Args:
      shapes_only: types of operations that ask for a shape and read nothing.
    """
    made = {operation.name for operation in forward if operation.type not in _GIVEN}
    found: dict[str, tf.Tensor] = {}
    for operation in backward:
        if operation.type in shapes_only:
            continue
        for tensor in map(buffer, operation.inputs):
            if tensor.op.name in made:
                found[tensor.name] = tensor
    return list(found.values())


def peak(operations: Sequence[tf.Operation], shapes_only: Collection[str]) -> int:
    """Most bytes alive at once if `operations` run in this order and a buffer is freed after its last reader.

    Weights and constants, which are always there, are left out.
    """
    readers = collections.Counter(
        tensor.name
        for operation in operations
        if operation.type not in _VIEWS and operation.type not in shapes_only
        for tensor in _buffers(operation)
    )
    alive = most = 0
    for operation in operations:
        if operation.type in _VIEWS | _GIVEN or operation.type in shapes_only:
            continue
        freed = 0
        for tensor in _buffers(operation):
            readers[tensor.name] -= 1
            freed += size(tensor) if not readers[tensor.name] else 0
        made = sum(size(tensor) for tensor in operation.outputs if readers[tensor.name])
        reused = min(freed, made) if operation.type in _IN_PLACE else 0
        most = max(most, alive + made - reused)
        alive += made - freed
    return most


def _buffers(operation: tf.Operation) -> list[tf.Tensor]:
    """What an operation reads of the memory that operations made, each buffer once."""
    found = {tensor.name: tensor for tensor in map(buffer, operation.inputs)}
    return [tensor for tensor in found.values() if tensor.op.type not in _GIVEN]
