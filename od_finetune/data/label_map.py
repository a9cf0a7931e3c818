"""The label map: which id stands for which class."""

from __future__ import annotations

import collections
from typing import NamedTuple

from od_finetune.errors import UserError


class Label(NamedTuple):
    """One class. `name` is what records hold in `image/object/class/text`; `display_name` is for people.

    `keypoints`: (place from 0, name) of each keypoint that objects of the class have.
    """

    id: int
    name: str
    display_name: str
    keypoints: tuple[tuple[int, str], ...] = ()


class LabelMap(NamedTuple):
    """Labels in the order of the file, and the file they came from (for messages)."""

    labels: tuple[Label, ...]
    path: str = "label map"

    @property
    def max_id(self) -> int:
        """The largest id: the smallest `num_classes` that holds every label. 0 for an empty map."""
        return max((label.id for label in self.labels), default=0)

    def names(self, use_display_name: bool = False) -> dict[int, str]:
        """Label id (1-based) -> text to show."""
        return {label.id: label.display_name if use_display_name else label.name for label in self.labels}

    def ids(self, use_display_name: bool = False) -> dict[str, int]:
        """Class text as records hold it -> label id.

        With `use_display_name` only display names count; without it a name wins over another label's display
        name, which is accepted too (the OD API's rule).
        """
        by_display_name = {label.display_name: label.id for label in self.labels if label.display_name}
        if use_display_name:
            return by_display_name
        return {**by_display_name, **{label.name: label.id for label in self.labels if label.name}}

    def keypoint_ids(self) -> dict[str, int]:
        """Keypoint text as records hold it -> its place among all keypoints, from 0; of all classes together."""
        return {name: id_ for label in self.labels for id_, name in label.keypoints}

    def errors(self, num_classes: int | None = None) -> list[str]:
        """What makes the map unusable (for a model of `num_classes`), one message each; empty when sound."""
        found = [] if self.labels else [f"{self.path}: holds no item, expected one per class"]
        for label in self.labels:
            if label.id < 1:
                found.append(
                    f"{self.path}: item {label.name!r} has id {label.id}, expected ids from 1 (0 is the background)"
                )
        for id_, count in collections.Counter(label.id for label in self.labels).items():
            if count > 1:
                same = ", ".join(repr(label.name) for label in self.labels if label.id == id_)
                found.append(f"{self.path}: id {id_} is given to {count} items ({same}), expected each id once")
        for name, count in collections.Counter(label.name for label in self.labels if label.name).items():
            if count > 1:
                found.append(f"{self.path}: name {name!r} is given to {count} items, expected each name once")
        found += self._keypoint_errors()
        if num_classes is not None and self.max_id > num_classes:
            found.append(
                f"{self.path}: largest id is {self.max_id}, but the model has num_classes {num_classes}; "
                f"set num_classes to {self.max_id} or renumber the labels"
            )
        return found

    def _keypoint_errors(self) -> list[str]:
        """Two keypoints of one name or one place; classes may share a keypoint as a whole."""
        points = {point for label in self.labels for point in label.keypoints}
        negative = [point for point in sorted(points) if point[0] < 0]
        found = [f"{self.path}: keypoint {name!r} has id {id_}, expected ids from 0" for id_, name in negative]
        for what, index in (("id", 0), ("label", 1)):
            counts = collections.Counter(point[index] for point in points)
            found += [
                f"{self.path}: keypoint {what} {value!r} is given to {count} keypoints, expected each once"
                for value, count in counts.items()
                if count > 1
            ]
        return found

    def warnings(self, num_classes: int | None = None) -> list[str]:
        """What works but is rarely meant: ids left out (as in the COCO map: 80 labels, ids to 90), spare classes."""
        found = []
        present = {label.id for label in self.labels}
        gaps = [id_ for id_ in range(1, self.max_id + 1) if id_ not in present]
        if gaps:
            found.append(
                f"{self.path}: no item for id {_ranges(gaps)}: {len(self.labels)} labels, ids up to {self.max_id}; "
                "the model spends an output on each"
            )
        if num_classes is not None and 0 < self.max_id < num_classes:
            found.append(f"{self.path}: largest id is {self.max_id}, but the model has num_classes {num_classes}")
        return found

    def check(self, num_classes: int | None = None) -> LabelMap:
        """Returns the map itself.

        Raises:
          UserError: listing every one of `errors(num_classes)`.
        """
        found = self.errors(num_classes)
        if found:
            raise UserError("\n".join(found))
        return self


def _ranges(ids: list[int]) -> str:
    """`[1, 2, 3, 7]` -> `"1-3, 7"`."""
    runs: list[list[int]] = []
    for id_ in ids:
        if runs and runs[-1][-1] == id_ - 1:
            runs[-1].append(id_)
        else:
            runs.append([id_])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
