"""What the names in a PyTorch pickle stand for here: tensors as records of where their values lie, containers as
Python's own, marks without effect as themselves. Everything else is refused.

The names and their arguments are those of `torch/_utils.py`, `torch/serialization.py` and of numpy's pickles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from od_finetune.checkpoints.readers import pickled_numpy, values
from od_finetune.checkpoints.readers.pickle_input import MalformedPickle
from od_finetune.checkpoints.readers.pickle_machine import is_key
from od_finetune.checkpoints.readers.torch_tensors import DTYPES, STORAGES, Storage, Tensor, tensor, view
from od_finetune.checkpoints.readers.values import brief
from od_finetune.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A global that is known to be harmless."""

    full: str


_CONTAINERS: dict[str, Callable[[], dict | list | set]] = {
    "collections.OrderedDict": dict,
    "collections.defaultdict": dict,
    "collections.Counter": dict,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.set": set,
}
_UNREADABLE_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device 'meta')",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
}
# Modules that were renamed: Python 2's, numpy 2's, PyTorch's.
_MODULES = {
    "__builtin__": "builtins",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "torch.tensor": "torch._tensor",
}


class TorchMeaning:
    """Gives the names in a PyTorch pickle their meaning; see `pickle_machine.Meaning`.

    Args:
      path: for messages.
      big_endian: whether the storages' values are.
    """

    def __init__(self, path: str, big_endian: bool = False) -> None:
        self._path = path
        self.byte_order = ">" if big_endian else "<"
        self.storages: dict[str, Storage] = {}

    def named(self, module: str, name: str) -> object:
        """The mark for a global, or UserError for one that is neither a tensor nor a container."""
        full = f"{_MODULES.get(module, module)}.{name}"
        if full in _UNREADABLE_TENSORS:
            raise UserError(
                f"{self._path}: holds {_UNREADABLE_TENSORS[full]}, which cannot be read; save the float model's "
                "state_dict instead"
            )
        is_storage = module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES
        is_dtype = module == "torch" and name in DTYPES
        if is_storage or is_dtype or full in _CALLS or full in _CONTAINERS or full in _NAMED_ONLY:
            return Name(full)
        raise UserError(
            f"{self._path}: its pickle names {brief(full)}, which is neither a tensor nor a container. A checkpoint is "
            "read as data, and what it names is never imported or run. Where the file can be trusted and was made, "
            "save its weights alone: torch.save(model.state_dict(), 'weights.pth')."
        )

    def called(self, function: object, arguments: tuple) -> object:
        """What the few callables make of their arguments."""
        if not isinstance(function, Name):
            raise MalformedPickle(f"it calls {brief(function)}")
        if function.full in _CONTAINERS:
            return _container(function.full, arguments)
        call = _CALLS.get(function.full)
        if call is None:
            raise MalformedPickle(f"it calls {function.full}")
        try:
            return call(self, *arguments)
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, (UserError, MalformedPickle)):
                raise
            raise MalformedPickle(f"it calls {function.full} with arguments that do not fit") from None

    def built(self, target: object, state: object) -> object:
        """Numpy's objects take their state; attributes of containers and tensors hold no values."""
        if isinstance(target, (pickled_numpy.NumpyArray, pickled_numpy.NumpyType)):
            return pickled_numpy.with_state(target, state)
        if isinstance(target, (dict, Tensor)):
            return target
        raise MalformedPickle(f"it sets the state of {brief(target)}")

    def fetched(self, identity: object) -> Storage:
        """The storage under a persistent id: (\"storage\", type, key, device, elements[, view])."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise MalformedPickle("it fetches something that is no storage")
        kind, key, _, number = identity[1:5]
        if not isinstance(kind, Name) or kind.full.rpartition(".")[2] not in STORAGES:
            raise MalformedPickle(f"it fetches a storage of type {brief(kind)}")
        key = key if isinstance(key, str) else brief(key)
        if (problem := values.shape_problem([number])) is not None:
            raise MalformedPickle(f"the storage {brief(key)} has no size: {problem}")
        dtype = DTYPES[STORAGES[kind.full.rpartition(".")[2]]].newbyteorder(self.byte_order)
        storage = self.storages.setdefault(key, Storage(key, dtype, number))
        if storage.number * storage.dtype.itemsize != number * dtype.itemsize:
            raise MalformedPickle(f"it fetches the storage {brief(key)} with two sizes")
        storage = Storage(key, dtype, number)
        return storage if len(identity) == 5 or identity[5] is None else view(storage, identity[5])


def _tensor(
    meaning: TorchMeaning, storage: object, offset: object, shape: object, strides: object, *rest: object
) -> Tensor:
    """What comes after the strides (gradients, hooks) has no values."""
    return tensor(storage, offset, shape, strides)


def _tensor_v3(meaning: TorchMeaning, storage: Storage, *arguments: object) -> Tensor:
    """As `_tensor`, for types without a storage class: the sixth argument is the type of an untyped storage."""
    dtype = arguments[5] if len(arguments) > 5 else None
    name = dtype.full.rpartition(".")[2] if isinstance(dtype, Name) else ""
    if name not in DTYPES or not isinstance(storage, Storage) or storage.start:
        raise MalformedPickle("a tensor has no type that is known")
    typed = DTYPES[name].newbyteorder(meaning.byte_order)
    number = storage.number * storage.dtype.itemsize // typed.itemsize
    return _tensor(meaning, Storage(storage.key, typed, number), *arguments)


def _parameter(meaning: TorchMeaning, data: object, *rest: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise MalformedPickle("a parameter has no tensor")
    return data


def _typed(meaning: TorchMeaning, function: object, kind: object, arguments: object, state: object) -> object:
    """A tensor with attributes of its own."""
    if type(arguments) is not tuple or not isinstance(function, Name) or "_rebuild" not in function.full:
        raise MalformedPickle("a tensor of another type has no tensor")
    if function.full == "torch._tensor._rebuild_from_type_v2":  # within itself without end
        raise MalformedPickle("a tensor of another type is of another type")
    return meaning.called(function, arguments)


def _container(full: str, arguments: tuple) -> dict | list | set:
    """An empty container, or one of the items given; a dict's come as pairs or as a dict."""
    container = _CONTAINERS[full]()
    if not arguments or full == "collections.defaultdict":
        return container
    items = arguments[0]
    if isinstance(container, dict):
        items = list(items.items()) if isinstance(items, dict) else items
        if isinstance(items, (list, tuple)) and all(_is_pair(item) for item in items):
            return dict(items)
    elif isinstance(items, (list, tuple, set)) and all(map(is_key, items)):
        return type(container)(items)
    raise MalformedPickle(f"it makes {full} of what cannot be in one")


def _is_pair(item: object) -> bool:
    return type(item) in (list, tuple) and len(item) == 2 and is_key(item[0])


def _latin1(meaning: TorchMeaning, text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 pickles bytes."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise MalformedPickle("it encodes something that is no bytes")
    return text.encode("latin-1")


def _size(meaning: TorchMeaning, shape: tuple = ()) -> tuple:
    if not isinstance(shape, (tuple, list)):
        raise MalformedPickle("it has a shape that is none")
    return tuple(shape)


def _mark(full: str) -> Callable[..., Name]:
    return lambda meaning, *arguments: Name(full)


_CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": _size,
    "torch.device": _mark("torch.device"),
    "torch.serialization._get_layout": _mark("torch.layout"),
    "_codecs.encode": _latin1,
    "numpy.dtype": lambda meaning, *arguments: pickled_numpy.new_type(*arguments),
    "numpy.core.multiarray._reconstruct": lambda meaning, *arguments: pickled_numpy.new_array(*arguments),
    "numpy.core.multiarray.scalar": lambda meaning, *arguments: pickled_numpy.scalar(*arguments),
}
# Harmless where they are only named: a default factory, the type of an array.
_NAMED_ONLY = {"torch.Tensor", "torch.nn.parameter.Parameter", "numpy.ndarray", "builtins.int", "builtins.float"}
