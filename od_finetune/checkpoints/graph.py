"""A frozen inference graph as plain data, whichever file it came from: what `unfold` reads weights out of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Ops that hand on their first input as it is (or regrouped, as a dilated convolution does).
_PASSING = frozenset(
    {"Identity", "ReadVariableOp", "Enter", "StopGradient", "CheckNumerics", "BatchToSpaceND", "Cast", "Snapshot"}
)
_READS = re.compile(r"(/read|/Read|/ReadVariableOp(_\d+)?|/resource|/Enter)+$")
_CALLS = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")


class Constant(NamedTuple):
    """An array in a graph; `load` may raise UnreadableError."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    floating: bool = True


class Node(NamedTuple):
    """One operation.

    Attributes:
      name: as the file has it.
      op: e.g. `Conv2D`.
      inputs: keys of the nodes it takes values from, in order; neither output numbers nor control inputs.
      attributes: those of `epsilon` (float), `fused_ops` (tuple of str) and `num_args` (int) that it has.
      constant: its value where the op is `Const`.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = {}
    constant: Constant | None = None


class Graph:
    """Nodes by key (the name, where names are unique), with who takes whose value."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.consumers: dict[str, list[str]] = {}
        for key, node in nodes.items():
            for source in dict.fromkeys(node.inputs):
                self.consumers.setdefault(source, []).append(key)

    def constant(self, key: str) -> str | None:
        """The key of the Const that a value is, behind nodes that only hand it on; None if it is computed."""
        for _ in range(100):  # a damaged graph may have a cycle
            node = self.nodes.get(key)
            if node is None:
                return None
            if node.constant is not None:
                return key
            if node.op not in _PASSING or not node.inputs:
                return None
            key = node.inputs[0]
        return None

    def users(self, key: str) -> list[str]:
        """The nodes that compute with a value, behind those that only hand it on."""
        found: list[str] = []
        open_keys, seen = [key], {key}
        while open_keys:
            for user in self.consumers.get(open_keys.pop(), ()):
                if user in seen:
                    continue
                seen.add(user)
                if self.nodes[user].op in _PASSING:
                    open_keys.append(user)
                else:
                    found.append(user)
        return found


def plain_name(name: str) -> str:
    """Without the calls it stands in and the reading of a variable: `PartitionedCall/a/w/read` -> `a/w`."""
    return _READS.sub("", _CALLS.sub("", name))
