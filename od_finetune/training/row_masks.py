"""Rows of class predictors that training leaves alone, while the other classes' rows of the same variables move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from od_finetune.fields import Detector


class RowMasks:
    """Keeps rows bit-identical whatever the optimiser does.

    Two things are needed. The gradient of these rows, weight decay's included, is set to 0 before its norm is taken,
    so that they have no part in clipping. And after the update they get their values back, because an update need not
    be 0 where the gradient is: a momentum from before the rows were frozen would go on moving them.

    Args:
      masks: bool `[size of the last axis]` by variable name, true where a row is kept.
      classes: the kept ones, for people.
      parameters: number of values that are kept.
    """

    def __init__(self, masks: Mapping[str, np.ndarray], classes: tuple[str, ...], parameters: int) -> None:
        self.masks = dict(masks)
        self.classes = classes
        self.parameters = parameters

    @classmethod
    def compute(cls, detector: Detector, ids: Mapping[str, int]) -> RowMasks:
        """The rows of some classes in every variable of a built detector that has rows.

        Args:
          ids: label id (from 1) by class name.
        """
        masks: dict[str, np.ndarray] = {}
        parameters = 0
        for name, variable in detector.named_variables().items():
            layout = detector.class_layout(name)
            if layout is None:
                continue
            mask = np.zeros([layout.groups, layout.slots, layout.width], bool)
            mask[:, [layout.slot(id_ - 1) for id_ in ids.values()]] = True
            masks[name] = mask.ravel()
            parameters += variable.shape.num_elements() * int(mask.sum()) // mask.size
        return cls(masks, tuple(ids), parameters)

    def mask_gradients(self, gradients: dict[str, tf.Tensor]) -> None:
        """Sets the kept rows' gradients to 0, in place in the dict."""
        for name in self.masks.keys() & gradients.keys():
            gradient = gradients[name]
            gradients[name] = tf.where(self.masks[name], tf.zeros_like(gradient), gradient)

    @contextlib.contextmanager
    def held(self, variables: Mapping[str, tf.Variable]) -> Iterator[None]:
        """At the end of the block the kept rows hold what they held at its begin; works in graph and eager mode."""
        before = {name: tf.identity(variable) for name, variable in variables.items() if name in self.masks}
        yield
        for name, value in before.items():
            variables[name].assign(tf.where(self.masks[name], value, variables[name]))

    def text(self) -> str:
        """One line for people."""
        return (
            f"Rows frozen: {', '.join(self.classes)} in {len(self.masks)} variables of the class predictor, "
            f"{self.parameters:,} parameters (counted as trained above)."
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values: `classes`, `parameters`, and `variables`: number of rows (outputs) kept, by name."""
        rows = {name: int(mask.sum()) for name, mask in self.masks.items()}
        return {"classes": list(self.classes), "parameters": self.parameters, "variables": rows}
