"""What a restore is asked for, and what becomes of each variable."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

CLASSIFICATION, DETECTION, FULL = TYPES = ("classification", "detection", "full")
PARTS = frozenset({"backbone", "neck", "head"})


class Status(str, enum.Enum):
    """What becomes of one model variable."""

    RESTORED = "restored"
    TRANSPLANTED = "rows transplanted"  # those of classes that the checkpoint knows; see class_rows
    SHAPE_DIFFERS = "shape differs"
    NOT_IN_CHECKPOINT = "not in checkpoint"
    LEFT_OUT = "left out by type"


DONE = (Status.RESTORED, Status.TRANSPLANTED)


class Row(NamedTuple):
    """One model variable and where its start value comes from."""

    name: str  # canonical
    part: str  # backbone, neck or head
    shape: tuple[int, ...]
    status: Status
    source: str | None  # the source's name for it, where it was looked up and found
    source_shape: tuple[int, ...] | None
    rule: str | None  # which vocabulary found it
    class_head: bool  # its shape depends on the number of classes


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """What the config asks for.

    Attributes:
      path: the checkpoint, as `open_source` takes it.
      type: `classification`, `detection` or `full`.
      version: `V1` or `V2`: under V2, `detection` leaves the heads out.
      feature_extractor_only: under V1, `detection` leaves the heads out as well.
      notices: sentences for the user about deprecated fields that acted.
    """

    path: str
    type: str = DETECTION
    version: str = "V1"
    feature_extractor_only: bool = False
    notices: tuple[str, ...] = ()

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the model that the type selects."""
        if self.type == CLASSIFICATION:
            return frozenset({"backbone"})
        if self.type == DETECTION and (self.version == "V2" or self.feature_extractor_only):
            return PARTS - {"head"}
        return PARTS
