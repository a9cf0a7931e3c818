"""Frozen TensorFlow graphs (`frozen_inference_graph.pb`): a GraphDef whose weights are constants. Nothing is run.

The file is mapped and walked in place (`wire`): names and shapes are taken down, a tensor is read when asked for.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import attr_value_pb2, function_pb2, tensor_pb2, tensor_shape_pb2

from od_finetune.checkpoints.arrays import ArraySource
from od_finetune.checkpoints.graph import Constant, Node
from od_finetune.checkpoints.readers.wire import BYTES, VARINT, Field, WireError, fields
from od_finetune.checkpoints.unfold import graph_source
from od_finetune.errors import UnreadableError, UserError, first_line

FILE_NAME = "frozen_inference_graph.pb"
KIND = "frozen TensorFlow graph"
# Field numbers of GraphDef, FunctionDefLibrary, FunctionDef, NodeDef and TensorProto (tensorflow/core/framework).
_NODE, _LIBRARY, _FUNCTION, _BODY, _SIGNATURE = 1, 2, 1, 3, 1
_NAME, _OP, _INPUT, _ATTRIBUTE = 1, 2, 3, 5
_DTYPE, _SHAPE, _CONTENT = 1, 2, 4

_OP_NAME = re.compile(rb"[A-Z_][A-Za-z0-9_>]*")
_NODE_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_WANTED = {b"epsilon", b"fused_ops", b"num_args", b"f"}
_MOST_NODES = 300_000  # the largest published detection graphs have some ten thousand
_MOST_ATTRIBUTE = 1 << 16
_MOST_REPEATED = 1 << 26  # bytes of a constant that the file writes as one number for all


class Buffer(NamedTuple):
    """The bytes of an open file, or of a part of it."""

    path: str
    view: memoryview
    start: int
    end: int


def sniff(path: str) -> bool:
    """Whether `path` is a GraphDef, or a directory with a `frozen_inference_graph.pb`."""
    if os.path.isdir(path):
        return sniff(os.path.join(path, FILE_NAME))
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 12)
        return _begins_with_node(memoryview(head))
    except (OSError, WireError):
        return False


def open_graph(path: str) -> ArraySource:
    """Opens a frozen graph.

    Raises:
      UnreadableError: the file is cut short or damaged.
      UserError: it has no weights, e.g. since it is a graph without its variables' values.
    """
    if os.path.isdir(path):
        path = os.path.join(path, FILE_NAME)
    return source(mapped(path), path, KIND)


def mapped(path: str) -> Buffer:
    """A file's bytes, mapped. Raises UnreadableError where it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path}: cannot be read: {first_line(error)}") from None
    return Buffer(path, view, 0, len(view))


def source(buffer: Buffer, path: str, kind: str) -> ArraySource:
    """The Source of the GraphDef in `buffer`; raises as `open_graph`."""
    try:
        nodes = _nodes(buffer)
    except (WireError, DecodeError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(buffer.path, first_line(error)) from None
    opened = graph_source(path, kind, nodes)
    if not opened.shapes:
        variables = sum(node.op in ("VariableV2", "VarHandleOp", "Variable") for node in nodes.values())
        reason = f"its {variables} variables have no values" if variables else f"none of its {len(nodes)} nodes is one"
        raise UserError(
            f"{path}: a TensorFlow graph without weights: {reason}. Use the checkpoint, or a frozen graph (of a zoo "
            f"archive, {FILE_NAME})."
        )
    return opened


def damaged(path: str, what: str) -> UnreadableError:
    """What to raise for a graph that is not whole."""
    return UnreadableError(f"{path}: a damaged or incompletely copied TensorFlow graph: {what}. Copy it again.")


def _begins_with_node(head: memoryview) -> bool:
    """Whether the first field is a NodeDef that begins with its name and op."""
    if len(head) < 8 or head[0] != _NODE << 3 | BYTES:
        return False
    position = 1
    while head[position] >= 0x80 and position < 7:
        position += 1
    found = {}
    try:
        for field in fields(head, position + 1, len(head)):
            if field.number > _OP or field.kind != BYTES or field.number in found:
                break
            found[field.number] = bytes(head[field.start : field.end])
    except WireError:
        pass
    return bool(_NODE_NAME.fullmatch(found.get(_NAME, b"")) and _OP_NAME.fullmatch(found.get(_OP, b"")))


def _nodes(buffer: Buffer) -> dict[str, Node]:
    """All nodes by key: those of a function's body have the function's name before theirs."""
    nodes: dict[str, Node] = {}
    functions: dict[str, function_pb2.FunctionDef] = {}
    calls: list[tuple[str, str]] = []  # the calling node, the function
    for field in fields(buffer.view, buffer.start, buffer.end):
        if field.kind != BYTES:
            continue
        if field.number == _NODE:
            _enter(buffer, field, "", nodes, calls)
        elif field.number == _LIBRARY:
            for function in fields(buffer.view, field.start, field.end):
                if function.number == _FUNCTION and function.kind == BYTES:
                    name, arguments = _function(buffer, function, nodes, calls)
                    functions[name] = arguments
    for caller, name in calls:
        for argument, value in zip(functions.get(name, ()), nodes[caller].inputs, strict=False):
            key = f"{name}//{argument}"
            nodes.setdefault(key, Node(argument, "Identity", (value,)))
    return nodes


def _function(
    buffer: Buffer, function: Field, nodes: dict[str, Node], calls: list[tuple[str, str]]
) -> tuple[str, list[str]]:
    """Enters a function's body; its name and its arguments' names."""
    parts = list(fields(buffer.view, function.start, function.end))
    signature = function_pb2.FunctionDef()
    for part in parts:
        if part.number == _SIGNATURE and part.kind == BYTES:
            if part.end - part.start > _MOST_ATTRIBUTE * 16:
                raise WireError(f"at byte {part.start}: a function's signature of {part.end - part.start} bytes")
            signature.signature.MergeFromString(bytes(buffer.view[part.start : part.end]))
    name = signature.signature.name
    for part in parts:
        if part.number == _BODY and part.kind == BYTES:
            _enter(buffer, part, f"{name}//", nodes, calls)
    return name, [argument.name for argument in signature.signature.input_arg]


def _enter(buffer: Buffer, field: Field, scope: str, nodes: dict[str, Node], calls: list[tuple[str, str]]) -> None:
    if len(nodes) >= _MOST_NODES:
        raise WireError(f"more than {_MOST_NODES} nodes")
    node, called = _node(buffer, field, scope)
    key = scope + node.name
    if not node.name or not node.op or key in nodes:
        raise WireError(f"at byte {field.start}: a node without name or op, or a second one named {node.name!r}")
    nodes[key] = node
    if called:
        calls.append((key, called))


def _node(buffer: Buffer, field: Field, scope: str) -> tuple[Node, str]:
    """One node, and the function that it calls."""
    name = op = ""
    inputs: list[str] = []
    attributes: dict[str, Any] = {}
    tensor = None
    for part in fields(buffer.view, field.start, field.end):
        if part.kind != BYTES:
            continue
        if part.number == _NAME:
            name = _text(buffer, part)
        elif part.number == _OP:
            op = _text(buffer, part)
        elif part.number == _INPUT:
            value = _text(buffer, part)
            if not value.startswith("^"):
                inputs.append(scope + value.split(":")[0])
        elif part.number == _ATTRIBUTE:
            key, value = _attribute(buffer, part)
            if key == b"value" and value is not None:
                tensor = value
            elif key in _WANTED and value is not None:
                attributes[key.decode()] = _decoded(buffer, value)
    constant = _constant(buffer, name, tensor) if op == "Const" and tensor is not None else None
    called = attributes.pop("f", "")
    return Node(name, op, tuple(inputs), attributes, constant), called if isinstance(called, str) else ""


def _text(buffer: Buffer, field: Field) -> str:
    if field.end - field.start > _MOST_ATTRIBUTE:
        raise WireError(f"at byte {field.start}: a name of {field.end - field.start} bytes")
    return str(buffer.view[field.start : field.end], "utf-8")


def _attribute(buffer: Buffer, field: Field) -> tuple[bytes, Field | None]:
    """The key, and where the AttrValue is, of one entry of a node's attributes."""
    key, value = b"", None
    for part in fields(buffer.view, field.start, field.end):
        if part.number == 1 and part.kind == BYTES:
            key = bytes(buffer.view[part.start : min(part.end, part.start + 64)])
        elif part.number == 2 and part.kind == BYTES:
            value = part
    return key, value


def _decoded(buffer: Buffer, field: Field) -> Any:
    if field.end - field.start > _MOST_ATTRIBUTE:
        return None
    value = attr_value_pb2.AttrValue.FromString(bytes(buffer.view[field.start : field.end]))
    kind = value.WhichOneof("value")
    if kind == "list":
        return tuple(item.decode(errors="replace") for item in value.list.s)
    if kind == "func":
        return value.func.name
    return getattr(value, kind) if kind in ("f", "i") else None


def _constant(buffer: Buffer, name: str, attribute: Field) -> Constant | None:
    """The tensor of a Const: type and shape are decoded, the values stay where they are until they are wanted."""
    tensor = next((part for part in fields(buffer.view, attribute.start, attribute.end) if part.number == 8), None)
    if tensor is None or tensor.kind != BYTES:
        return None
    dtype, shape, content = tf.float32, (), None
    for part in fields(buffer.view, tensor.start, tensor.end):
        if part.number == _DTYPE and part.kind == VARINT:
            dtype = tf.as_dtype(part.start) if part.start in _KNOWN_DTYPES else tf.string
        elif part.number == _SHAPE and part.kind == BYTES:
            shape = _shape(buffer, part)
        elif part.number == _CONTENT and part.kind == BYTES:
            content = part
    if dtype in (tf.string, tf.resource, tf.variant):
        return None
    size = _size(shape) * dtype.size
    if content is not None and content.end > content.start:
        if content.end - content.start != size:
            raise WireError(f"{name} has {content.end - content.start} bytes, its shape {list(shape)} takes {size}")
        return Constant(shape, _in_place(buffer, content, dtype, shape), dtype.is_floating)
    if size > max(_MOST_REPEATED, buffer.end - buffer.start):
        raise WireError(f"{name} has shape {list(shape)}, which takes {size} bytes, in a file of {buffer.end}")
    return Constant(shape, _repeated(buffer, tensor, name, shape), dtype.is_floating)


def _in_place(
    buffer: Buffer, content: Field, dtype: tf.DType, shape: tuple[int, ...]
) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        flat = np.frombuffer(buffer.view[content.start : content.end], dtype.as_numpy_dtype)
        return flat.reshape(shape).copy()

    return load


def _repeated(buffer: Buffer, tensor: Field, name: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Values as a list of numbers, of which the last stands for all that follow."""

    def load() -> np.ndarray:
        try:
            message = tensor_pb2.TensorProto.FromString(bytes(buffer.view[tensor.start : tensor.end]))
            return np.array(tf.make_ndarray(message)).reshape(shape)
        except (DecodeError, ValueError, TypeError, IndexError) as error:
            raise damaged(buffer.path, f"the values of {name}: {first_line(error)}") from None

    return load


def _shape(buffer: Buffer, field: Field) -> tuple[int, ...]:
    if field.end - field.start > 1 << 12:
        raise WireError(f"at byte {field.start}: a shape of {field.end - field.start} bytes")
    message = tensor_shape_pb2.TensorShapeProto.FromString(bytes(buffer.view[field.start : field.end]))
    shape = tuple(int(dimension.size) for dimension in message.dim)
    if any(size < 0 for size in shape) or len(shape) > 32:
        raise WireError(f"at byte {field.start}: the shape {list(shape)}")
    return shape


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def _known_dtypes() -> Iterator[tuple[int, tf.DType]]:
    for number in range(1, 64):
        try:
            yield number, tf.as_dtype(number)
        except TypeError:
            continue


_KNOWN_DTYPES = dict(_known_dtypes())
