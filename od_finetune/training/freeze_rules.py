"""What becomes of each variable: the rules of a FreezeRequest, and which of them has the last word.

From the weakest to the strongest: `update_trainable_variables` selects; `freeze_through` and `freeze_variables` take
away; `unfreeze` gives back from its step on; `trainable_batch_norm { affine }` decides about gamma and beta, whatever
the others say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.fields import Detector
from od_finetune.training.freeze_patterns import Norms, Patterns, Stages, scope_of
from od_finetune.training.freeze_records import FreezeRequest, Unfreezing, is_statistic

logger = logging.getLogger(__name__)

_DECLARED = "batch_norm { train: false } or freeze_batchnorm"  # why a norm of the model keeps its statistics
_OVERRULED = "later patterns match the same variables"


class Decision(NamedTuple):
    """Whether a variable is trained, and which request said so ("": none)."""

    trained: bool
    reason: str


class _Lift(NamedTuple):
    """One unfreeze, looked up in the detector's variables."""

    step: int
    patterns: dict[str, str]  # variable: pattern
    stages: dict[str, str]  # variable that freeze_through held until then: stage that it ends with from then on


class Decisions:
    """The request's patterns, matched once against the variables they can select.

    Attributes:
      selectable: what patterns decide about: the trainable variables, and the statistics of norms that have no others.
      norms: the batch norms.
      steps: at which something is decided anew: 0, then those of unfreeze, ascending.
    """

    def __init__(self, detector: Detector, request: FreezeRequest) -> None:
        """Raises:
        UserError: a pattern matches nothing, a stage does not exist, a number is out of its range, or an unfreeze
          has nothing to unfreeze.
        """
        variables, tf2_names = detector.named_variables(), detector.tf2_names()
        self.norms = Norms(variables, request.batch_norms, Patterns(list(variables), tf2_names))
        self.selectable = _selectable(variables, self.norms)
        self._patterns = Patterns(self.selectable, tf2_names)
        self._updates = bool(request.update)
        self._update = self._patterns.last_match("update_trainable_variables", request.update)
        self._freeze = self._patterns.last_match("freeze_variables", request.freeze)
        stages = Stages(detector.stages() if _needs_stages(request) else ())
        self._through = stages.through("freeze_through", request.freeze_through) if request.freeze_through else {}
        self._lifts: list[_Lift] = []
        for unfreezing in sorted(request.unfreeze, key=lambda unfreezing: unfreezing.at_step):
            self._lifts.append(self._lift(unfreezing, stages))
            self._check(unfreezing)
        self.steps = sorted({0, *(lift.step for lift in self._lifts)})
        self._rates = _Rates(request, self._patterns, stages)
        self._weights = _Weights(request.weight_decay, self._patterns)

    def decide(self, name: str, step: int = 0) -> Decision:
        """About a selectable variable, in the update that comes after `step` others."""
        scope = scope_of(name)
        if scope in self.norms.affine_rule and name in self.norms.affine[scope]:
            trained, pattern = self.norms.affine_rule[scope]
            return Decision(trained, f"trainable_batch_norm: {pattern}")
        start = self._start(name)
        return start if start.trained else self._lifted(name, step) or start

    def _start(self, name: str) -> Decision:
        if name in self._freeze:
            return Decision(False, f"freeze_variables: {self._freeze[name]}")
        if self._updates and name not in self._update:
            return Decision(False, "update_trainable_variables: no match")
        if name in self._through:
            return Decision(False, f"freeze_through: {self._through[name]}")
        return Decision(True, f"update_trainable_variables: {self._update[name]}" if self._updates else "")

    def _lifted(self, name: str, step: int) -> Decision | None:
        selected = name not in self._freeze and (not self._updates or name in self._update)
        for lift in self._lifts:
            if lift.step > step:
                return None
            if name in lift.patterns:
                return Decision(True, f"unfreeze at step {lift.step}: {lift.patterns[name]}")
            if selected and name in lift.stages:
                return Decision(True, f"unfreeze at step {lift.step}: freeze_through {lift.stages[name]}")
        return None

    def _lift(self, unfreezing: Unfreezing, stages: Stages) -> _Lift:
        above = {}
        if unfreezing.freeze_through:
            held = stages.through("unfreeze.freeze_through", unfreezing.freeze_through)
            above = {name: unfreezing.freeze_through for name in self._through if name not in held}
        return _Lift(
            unfreezing.at_step, self._patterns.last_match("unfreeze.pattern", unfreezing.patterns), above
        )

    def _check(self, unfreezing: Unfreezing) -> None:
        """Refuses what unfreezes nothing, pattern by pattern."""
        step, lift = unfreezing.at_step, self._lifts[-1]
        if step < 1:
            raise UserError(
                f"train_config.unfreeze {{ at_step: {step} }}: expected 1 or more. What is to train from the start on "
                "should not be frozen."
            )
        asked = {f"pattern {p!r}": self._patterns.found("unfreeze.pattern", p) for p in unfreezing.patterns}
        if unfreezing.freeze_through:
            asked[f"freeze_through {unfreezing.freeze_through!r}"] = list(lift.stages)
        for what, names in asked.items():
            frozen = [name for name in names if not self.decide(name, step - 1).trained]
            if any(self.decide(name, step).trained for name in frozen):
                continue
            why = f"{self.decide(frozen[0], step).reason} still freezes it" if frozen else "nothing of it is frozen"
            raise UserError(f"train_config.unfreeze {{ at_step: {step} }}: {what} has no effect: {why}.")

    def multiplier(self, name: str) -> float:
        """Its learning-rate multiplier, that of layer_decay included."""
        return self._rates.multiplier(name)

    def weight_decay(self, name: str) -> float | None:
        """The L2 weight that replaces the one of its layer; None where none does."""
        return self._weights.values[self._weights.matched[name]] if name in self._weights.matched else None

    def norm_mode(self, scope: str, keeps_statistics: bool, step: int) -> tuple[bool, str]:
        """Whether a batch norm runs in inference mode, so that its statistics stay, and the request that says so.

        Args:
          keeps_statistics: whether the model's own config has it in inference mode.
        """
        if scope in self.norms.statistics_rule:
            follows, pattern = self.norms.statistics_rule[scope]
            return not follows, f"trainable_batch_norm: {pattern}"
        own = [name for name in self.selectable if scope_of(name) == scope]
        deciding = [name for name in own if not is_statistic(name)] or own
        if all(not self.decide(name, step).trained for name in deciding):
            return True, ""
        return keeps_statistics, _DECLARED if keeps_statistics else ""

    def warn_of_idle_patterns(self) -> None:
        """Names the patterns of learning-rate multipliers and weight decay that decide about no trained variable."""
        ever = {name for name in self.selectable if self.decide(name, self.steps[-1]).trained}
        for field, asked in (("learning_rate_multiplier", self._rates), ("weight_decay", self._weights)):
            used = {pattern for name, pattern in asked.matched.items() if name in ever}
            for pattern in [pattern for pattern in asked.values if pattern not in used]:
                frozen = pattern in asked.matched.values()
                why = "the variables it decides about are frozen" if frozen else _OVERRULED
                logger.warning("%s { pattern: %r } has no effect: %s.", field, pattern, why)


class _Rates:
    """Learning-rate multipliers: those of patterns times those of stages."""

    def __init__(self, request: FreezeRequest, patterns: Patterns, stages: Stages) -> None:
        for pattern, value in request.multipliers:
            if not value > 0:
                raise UserError(
                    f"learning_rate_multiplier {{ pattern: {pattern!r} }} has multiplier {value:g}; it must be above 0."
                    " To keep variables as they are, name them in freeze_variables, which also saves their cost."
                )
        if not 0.0 < request.layer_decay <= 1.0:
            raise UserError(
                f"train_config.layer_decay is {request.layer_decay:g}, expected more than 0 and at most 1 (no decay): "
                "it is the factor on the learning rate from each stage to the one below it."
            )
        self.values = dict(request.multipliers)
        self.matched = patterns.last_match("learning_rate_multiplier.pattern", _patterns(request.multipliers))
        self._decay = request.layer_decay
        self._depth = stages.depth()

    def multiplier(self, name: str) -> float:
        own = self.values[self.matched[name]] if name in self.matched else 1.0
        return own * self._decay ** self._depth[name] if self._decay != 1.0 else own


class _Weights:
    """L2 weights by pattern."""

    def __init__(self, weights: Sequence[tuple[str, float]], patterns: Patterns) -> None:
        for pattern, weight in weights:
            if not weight >= 0:
                raise UserError(
                    f"train_config.weight_decay {{ pattern: {pattern!r} }} has weight {weight:g}, expected 0 (none) or "
                    "more."
                )
        self.values = dict(weights)
        self.matched = patterns.last_match("weight_decay.pattern", _patterns(weights))


def _patterns(pairs: Iterable[tuple[str, float]]) -> list[str]:
    return [pattern for pattern, _ in pairs]


def _needs_stages(request: FreezeRequest) -> bool:
    return bool(
        request.freeze_through or request.layer_decay != 1.0 or any(u.freeze_through for u in request.unfreeze)
    )


def _selectable(variables: Mapping[str, tf.Variable], norms: Norms) -> list[str]:
    bare = {scope for scope, affine in norms.affine.items() if not affine}
    return [
        name
        for name, variable in variables.items()
        if scope_of(name) in bare or (variable.trainable and not is_statistic(name))
    ]
