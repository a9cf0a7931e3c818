"""What a training step costs at any set of trained variables, counted in the graph of one traced step.

The step is traced once with everything trained. What is left of it where less is trained are the operations that the
losses and the remaining gradients depend on: TensorFlow prunes a traced step the same way, and a tape that watches
fewer variables records no others (a test compares both). And a batch norm that is frozen runs in inference mode, where
TensorFlow makes one operation of convolution, norm and activation: what the latter two move is not counted then.

Why not `tf.compat.v1.profiler`, which tf-models-official's `try_count_flops` calls: it has no rule for the gradients of
depthwise convolutions, counts gradients that nobody takes and knows nothing of memory; `try_count_flops` also wants a
Keras model with `inputs`. Where the profiler has rules, the counts here are the same (tested).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune import fields
from od_finetune.training import memory
from od_finetune.training.trainer import Trainer

# Type -> (input that is the gradient or image of the result's side (None: the output), where the filter's shape is).
_RESULT = None
_FILTER_INPUT, _FILTER_OUTPUT = "input", "output"
_CONVOLUTIONS: dict[str, tuple[int | None, str]] = {
    "Conv2D": (_RESULT, _FILTER_INPUT),
    "Conv2DBackpropInput": (2, _FILTER_INPUT),
    "Conv2DBackpropFilter": (2, _FILTER_OUTPUT),
    "DepthwiseConv2dNative": (_RESULT, _FILTER_INPUT),
    "DepthwiseConv2dNativeBackpropInput": (2, _FILTER_INPUT),
    "DepthwiseConv2dNativeBackpropFilter": (2, _FILTER_OUTPUT),
}
_MATRIX_PRODUCTS = frozenset({"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"})
_ACTIVATIONS = frozenset({"Relu", "Relu6", "Elu", "LeakyRelu"})  # that TensorFlow fuses with a norm before them
# Ask for a tensor's shape, not its values: with the shape known while tracing they become constants.
_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})


class StepCost(NamedTuple):
    """What one step costs. FLOPs are those of convolutions and matrix products, two per multiplication and addition;
    the rest of the operations move memory and are counted in bytes."""

    forward_flops: int
    backward_flops: int
    moved_bytes: int  # read and written by all operations, frozen norms and their activations left out
    activation_bytes: int  # forward tensors that the backward pass reads: what has to be kept for it
    peak_bytes: int  # most tensors alive at once, operations run one by one in the order of the graph

    @property
    def flops(self) -> int:
        """Of the whole step."""
        return self.forward_flops + self.backward_flops


class TracedStep:
    """The graph of a training step in which everything trains that `trainer` trains."""

    def __init__(self, trainer: Trainer, batch: fields.Batch) -> None:
        """Traces forward and backward pass.

        Args:
          trainer: normally one that trains everything.
          batch: of the config's shapes; its values do not matter.
        """
        traced = tf.function(trainer.gradients).get_concrete_function(batch)
        self._graph = traced.graph
        # A graph returns copies of its results, which `buffer` sees through.
        results = [memory.buffer(tensor) for tensor in self._graph.outputs]
        losses, self.gradients = tf.nest.pack_sequence_as(traced.structured_outputs, results)
        self._losses = list(losses.values())
        self._order = {operation: index for index, operation in enumerate(self._graph.get_operations())}
        # Gradients are formed once the total loss is there.
        self._forward_end = self._order[losses[fields.TOTAL_LOSS].op]
        variables = {id(v.handle): name for name, v in trainer.detector.named_variables().items()}
        self._variables = {
            inner.op: variables[id(outer)] for outer, inner in self._graph.captures if id(outer) in variables
        }

    def cost(self, trained: Iterable[str]) -> StepCost:
        """Of a step that trains these variables (those without a gradient cost nothing)."""
        trained = set(trained)
        operations = self._needed(trained)
        forward = [op for op in operations if self._order[op] <= self._forward_end]
        backward = [op for op in operations if self._order[op] > self._forward_end]
        kept = memory.kept(forward, backward, _SHAPES)
        return StepCost(
            forward_flops=sum(map(flops, forward)),
            backward_flops=sum(map(flops, backward)),
            moved_bytes=sum(memory.moved(op) for op in operations if not self._is_fused(op, trained)),
            activation_bytes=sum(map(memory.size, kept)),
            peak_bytes=memory.peak(operations, _SHAPES),
        )

    def forward_flops(self) -> dict[str, int]:
        """FLOPs of the forward pass by the canonical scope of the layer whose weights are applied."""
        found: dict[str, int] = {}
        for operation in self._needed(()):
            name = self._weights(operation) if flops(operation) else None
            if name is not None:
                scope = name.rpartition("/")[0]
                found[scope] = found.get(scope, 0) + flops(operation)
        return found

    def _needed(self, trained: Iterable[str]) -> list[tf.Operation]:
        """What the losses and these gradients depend on, in the order of the graph."""
        wanted = [tensor.op for tensor in self._losses]
        wanted += [self.gradients[name].op for name in trained if name in self.gradients]
        found: set[tf.Operation] = set()
        while wanted:
            operation = wanted.pop()
            if operation in found:
                continue
            found.add(operation)
            if operation.type not in _SHAPES:
                wanted += [tensor.op for tensor in operation.inputs]
            # Not control inputs: they order side effects, such as a batch norm's update of its statistics.
        return sorted(found, key=self._order.__getitem__)

    def _is_fused(self, operation: tf.Operation, trained: Collection[str]) -> bool:
        """Whether an operation of the forward pass is a frozen norm, or the activation after one."""
        if self._order[operation] > self._forward_end:
            return False
        if operation.type in _ACTIVATIONS:
            operation = operation.inputs[0].op
        if operation.type != "FusedBatchNormV3":
            return False
        affine = [self._variables.get(_origin(tensor, self._variables)) for tensor in operation.inputs[1:3]]
        return any(affine) and not any(name in trained for name in affine)

    def _weights(self, operation: tf.Operation) -> str | None:
        """The variable that a convolution or matrix product applies."""
        for tensor in reversed(operation.inputs):
            source = _origin(tensor, self._variables)
            if source in self._variables:
                return self._variables[source]
        return None


def _origin(tensor: tf.Tensor, stop: Collection[tf.Operation]) -> tf.Operation:
    """What a tensor comes from through operations of one input, such as the reading of a variable."""
    source = tensor.op
    while source not in stop and len(source.inputs) == 1:
        source = source.inputs[0].op
    return source


def flops(operation: tf.Operation) -> int:
    """Of a convolution, its gradients, or a matrix product; 0 for every other operation, and where shapes are open."""
    if operation.type in _MATRIX_PRODUCTS:
        inner = -2 if operation.get_attr(_transpose_attribute(operation)) else -1
        return _times(2, operation.outputs[0].shape, operation.inputs[0].shape[inner : inner + 1 or None])
    if operation.type not in _CONVOLUTIONS:
        return 0
    result, where = _CONVOLUTIONS[operation.type]
    outcome = operation.outputs[0] if result is None else operation.inputs[result]
    kernel = (operation.inputs[1] if where == _FILTER_INPUT else operation.outputs[0]).shape
    # A full convolution sums over window and input channels, a depthwise one over the window.
    summed = kernel[:2] if operation.type.startswith("Depthwise") else kernel[:3]
    return _times(2, outcome.shape, summed)


def _transpose_attribute(operation: tf.Operation) -> str:
    return "transpose_a" if operation.type == "MatMul" else "adj_x"


def _times(factor: int, *shapes: tf.TensorShape) -> int:
    return factor * math.prod(shape.num_elements() or 0 for shape in shapes)


class VariableMemory(NamedTuple):
    """Bytes that training needs for one variable beside its value."""

    gradient: int
    slots: int  # of the optimiser, and the moving average


def variable_memory(trainer: Trainer) -> dict[str, VariableMemory]:
    """Of each variable that the trainer trains."""
    shadows: Mapping[str, tf.Variable] = trainer.moving_average.shadows if trainer.moving_average is not None else {}
    slots = trainer.optimizer.get_slot_names()
    found = {}
    for name, variable in trainer.trained.items():
        held = [trainer.optimizer.get_slot(variable, slot) for slot in slots]
        held += [shadows[name]] if name in shadows else []
        found[name] = VariableMemory(memory.size(variable), sum(map(memory.size, held)))
    return found


class Depth(NamedTuple):
    """One way to cut the network: everything up to a stage is frozen."""

    name: str  # of the deepest frozen stage
    names: tuple[str, ...]  # it and its other names
    trained: tuple[str, ...]  # canonical names of what is left


NOTHING_FROZEN = "none"


def depths(stages: Sequence[fields.Stage], trainable: Collection[str]) -> list[Depth]:
    """From nothing frozen to the deepest stage after which something is left to train.

    Args:
      trainable: what can be trained at all, in the network's order.
    """
    found = [Depth(NOTHING_FROZEN, (NOTHING_FROZEN,), tuple(trainable))]
    frozen: set[str] = set()
    for stage in stages:
        frozen.update(stage.variables)
        left = tuple(name for name in trainable if name not in frozen)
        if left and len(left) < len(found[-1].trained):
            found.append(Depth(stage.names[0], stage.names, left))
    return found
