"""Which of a checkpoint's classes each class of the model starts from, decided by name."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from od_finetune import names
from od_finetune.errors import UserError

SAME_NAME, RENAMED, MEAN, ANEW = ("same name", "renamed", "mean of named classes", "starts anew")

_FIELD = "train_config.class_transfer"


class Label(Protocol):
    """An item of a label map."""

    id: int  # from 1
    name: str
    display_name: str


class ClassStart(NamedTuple):
    """What one class of the model starts from."""

    name: str
    id: int  # in the model's label map, from 1
    how: str  # SAME_NAME, RENAMED, MEAN or ANEW
    sources: tuple[str, ...] = ()  # classes of the checkpoint; the mean of their rows where there are several
    source_ids: tuple[int, ...] = ()

    @property
    def carried(self) -> bool:
        """Whether the checkpoint knows this very class."""
        return self.how in (SAME_NAME, RENAMED)


class ClassNames:
    """The classes of a label map, found by name and, where no name is the same, by display name.

    The OD API's COCO map has names such as `/m/01g317`, and `person` as display name.
    """

    def __init__(self, labels: Iterable[Label], path: str) -> None:
        self.path = path
        self.labels = tuple(labels)
        self._labels = {label.name: label for label in self.labels if label.name}
        for label in self.labels:
            if label.display_name:
                self._labels.setdefault(label.display_name, label)

    def get(self, name: str) -> Label | None:
        """The class of that name; None if there is none."""
        return self._labels.get(name)

    def find(self, name: str, field: str) -> Label:
        """The class of that name.

        Raises:
          UserError: there is none; names `field`, the label map and the nearest classes.
        """
        label = self.get(name)
        if label is None:
            near = names.nearest(name, self._labels) if name else []
            known = f"The nearest it has: {_quoted(near)}" if near else f"It has {_quoted(list(self._labels)[:10])}"
            raise UserError(f"{field}: {name!r} is no class of {self.path}. {known}.")
        return label


def match(
    source: ClassNames,
    target: ClassNames,
    rename: Sequence[tuple[str, str]] = (),
    new: Sequence[tuple[str, Sequence[str]]] = (),
) -> tuple[ClassStart, ...]:
    """What each class of `target` starts from, in the order of its label map.

    A class that `rename` gives away is no longer known by its own name. A class of `new` starts as said there even if
    the checkpoint has one of its name (COCO's `mouse` belongs to a computer).

    Args:
      rename: (name in the checkpoint, name in the model).
      new: (name in the model, names in the checkpoint whose mean it starts from; none: it starts anew).

    Raises:
      UserError: a name that no class has, with the nearest ones; a class that is spoken of twice; nothing is carried
        over.
    """
    starts = _renamed(source, target, rename)
    given_away = {id_ for start in starts.values() for id_ in start.source_ids}
    for index, (name, parents) in enumerate(new):
        field = f"{_FIELD}.new_class[{index}]"
        start = _new(source, target.find(name, f"{field}.name"), parents, field)
        if start.id in starts:
            raise UserError(f"{field}.name: {name!r} already has a start by {_FIELD}; say what it starts from once.")
        starts[start.id] = start
    for label in target.labels:
        starts.setdefault(label.id, _by_name(source, label, given_away))
    if not any(start.sources for start in starts.values()):
        raise UserError(
            f"{_FIELD}: no class of {target.path} ({_quoted(_spellings(target.labels)[:5])}) is in {source.path} "
            f"({_quoted(_spellings(source.labels)[:5])}), so that no row would be carried over. Say which are the same "
            "with rename { from to }, or what new ones start from with new_class { name init_from }."
        )
    return tuple(starts[label.id] for label in target.labels)


def near_misses(source: ClassNames, starts: Iterable[ClassStart]) -> dict[str, str]:
    """Classes that start anew though the checkpoint has one of their name in another spelling: name -> spelling."""
    folded = {_folded(name): name for name in _spellings(source.labels)}
    anew = [start.name for start in starts if start.how == ANEW]
    return {name: folded[_folded(name)] for name in anew if _folded(name) in folded and source.get(name) is None}


def _renamed(source: ClassNames, target: ClassNames, rename: Sequence[tuple[str, str]]) -> dict[int, ClassStart]:
    starts: dict[int, ClassStart] = {}
    for index, (old, new) in enumerate(rename):
        field = f"{_FIELD}.rename[{index}]"
        there, here = source.find(old, f"{field}.from"), target.find(new, f"{field}.to")
        if here.id in starts:
            raise UserError(f"{field}.to: {new!r} already is the new name of {starts[here.id].sources[0]!r}.")
        twin = next((start.name for start in starts.values() if there.id in start.source_ids), None)
        if twin is not None:
            raise UserError(
                f"{field}.from: {old!r} already became {twin!r}. To start several classes from one, name it as "
                "init_from of new_class."
            )
        starts[here.id] = ClassStart(here.name, here.id, RENAMED, (there.name,), (there.id,))
    return starts


def _new(source: ClassNames, label: Label, parents: Sequence[str], field: str) -> ClassStart:
    found = [source.find(parent, f"{field}.init_from[{index}]") for index, parent in enumerate(parents)]
    twice = [name for name, count in collections.Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise UserError(f"{field}.init_from: names {_quoted(twice)} twice.")
    if not found:
        return ClassStart(label.name, label.id, ANEW)
    return ClassStart(
        label.name, label.id, MEAN, tuple(one.name for one in found), tuple(one.id for one in found)
    )


def _by_name(source: ClassNames, label: Label, given_away: Collection[int]) -> ClassStart:
    found = source.get(label.name) or source.get(label.display_name)
    if found is None or found.id in given_away:
        return ClassStart(label.name, label.id, ANEW)
    return ClassStart(label.name, label.id, SAME_NAME, (found.name,), (found.id,))


def _spellings(labels: Iterable[Label]) -> list[str]:
    return [label.display_name or label.name for label in labels]


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()


def _quoted(entries: Iterable[str]) -> str:
    return ", ".join(repr(entry) for entry in entries)


