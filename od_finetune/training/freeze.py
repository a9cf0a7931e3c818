"""The FreezePlan: which variables training moves, decided and shown before the first step.

Frozen means more than a zero update: the trainer does not let the gradient tape watch a frozen variable, the
optimiser has no slot for it, it gets no weight decay and no moving average, and a batch norm layer whose scale
and offset are frozen runs in inference mode, so that its moving statistics stay what they were. (A norm that the
model's own config has in inference mode keeps its statistics too, whether its scale and offset are trained or not.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune import files, names, text_table
from od_finetune.errors import UserError
from od_finetune.fields import Detector
from od_finetune.training.row_masks import RowMasks

logger = logging.getLogger(__name__)

TRAINED = "trained"
FROZEN = "frozen"
STATISTICS = "statistics"  # a batch norm's moving mean or variance, following the training batches
FROZEN_STATISTICS = "frozen statistics"

_STATISTIC_LEAVES = ("moving_mean", "moving_variance")
_AFFINE_LEAVES = ("gamma", "beta")
_DECLARED = "batch_norm { train: false } or freeze_batchnorm"  # why a norm of the model keeps its statistics
# How far text() opens a scope in which some variables are trained and some are not.
_DEEPEST_SCOPE = 3


class FreezeRequest(NamedTuple):
    """What the config asks for; patterns as in `names.pattern_matches`."""

    update: tuple[str, ...] = ()  # update_trainable_variables: train only these (empty: all)
    freeze: tuple[str, ...] = ()  # freeze_variables: then take these away
    multipliers: tuple[tuple[str, float], ...] = ()  # (pattern, learning-rate multiplier); the last match wins


class Row(NamedTuple):
    """One variable of the plan."""

    name: str
    state: str
    pattern: str  # the request that decided, "" where none did
    multiplier: float  # of the learning rate; 0 for what is not trained
    parameters: int

    @property
    def trainable(self) -> bool:
        """Whether the optimiser updates it."""
        return self.state == TRAINED

    @property
    def frozen(self) -> bool:
        """Whether it keeps its value through training."""
        return self.state in (FROZEN, FROZEN_STATISTICS)


class FreezePlan:
    """What training will move. `compute` decides, `text` and `write` show, `apply` acts."""

    def __init__(self, rows: Sequence[Row], frozen_norms: Sequence[str] = ()) -> None:
        self.rows = list(rows)
        self.frozen_norms = list(frozen_norms)  # scopes of the batch norm layers that run in inference mode
        self.row_masks: RowMasks | None = None  # rows of trained class predictors that are frozen

    @classmethod
    def compute(cls, detector: Detector, request: FreezeRequest) -> FreezePlan:
        """Decides for every variable of a built detector.

        Raises:
          UserError: a pattern matches nothing or is no regular expression, a multiplier is not positive, or
            nothing is left to train.
        """
        variables = detector.named_variables()
        decisions = _Decisions(_selectable(variables), detector.tf2_names(), request)
        states = {name: decisions.state(name) for name in decisions.selectable}
        layers = detector.weighted_layers()
        norms = {scope: _why_frozen(scope, layers[scope], states) for scope in _norm_scopes(variables)}
        frozen_norms = {scope: why for scope, why in norms.items() if why is not None}
        rows = [_row(name, variable, states, decisions, frozen_norms) for name, variable in variables.items()]
        if not any(row.trainable for row in rows):
            raise UserError(_nothing_left(rows, request))
        decisions.warn_of_idle_multipliers()
        return cls(rows, list(frozen_norms))

    @property
    def trainable(self) -> list[str]:
        """Names of what the optimiser updates, in the detector's order."""
        return [row.name for row in self.rows if row.trainable]

    @property
    def frozen(self) -> list[str]:
        """Names of what keeps its value, statistics of frozen batch norms included."""
        return [row.name for row in self.rows if row.frozen]

    @property
    def multipliers(self) -> list[float]:
        """The learning-rate multiplier of each of `trainable`."""
        return [row.multiplier for row in self.rows if row.trainable]

    def apply(self, detector: Detector) -> dict[str, tf.Variable]:
        """Puts frozen batch norm layers into inference mode; returns the variables to train by name."""
        layers = detector.weighted_layers()
        for scope in _norm_scopes(detector.named_variables()):
            # tf_keras: a batch norm layer that is not trainable normalises with, and keeps, its statistics.
            layers[scope].trainable = scope not in self.frozen_norms
        variables = detector.named_variables()
        return {name: variables[name] for name in self.trainable}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "trained_parameters": sum(row.parameters for row in self.rows if row.trainable),
            "frozen_parameters": sum(row.parameters for row in self.rows if row.frozen),
            "batch_norms_in_inference_mode": self.frozen_norms,
            "rows_frozen": self.row_masks.to_json() if self.row_masks else None,
            "variables": [row._asdict() for row in self.rows],
        }

    def write(self, path: str | Path) -> None:
        """Writes the plan as JSON, at once."""
        files.write_json(path, self.to_json())

    def text(self) -> str:
        """Counts by scope; a scope of which only some variables are trained is opened further."""
        header = ("scope", "trained", "parameters", "frozen", "parameters", "rate x", "decided by")
        table = [header, *(_scope_line(scope, rows) for scope, rows in _scopes(self.rows))]
        table.append(_scope_line("total", self.rows))
        norms = f"{len(self.frozen_norms)} batch norm layers run in inference mode."
        rows = [self.row_masks.text()] if self.row_masks else []
        return "\n".join(["Freeze plan:", *text_table.lines(table, numbers=range(1, 5)), norms, *rows])


class _Decisions:
    """The request's patterns, matched once against the variables they can select."""

    def __init__(self, selectable: Sequence[str], tf2_names: dict[str, str], request: FreezeRequest) -> None:
        self.selectable = selectable
        self._tf2_names = tf2_names
        self._updates = bool(request.update)
        self._update = self._last_match("update_trainable_variables", request.update)
        self._freeze = self._last_match("freeze_variables", request.freeze)
        for pattern, value in request.multipliers:
            if not value > 0:
                raise UserError(
                    f"learning_rate_multiplier {{ pattern: {pattern!r} }} has multiplier {value:g}; it must be above 0."
                    " To keep variables as they are, name them in freeze_variables, which also saves their cost."
                )
        patterns = [pattern for pattern, _ in request.multipliers]
        self._multiplier = self._last_match("learning_rate_multiplier.pattern", patterns)
        self._values = dict(request.multipliers)

    def _last_match(self, field: str, patterns: Iterable[str]) -> dict[str, str]:
        matches: dict[str, str] = {}
        for pattern in patterns:
            found = [name for name in self.selectable if names.pattern_matches(pattern, name, self._aliases(name))]
            if not found:
                raise UserError(self._no_match(field, pattern))
            matches.update(dict.fromkeys(found, pattern))
        return matches

    def _aliases(self, name: str) -> tuple[str, ...]:
        return (self._tf2_names[name],) if name in self._tf2_names else ()

    def _no_match(self, field: str, pattern: str) -> str:
        near = names.nearest(pattern, self.selectable) or list(self.selectable[:3])
        return (
            f"train_config.{field}: the pattern {pattern!r} matches no trainable variable. "
            f"The nearest names are: {', '.join(near)}. Patterns are regular expressions, searched in the name, in "
            "its snake_case form and in its TF2 name."
        )

    def state(self, name: str) -> str:
        """Whether a selectable variable is trained."""
        selected = not self._updates or name in self._update
        return TRAINED if selected and name not in self._freeze else FROZEN

    def reason(self, name: str) -> str:
        """The pattern that decided about a selectable variable."""
        if name in self._freeze:
            return f"freeze_variables: {self._freeze[name]}"
        if self._updates:
            return f"update_trainable_variables: {self._update.get(name, 'no match')}"
        return ""

    def multiplier(self, name: str) -> float:
        """Its learning-rate multiplier."""
        return self._values[self._multiplier[name]] if name in self._multiplier else 1.0

    def warn_of_idle_multipliers(self) -> None:
        """Names the patterns of learning-rate multipliers that decide about no trained variable."""
        used = {pattern for name, pattern in self._multiplier.items() if self.state(name) == TRAINED}
        for pattern in [pattern for pattern in self._values if pattern not in used]:
            frozen = pattern in self._multiplier.values()
            why = "the variables it decides about are frozen" if frozen else "later patterns match the same variables"
            logger.warning("learning_rate_multiplier { pattern: %r } has no effect: %s.", pattern, why)


def _selectable(variables: dict[str, tf.Variable]) -> list[str]:
    """What patterns decide about: the trainable variables, and the statistics of norms that have none."""
    bare = {scope for scope in _norm_scopes(variables) if not _affine(scope, variables)}
    return [
        name
        for name, variable in variables.items()
        if (name.rpartition("/")[0] in bare) or (variable.trainable and not _is_statistic(name))
    ]


def _norm_scopes(variables: Iterable[str]) -> list[str]:
    scopes = [name.rpartition("/")[0] for name in variables if _is_statistic(name)]
    return list(dict.fromkeys(scopes))


def _affine(scope: str, variables: Iterable[str]) -> list[str]:
    return [name for name in (f"{scope}/{leaf}" for leaf in _AFFINE_LEAVES) if name in variables]


def _is_statistic(name: str) -> bool:
    return name.rpartition("/")[2] in _STATISTIC_LEAVES


def _why_frozen(scope: str, layer: tf_keras.layers.Layer, states: dict[str, str]) -> str | None:
    """Why a batch norm layer keeps its statistics ("": its scale and offset are frozen); None if it does not."""
    deciding = _affine(scope, states) or [n for n in states if n.rpartition("/")[0] == scope]
    if all(states[name] == FROZEN for name in deciding):
        return ""
    return _DECLARED if getattr(layer, "keeps_statistics", False) else None


def _row(
    name: str, variable: tf.Variable, states: dict[str, str], decisions: _Decisions, frozen_norms: dict[str, str]
) -> Row:
    size = variable.shape.num_elements()
    scope = name.rpartition("/")[0]
    if _is_statistic(name):
        state = FROZEN_STATISTICS if scope in frozen_norms else STATISTICS
        reason = decisions.reason(name) if name in states else ""
        return Row(name, state, frozen_norms.get(scope) or reason, 0.0, size)
    if name not in states:  # the model itself declares it not trainable
        return Row(name, FROZEN, "not trainable in this model", 0.0, size)
    multiplier = decisions.multiplier(name) if states[name] == TRAINED else 0.0
    return Row(name, states[name], decisions.reason(name), multiplier, size)


def _nothing_left(rows: Sequence[Row], request: FreezeRequest) -> str:
    return (
        f"train_config freezes every one of the {len(rows)} variables (update_trainable_variables: "
        f"{list(request.update) or 'all'}, freeze_variables: {list(request.freeze)}): nothing would be trained. "
        "Narrow the patterns, or evaluate and export without training."
    )


def _scopes(rows: Sequence[Row], depth: int = 1) -> list[tuple[str, list[Row]]]:
    """Rows by their scope's first `depth` segments, deeper where the scope is not treated alike throughout."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault("/".join(row.name.split("/")[:-1][:depth]), []).append(row)
    scopes: list[tuple[str, list[Row]]] = []
    run: tuple[str, set[tuple[bool, float, str]]] | None = None  # first scope and treatment of the line before
    for scope, members in groups.items():
        treatments = {(row.trainable, row.multiplier, row.pattern) for row in members if not _is_statistic(row.name)}
        if len(treatments) > 1 and depth < _DEEPEST_SCOPE:
            scopes += _scopes(members, depth + 1)
            run = None
        elif run is not None and run[1] == treatments and _family(run[0]) == _family(scope):
            scopes[-1] = (f"{run[0]} .. {scope.rpartition('/')[2]}", scopes[-1][1] + members)
        else:
            scopes.append((scope, members))
            run = scope, treatments
    return scopes


def _family(scope: str) -> str:
    """What numbered siblings share: `a/Conv2d_1_depthwise` -> `a/Conv`."""
    parent, _, own = scope.rpartition("/")
    return f"{parent}/{re.match('[A-Za-z]*', own)[0]}"


def _scope_line(scope: str, rows: Sequence[Row]) -> tuple[str, ...]:
    trained = [row for row in rows if row.trainable]
    frozen = [row for row in rows if row.frozen]
    multipliers = sorted({row.multiplier for row in trained})
    patterns = list(dict.fromkeys(row.pattern for row in rows if row.pattern)) if scope != "total" else []
    return (
        scope,
        str(len(trained)),
        f"{sum(row.parameters for row in trained):,}",
        str(len(frozen)),
        f"{sum(row.parameters for row in frozen):,}",
        ",".join(f"{m:g}" for m in multipliers) or "-",
        "; ".join(patterns),
    )
