"""Which of the tensors in a PyTorch checkpoint are the model's weights, and what they are called.

People save a bare `state_dict`, or a dict that has it under one of many keys beside an optimiser's state, averaged
weights and counters. What is not a weight is kept as another entry under its path, `optimizer.state.0.exp_avg`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from od_finetune.checkpoints.readers.pickled_numpy import NumpyArray
from od_finetune.checkpoints.readers.torch_tensors import Tensor
from od_finetune.checkpoints.readers.values import shown
from od_finetune.errors import UserError

Leaf = Tensor | np.ndarray
_T = TypeVar("_T", bound=Any)
_Path = tuple[str, ...]
# Keys that people keep a model's state_dict under, likeliest first; averaged weights only where there are no others.
_HOMES = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params")
_AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema")
_NO_MODEL = re.compile(r"optim|sched|scaler|momentum|criterion|loss|(^|_)ema($|_)|average", re.IGNORECASE)
# What wrappers put before every name: DataParallel and DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTER = re.compile(r"(^|\.)num_batches_tracked$")
# Far beyond any model; below what would make the list of names larger than the file.
_MAX_DEPTH = 16
_MAX_NAME = 512
_MAX_ENTRIES = 100_000


@dataclasses.dataclass(frozen=True)
class State(Generic[_T]):
    """The entries of a checkpoint.

    Attributes:
      weights: what may be a model's, by name.
      others: the rest, by path.
      aliases: original name -> name, where a wrapper's prefix was taken off.
      notes: sentences about what was decided.
    """

    weights: Mapping[str, _T]
    others: Mapping[str, _T]
    aliases: Mapping[str, str]
    notes: tuple[str, ...]


def find(root: object, path: str) -> State[Leaf]:
    """Finds a model's weights in what a checkpoint's pickle gave.

    Args:
      root: dicts, lists and tuples of tensors and arrays.
      path: of the file, for messages.

    Raises:
      UserError: there is no tensor with a name, or there are absurdly many or deeply nested ones.
    """
    entries = dict(_leaves(root, path))
    solid = {where for where, leaf in entries.items() if where and leaf.shape}
    if not solid:
        raise UserError(
            f"{path}: holds no named tensors, expected a model's state_dict; save torch.save(model.state_dict(), ...)"
        )
    home, keys = _home(solid)
    inside, others = {}, {}
    for where, leaf in entries.items():
        below = where[len(home) :]
        is_inside = where[: len(home)] == home and (len(below) == 1 or below[0] in keys)
        (inside if is_inside else others)[".".join(below if is_inside else where)] = leaf
    if len(inside) + len(others) != len(entries):
        raise UserError(f"{path}: two of its tensors have the same name; save one model's state_dict alone")
    are_integers = {name: _is_number(leaf) for name, leaf in inside.items()}
    state = split(inside, are_integers)
    notes = (*_home_notes(home, others), *state.notes)
    return State(state.weights, {**others, **state.others}, state.aliases, notes)


def split(entries: Mapping[str, _T], are_integers: Mapping[str, bool]) -> State[_T]:
    """Tells a state_dict's weights from its counters, and takes off the prefix of a wrapper that all names share.

    Args:
      entries: what the state_dict has; each has a `shape`.
      are_integers: by name, of those without dimensions whether they count something.
    """
    prefix = _wrapper(entries)
    weights, others, aliases = {}, {}, {}
    for original, entry in entries.items():
        name = original.removeprefix(prefix)
        is_counter = _COUNTER.search(name) is not None or (not entry.shape and are_integers[original])
        (others if is_counter else weights)[name] = entry
        if prefix:
            aliases[original] = name
    notes = (f"the prefix {prefix!r}, which every entry's name had, was taken off",) if prefix else ()
    return State(weights, others, aliases, notes)


def _leaves(root: object, path: str) -> Iterator[tuple[_Path, Leaf]]:
    """Tensors, arrays and the outermost numbers with their paths; a container that is met twice only once, as a
    pickle's can hold themselves."""
    seen = set()
    todo: list[tuple[_Path, object]] = [((), root)]
    found = 0
    while todo:
        where, value = todo.pop()
        if isinstance(value, NumpyArray):
            value = value.array
        if isinstance(value, (int, float)) and len(where) == 1:
            value = np.asarray(value) if abs(value) < 1 << 63 or isinstance(value, float) else None
        if isinstance(value, (Tensor, np.ndarray)):
            found += 1
            yield where, value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            todo += [((*where, _key(key)), item) for key, item in reversed(items) if _is_wanted(item, where)]
        if found > _MAX_ENTRIES or len(where) > _MAX_DEPTH or sum(map(len, where)) + len(where) > _MAX_NAME:
            raise UserError(
                f"{path}: holds more than {_MAX_ENTRIES} tensors, names of more than {_MAX_NAME} characters or "
                f"containers nested more than {_MAX_DEPTH} deep; expected a model's state_dict"
            )


def _is_wanted(item: object, where: _Path) -> bool:
    return isinstance(item, (dict, list, tuple, Tensor, NumpyArray)) or (not where and type(item) in (int, float))


def _key(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _home(solid: set[_Path]) -> tuple[_Path, set[str]]:
    """Where the weights lie: the path of a dict, and those of its keys that are or hold weights.

    Args:
      solid: paths of what has at least one dimension; counters and scores have none.
    """
    home: _Path = ()
    while True:
        below = [where[len(home) :] for where in solid if where[: len(home)] == home]
        nested = {where[0] for where in below if len(where) > 1}
        direct = {where[0] for where in below if len(where) == 1}
        known = [key for key in _HOMES if key in nested] or ([] if direct else [k for k in _AVERAGES if k in nested])
        models = {key for key in nested if _NO_MODEL.search(key) is None}
        if not known and (direct or len(models) != 1):
            return home, direct | (models or nested)
        home = (*home, *(known[:1] or models))


def _is_number(leaf: Leaf) -> bool:
    """Whether what has no dimensions is a number saved beside the weights, or an integer."""
    return isinstance(leaf, np.ndarray) or leaf.storage.dtype.kind in "iub"


def _home_notes(home: _Path, others: Mapping[str, Leaf]) -> Iterator[str]:
    if home:
        yield f"the weights are those under {'.'.join(home)!r}"
    roots = sorted({name.split(".")[0] for name in others if name.split(".")[0] in _AVERAGES})
    if roots:
        yield f"the averaged weights under {shown(roots)} are other entries"
    if home and home[-1] in _AVERAGES:
        yield "these are averaged weights, the only ones in the file"


def _wrapper(names: Iterable[str]) -> str:
    """What wrappers put before each of the names, one wrapper around the other."""
    prefix = ""
    names = list(names) or [""]
    while found := [wrapper for wrapper in _WRAPPERS if all(name.startswith(prefix + wrapper) for name in names)]:
        prefix += found[0]
    return prefix
