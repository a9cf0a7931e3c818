"""The names that Keras gives layers without one: `conv2d`, `conv2d_1`, ... in the order in which they are created."""

from __future__ import annotations

import collections


class Numbering:
    """Counts the layers of each kind that a program creates, as Keras does."""

    def __init__(self) -> None:
        self._created: collections.Counter[str] = collections.Counter()

    def next(self, kind: str) -> str:
        """The name of the next layer of a kind, e.g. `batch_normalization`."""
        number = self._created[kind]
        self._created[kind] += 1
        return f"{kind}_{number}" if number else kind
