"""From COCO's tables of precision and recall to named numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from od_finetune.metrics.records import UNDEFINED

_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
AVERAGE = "Precision/mAP"


class Summary(NamedTuple):
    """Which part of the precision or recall table a metric averages."""

    name: str
    recall: bool = False
    threshold: int | None = None  # index into IoU 0.50, 0.55 .. 0.95; None: all
    area: int = _ALL
    limit: int = 2  # index into 1, 10, 100 detections per image


SUMMARIES = (
    Summary(AVERAGE),
    Summary("Precision/mAP@.50IOU", threshold=0),
    Summary("Precision/mAP@.75IOU", threshold=5),
    Summary("Precision/mAP (small)", area=_SMALL),
    Summary("Precision/mAP (medium)", area=_MEDIUM),
    Summary("Precision/mAP (large)", area=_LARGE),
    Summary("Recall/AR@1", recall=True, limit=0),
    Summary("Recall/AR@10", recall=True, limit=1),
    Summary("Recall/AR@100", recall=True),
    Summary("Recall/AR@100 (small)", recall=True, area=_SMALL),
    Summary("Recall/AR@100 (medium)", recall=True, area=_MEDIUM),
    Summary("Recall/AR@100 (large)", recall=True, area=_LARGE),
)


class Breakdown(NamedTuple):
    """Which categories there are and what is told of each.

    Args:
      names: category name by label id (1-based), each once.
      per_category: adds `PerformanceByCategory/mAP/<name>`.
      all_per_category: adds every summary per category, e.g. `Precision mAP@.50IOU ByCategory/<name>`, besides it.
      super_categories: name -> category names; adds `PerformanceBySuperCategory/<name>`, the mean mAP of those of its
        categories that have ground truth.
    """

    names: Mapping[int, str]
    per_category: bool = False
    all_per_category: bool = False
    super_categories: Mapping[str, Sequence[str]] = {}

    def values(self, prefix: str, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        """Every metric by its name, which begins with `prefix`.

        Args:
          precision: `[10 IoU thresholds, 101 recalls, categories, 4 sizes, 3 limits]`, -1 where there is no object.
          recall: `[10, categories, 4, 3]`.
        """
        every = slice(None)
        values = {s.name: average(s, precision, recall, every) for s in SUMMARIES}
        by_category = {
            name: {s.name: average(s, precision, recall, slice(k, k + 1)) for s in SUMMARIES}
            for k, name in enumerate(self.names.values())
        }
        if self.per_category or self.all_per_category:
            values |= {f"PerformanceByCategory/mAP/{name}": v[AVERAGE] for name, v in by_category.items()}
        if self.all_per_category:
            for summary in SUMMARIES:
                label = summary.name.replace("/", " ") + " ByCategory/"
                values |= {label + name: v[summary.name] for name, v in by_category.items()}
        for group, members in self.super_categories.items():
            known = [by_category[m][AVERAGE] for m in members if by_category[m][AVERAGE] > UNDEFINED]
            values[f"PerformanceBySuperCategory/{group}"] = float(np.mean(known)) if known else UNDEFINED
        return {prefix + name: value for name, value in values.items()}


def average(summary: Summary, precision: np.ndarray, recall: np.ndarray, categories: slice) -> float:
    """Mean over the defined entries of a table, -1 where there is none."""
    thresholds = slice(None) if summary.threshold is None else slice(summary.threshold, summary.threshold + 1)
    if summary.recall:
        values = recall[thresholds, categories, summary.area, summary.limit]
    else:
        values = precision[thresholds, :, categories, summary.area, summary.limit]
    values = values[values > UNDEFINED]
    return float(values.mean()) if values.size else UNDEFINED
