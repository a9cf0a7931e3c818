"""What a restore is asked for, what it is asked of, and what becomes of each variable."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from od_finetune.checkpoints import object_paths
from od_finetune.fields import ClassLayout, Detector
from od_finetune.names import Rules, Vocabulary

CLASSIFICATION, DETECTION, FULL = TYPES = ("classification", "detection", "full")
PARTS = frozenset({"backbone", "neck", "head"})


class Status(str, enum.Enum):
    """What becomes of one model variable."""

    RESTORED = "restored"
    TRANSPLANTED = "rows transplanted"  # those of classes that the checkpoint knows; see class_rows
    SHAPE_DIFFERS = "shape differs"
    NOT_IN_CHECKPOINT = "not in checkpoint"
    LEFT_OUT = "left out by type"  # or by scope


class Inputs(NamedTuple):
    """What a step may look at beside the value it is given."""

    read: Callable[[str], np.ndarray]  # another entry of the same source, by its name in the file
    start: Callable[[], np.ndarray]  # the model variable's value before anything was restored


class Step(Protocol):
    """One thing done to a tensor between the checkpoint and the model; its `str` says what, for people."""

    def __call__(self, value: np.ndarray, inputs: Inputs) -> np.ndarray:
        """The tensor afterwards."""


class Row(NamedTuple):
    """One model variable and where its start value comes from."""

    name: str  # canonical
    part: str  # backbone, neck or head
    shape: tuple[int, ...]
    status: Status
    source: str | None  # the file's name for it, where it was looked up and found
    source_shape: tuple[int, ...] | None  # in the model's layout
    rule: str | None  # which vocabulary found it
    class_head: bool  # its shape depends on the number of classes
    origin: int | None = None  # index of the plan's source that decided; None where none was asked for it
    steps: tuple[Step, ...] = ()  # in order

    @property
    def restored(self) -> bool:
        """Whether values of the checkpoint go into it."""
        return self.status in (Status.RESTORED, Status.TRANSPLANTED)

    @property
    def transform(self) -> str | None:
        """What is done to the values on their way, e.g. `OIHW -> HWIO`; None if they are copied as they are."""
        return ", ".join(map(str, self.steps)) or None

    def to_json(self) -> dict[str, Any]:
        """Every field by name, with `transform` for the steps."""
        values = self._asdict() | {"status": self.status.value, "transform": self.transform}
        del values["steps"]
        return values


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """What the config asks of one source.

    Attributes:
      path: the checkpoint, as `open_source` takes it.
      type: `classification`, `detection` or `full`.
      version: `V1` or `V2`: under V2, `detection` leaves the heads out.
      feature_extractor_only: under V1, `detection` leaves the heads out as well.
      notices: sentences for the user about deprecated fields that acted.
      scope: patterns over model variables, as freeze patterns; empty means all that the type selects.
      map: rewrites the source's names.
      only, skip: patterns over the source's rewritten names: which are used, which are not; no `only` means all.
      by_order: pairs layers by their order instead of by name.
      moving_averages: takes a variable's moving average where the source has one.
      batch_norm_epsilon: of the source's batch norms; None: as its file or vocabulary says.
      field: where the config says it, for messages.
    """

    path: str
    type: str = DETECTION
    version: str = "V1"
    feature_extractor_only: bool = False
    notices: tuple[str, ...] = ()
    scope: tuple[str, ...] = ()
    map: tuple[tuple[str, str], ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    by_order: bool = False
    moving_averages: bool = False
    batch_norm_epsilon: float | None = None
    field: str = "train_config.fine_tune_checkpoint"

    @property
    def parts(self) -> frozenset[str]:
        """The parts of the model that the type selects."""
        if self.type == CLASSIFICATION:
            return frozenset({"backbone"})
        if self.type == DETECTION and (self.version == "V2" or self.feature_extractor_only):
            return PARTS - {"head"}
        return PARTS

    @property
    def rules(self) -> Rules:
        """`map` as `names.apply_rules` takes it."""
        return list(self.map)


@dataclasses.dataclass(frozen=True)
class Demand:
    """What must be restored for a run to start.

    Attributes:
      fraction: of the parameters that the sources' types and scopes select, class outputs not counted; 0 to 1.
      require: patterns, as freeze patterns; every matching variable must be restored.
    """

    fraction: float = 0.0
    require: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.fraction > 0 or bool(self.require)


NO_DEMAND = Demand()


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan needs to know of the model.

    Attributes:
      shapes: of the model's variables, by canonical name, in the order of the forward pass.
      tf2_names: canonical name -> full name in the OD API's TF2 checkpoints.
      part: canonical name -> `backbone`, `neck` or `head`.
      is_class_head: whether a canonical name's shape depends on the number of classes.
      class_layout: where in a variable each class has its outputs, by canonical name.
      num_classes: the model's number of classes, to state outputs per anchor.
      epsilons: of batch norms, by canonical scope.
      vocabularies: under which names published classification nets have the backbone.
      tf2_paths: canonical name -> object path in the OD API's TF2 checkpoints, of the variables whose full name there
        depends on what the program made before.
    """

    shapes: Mapping[str, tuple[int, ...]]
    tf2_names: Mapping[str, str]
    part: Callable[[str], str]
    is_class_head: Callable[[str], bool]
    num_classes: int | None = None
    class_layout: Callable[[str], ClassLayout | None] = lambda name: None
    epsilons: Mapping[str, float] = dataclasses.field(default_factory=dict)
    vocabularies: tuple[Vocabulary, ...] = ()
    tf2_paths: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, detector: Detector) -> Target:
        """The target that a built detector is."""
        tf2_names = detector.tf2_names()
        norms = {scope: layer for scope, layer in detector.weighted_layers().items() if hasattr(layer, "moving_mean")}
        return cls(
            shapes={name: tuple(variable.shape) for name, variable in detector.named_variables().items()},
            tf2_names=tf2_names,
            part=detector.part,
            is_class_head=detector.is_class_head,
            num_classes=detector.num_classes,
            class_layout=detector.class_layout,
            epsilons={scope: float(layer.epsilon) for scope, layer in norms.items()},
            vocabularies=detector.vocabularies(),
            tf2_paths=object_paths.of_numbered(detector, tf2_names),
        )
