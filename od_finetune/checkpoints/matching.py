"""What one source gives to the model: a row per variable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from od_finetune import names
from od_finetune.checkpoints import biases, by_order, class_rows, epsilons, leaves, vocabularies
from od_finetune.checkpoints import view as views
from od_finetune.checkpoints.arrays import OIHW
from od_finetune.checkpoints.class_rows import ClassTransfer
from od_finetune.checkpoints.records import RestoreRequest, Row, Status, Target
from od_finetune.checkpoints.source import Source
from od_finetune.errors import UserError

BY_ORDER = "by order"


@dataclasses.dataclass(frozen=True)
class SourcePlan:
    """What one source would give, were it alone: one row per model variable, and what of the source is left over."""

    source: Source
    request: RestoreRequest
    rows: tuple[Row, ...]
    unused: tuple[str, ...]  # the file's names of weights that no row restores, sorted; without the excluded
    excluded: tuple[str, ...] = ()  # the file's names that `only` and `skip` leave out, sorted
    notices: tuple[str, ...] = ()
    problem: str | None = None  # why this source must not be applied

    @property
    def selected(self) -> list[Row]:
        """The rows that its type and scope select."""
        return [row for row in self.rows if row.status is not Status.LEFT_OUT]

    @property
    def restored(self) -> list[Row]:
        """The rows that it would restore."""
        return [row for row in self.rows if row.restored]

    def read(self, name: str) -> np.ndarray:
        """One entry's values, by its name in the file. Raises UserError for damage and values that are not finite."""
        value = self.source.read(name)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(
                f"{self.source.path}: {name} has values that are not finite; the run that wrote it diverged. Use an "
                "earlier checkpoint."
            )
        return value


def match(
    target: Target, source: Source, request: RestoreRequest, origin: int, transfer: ClassTransfer | None = None
) -> SourcePlan:
    """Matches every model variable against one source, by names and shapes alone.

    Raises:
      UserError: a rule of the request matches nothing or is not valid, the orders of `by_order` diverge, or the
        transfer's label map is not the source's.
    """
    view = views.view(source, request)
    wanted = _wanted(target, request)
    namings = vocabularies.of_type(request.type, target.vocabularies)
    finder = vocabularies.Finder(view, source.layout, namings, target.tf2_paths)
    notices = [*request.notices, *source.notes]
    if request.by_order:
        selected = {name: target.shapes[name] for name in target.shapes if name in wanted}
        pairs = by_order.pair(selected, view, source.layout, request.field, target.is_class_head)
        notices += by_order.shifted_norms(selected, view)
        found = {name: [finder.match(BY_ORDER, name, entry, target.shapes[name])] for name, entry in pairs.items()}
    else:
        found = {name: finder.find(name, target.tf2_names.get(name, ""), target.shapes[name]) for name in wanted}
    rows = tuple(_row(name, target, name in wanted, found.get(name, []), view, origin) for name in target.shapes)
    epsilon_of = _epsilon_of(source, request, namings)
    rows = epsilons.adjust(rows, target.epsilons, lambda row: epsilon_of(row)[0])
    rows, folded = biases.fold(rows, set(view.own.values()))
    rows = class_rows.transplanted(rows, transfer, target.class_layout)
    used = {row.source for row in rows if row.restored} | set(folded)
    return SourcePlan(
        source,
        request,
        rows,
        tuple(sorted(own for own in view.own.values() if own not in used)),
        tuple(sorted(view.excluded)),
        (
            *notices,
            *_notices(request, view, found),
            *_epsilon_notices(rows, epsilon_of),
            *_bias_notices(folded),
            *_vocabulary_notes(rows, target),
        ),
    )


def _wanted(target: Target, request: RestoreRequest) -> set[str]:
    """The variables that type and scope select."""
    chosen = set(target.shapes)
    if request.scope:
        chosen = matching(target, request.scope, f"{request.field}.scope")
    return {name for name in chosen if target.part(name) in request.parts}


def matching(target: Target, patterns: tuple[str, ...], field: str) -> set[str]:
    """The model's variables that any of the patterns selects.

    Raises:
      UserError: a pattern matches nothing.
    """
    chosen: set[str] = set()
    for index, pattern in enumerate(patterns):
        found = {
            name for name in target.shapes if names.pattern_matches(pattern, name, [target.tf2_names.get(name, name)])
        }
        if not found:
            raise views.no_match(f"{field}[{index}]", pattern, target.shapes, "variable of the model")
        chosen |= found
    return chosen


def _row(
    name: str, target: Target, wanted: bool, matches: list[vocabularies.Match], view: views.View, origin: int
) -> Row:
    shape, class_head = target.shapes[name], target.is_class_head(name)
    row = Row(name, target.part(name), shape, Status.LEFT_OUT, None, None, None, class_head)
    if not wanted:
        return row
    if not matches:
        return row._replace(status=Status.NOT_IN_CHECKPOINT, origin=origin)
    best = matches[0]
    return row._replace(
        status=Status.RESTORED if best.shape == shape else Status.SHAPE_DIFFERS,
        source=view.own[best.name],
        source_shape=best.shape,
        rule=best.rule,
        origin=origin,
        steps=best.steps,
    )


def _epsilon_of(
    source: Source, request: RestoreRequest, namings: tuple[vocabularies.Naming, ...]
) -> Callable[[Row], tuple[float | None, str]]:
    """Epsilon of the batch norm that a row's source entry belongs to, and who says so."""
    by_rule = {naming.rule: naming.epsilon for naming in namings}

    def epsilon(row: Row) -> tuple[float | None, str]:
        scope, rule = leaves.split(row.source or "")[0], (row.rule or "").removesuffix(vocabularies.AS_PATH)
        if request.batch_norm_epsilon is not None:
            return request.batch_norm_epsilon, "batch_norm_epsilon"
        if scope in source.epsilons:
            return source.epsilons[scope], "the file"
        if by_rule.get(rule) is not None:
            return by_rule[rule], f"{rule}'s way"
        if source.layout == OIHW:
            return names.FRAMEWORK_EPSILON, "PyTorch's and Gluon's default; batch_norm_epsilon says otherwise"
        return None, ""

    return epsilon


def _notices(
    request: RestoreRequest, view: views.View, found: Mapping[str, list[vocabularies.Match]]
) -> list[str]:
    notices = []
    if request.by_order and not view.has_order:
        notices.append("the format keeps no order: the checkpoint's names were sorted, numbers by their value")
    several = {name: matches for name, matches in found.items() if len(matches) > 1}
    if several:
        name, (first, second, *_) = next(iter(several.items()))
        notices.append(
            f"{len(several)} variables are in the checkpoint under more than one name; taken is the first, e.g. for "
            f"{name} {view.own[first.name]} ({first.rule}), not {view.own[second.name]} ({second.rule}). Say with skip "
            "which is not meant."
        )
    return notices


def _vocabulary_notes(rows: tuple[Row, ...], target: Target) -> list[str]:
    """What is to be known of the vocabularies under which something was found."""
    rules = {row.rule for row in rows if row.restored}
    notes = [each.note for each in target.vocabularies if each.note and each.name in rules]
    return list(dict.fromkeys(notes))


def _bias_notices(folded: tuple[str, ...]) -> list[str]:
    if not folded:
        return []
    return [
        f"{len(folded)} convolutions have a bias in the checkpoint where the model has only a batch norm; it is taken "
        f"off the norm's mean so that inference stays equal, e.g. {folded[0]}"
    ]


def _epsilon_notices(rows: tuple[Row, ...], epsilon_of: Callable[[Row], tuple[float | None, str]]) -> list[str]:
    adjusted = [row for row in rows if any(isinstance(step, epsilons.STEPS) for step in row.steps)]
    if not adjusted:
        return []
    value, reason = epsilon_of(adjusted[0])
    return [
        f"{len(adjusted)} batch norms have another epsilon in the checkpoint, {value:g} ({reason}); their scale is "
        "adapted so that inference stays equal"
    ]
