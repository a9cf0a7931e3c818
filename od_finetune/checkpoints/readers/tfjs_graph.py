"""The graph of a TensorFlow.js graph model (a GraphDef as JSON) as `checkpoints.graph` has it, and what its converters
did to it that would hide which layer a weight belongs to."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from od_finetune.checkpoints.graph import Constant, Node
from od_finetune.checkpoints.readers import values
from od_finetune.checkpoints.readers.tfjs_weights import KIND, Entry

_KEYS = ("name", "op", "input", "attr")
_ADDITIONS = ("Add", "AddV2", "AddN")
# What early converters named a kernel after, when a batch norm's factor had been multiplied into it.
_MERGED = "/merged_input"
# A decomposed batch norm: x * factor + offset.
_SCALED, _OFFSET, _SHIFTED = "/batchnorm/mul_1", "/batchnorm/sub", "/batchnorm/add_1"


def nodes(path: str, topology: list, entries: Mapping[str, Entry]) -> dict[str, Node]:
    """All nodes by name; a weight that no node is named after is a constant that nothing reads.

    Raises:
      UnreadableError: a node is none, or two have the same name.
    """
    found: dict[str, Node] = {}
    for item in topology:
        node = _node(path, item, entries)
        if node.name in found:
            raise values.damaged(path, KIND, f"its graph has two nodes {values.brief(node.name)}")
        found[node.name] = node
    for name, entry in entries.items():
        found.setdefault(name, Node(name, "Const", constant=_constant(entry)))
    _undo_regrouping(found)
    for key, node in found.items():
        if node.constant is not None and node.name.endswith(_MERGED):
            found[key] = node._replace(name=node.name.removesuffix(_MERGED))
    return found


def _node(path: str, item: object, entries: Mapping[str, Entry]) -> Node:
    name, op, inputs, attributes = (item.get(key) if isinstance(item, dict) else None for key in _KEYS)
    inputs = [] if inputs is None else inputs
    is_whole = isinstance(name, str) and isinstance(op, str) and isinstance(inputs, list)
    if not is_whole or not all(isinstance(value, str) for value in inputs):
        raise values.damaged(path, KIND, "a node of its graph has no name, no op or no inputs")
    constant = _constant(entries[name]) if op == "Const" and name in entries else None
    keys = tuple(value.split(":")[0] for value in inputs if not value.startswith("^"))
    return Node(name, op, keys, _attributes(attributes), constant)


def _constant(entry: Entry) -> Constant:
    return Constant(entry.shape, entry.load, entry.dtype == "float32")


def _undo_regrouping(found: dict[str, Node]) -> None:
    """Grappler turns (x * factor + offset) + residual into (x * factor + residual) + offset: back again, as the offset
    belongs to the layer of x."""
    for key, node in list(found.items()):
        if node.op not in _ADDITIONS or len(node.inputs) != 2:
            continue
        for offset, total in (node.inputs, node.inputs[::-1]):
            scope = offset.removesuffix(_OFFSET)
            inner = found.get(total)
            is_offset = scope != offset and offset in found and found[offset].constant is not None
            if not is_offset or inner is None or inner.op not in _ADDITIONS or scope + _SHIFTED in found:
                continue
            if scope + _SCALED in inner.inputs:
                shifted = scope + _SHIFTED
                found[shifted] = Node(shifted, "Add", (scope + _SCALED, offset))
                inputs = tuple(shifted if value == scope + _SCALED else value for value in inner.inputs)
                found[total] = inner._replace(inputs=inputs)
                found[key] = node._replace(op="Identity", inputs=(total,))


def _attributes(found: object) -> dict[str, Any]:
    """The attributes that `graph.Node` knows, from protobuf's JSON; one that is of another kind is left out."""
    found = found if isinstance(found, dict) else {}
    decoded = {key: _attribute(found.get(key)) for key in ("epsilon", "fused_ops", "num_args")}
    kinds = {"epsilon": float, "fused_ops": tuple, "num_args": int}
    return {key: value for key, value in decoded.items() if isinstance(value, kinds[key])}


def _attribute(value: object) -> float | int | tuple[str, ...] | None:
    if not isinstance(value, dict):
        return None
    try:
        if "f" in value:
            return float(value["f"])
        if "i" in value:
            return int(value["i"])
        items = value.get("list", {}).get("s", [])
        return tuple(_bytes(item).decode("utf-8", "replace") for item in items)
    except (ValueError, TypeError, AttributeError):
        return None


def _bytes(item: object) -> bytes:
    """Base64, or a list of numbers as early converters wrote it."""
    return base64.b64decode(item) if isinstance(item, str) else bytes(item if isinstance(item, list) else ())
