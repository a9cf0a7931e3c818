"""Every feature extractor that a config may name, whatever the detector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from od_finetune.config import center_extractors, extractors, two_stage_extractors
from od_finetune.config.families import efficientnet_lite, mobilenet_v3
from od_finetune.names import Vocabulary

# Types that the OD API does not have.
_OURS = {*efficientnet_lite.ROWS, *(kind for kind in mobilenet_v3.ROWS if kind.endswith("_minimalistic"))}


class Kind(NamedTuple):
    """One `feature_extractor.type`."""

    type: str
    detector: str  # the message it goes into: ssd, faster_rcnn or center_net
    half: str  # of the OD API: "TF1" or "TF2"; empty for what only od_finetune has
    vocabularies: tuple[str, ...]  # whose classification networks restore into the backbone


def kinds() -> list[Kind]:
    """All of them, by detector and name."""
    of_families = (("ssd", extractors.TABLE), ("faster_rcnn", two_stage_extractors.TABLE))
    rows = [
        Kind(kind, detector, _half(kind, row.keras), _names(row.family.vocabularies))
        for detector, table in of_families
        for kind, row in sorted(table.items())
    ]
    centers = sorted(center_extractors.TABLE.items())
    return rows + [Kind(kind, "center_net", "TF2", _names(row.vocabularies)) for kind, row in centers]


def _half(kind: str, keras: bool) -> str:
    if kind in _OURS:
        return ""
    return "TF2" if keras else "TF1"


def _names(vocabularies: Iterable[Vocabulary]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(vocabulary.name.removesuffix(" parameter names") for vocabulary in vocabularies))
