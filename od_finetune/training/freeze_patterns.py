"""The patterns, stages and batch norms that freezing requests name, looked up in a detector's variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from od_finetune import names
from od_finetune.errors import UserError
from od_finetune.fields import Stage
from od_finetune.training.freeze_records import NormRule, is_statistic


class Patterns:
    """Patterns over the variables that they can select.

    Args:
      selectable: canonical names.
      tf2_names: another spelling of some of them.
    """

    def __init__(self, selectable: Sequence[str], tf2_names: Mapping[str, str]) -> None:
        self.selectable = selectable
        self._tf2_names = tf2_names

    def matches(self, pattern: str, name: str) -> bool:
        """Whether a pattern selects a variable."""
        aliases = (self._tf2_names[name],) if name in self._tf2_names else ()
        return names.pattern_matches(pattern, name, aliases)

    def found(self, field: str, pattern: str) -> list[str]:
        """What a pattern selects.

        Raises:
          UserError: nothing; names the field of train_config and the nearest variables.
        """
        found = [name for name in self.selectable if self.matches(pattern, name)]
        if found:
            return found
        near = names.nearest(pattern, self.selectable) or list(self.selectable[:3])
        raise UserError(
            f"train_config.{field}: the pattern {pattern!r} matches no trainable variable. "
            f"The nearest names are: {', '.join(near)}. Patterns are regular expressions, searched in the name, in "
            "its snake_case form and in its TF2 name."
        )

    def last_match(self, field: str, patterns: Iterable[str]) -> dict[str, str]:
        """The last of the patterns that selects it, by variable.

        Raises:
          UserError: a pattern selects nothing.
        """
        matches: dict[str, str] = {}
        for pattern in patterns:
            matches.update(dict.fromkeys(self.found(field, pattern), pattern))
        return matches


class Stages:
    """The stages of a network by name, from the input on."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)

    def through(self, field: str, name: str) -> dict[str, str]:
        """Every variable up to and including a stage, with that stage's name as it was asked for.

        Raises:
          UserError: there is no such stage; lists them all, and the nearest.
        """
        ends = [index for index, stage in enumerate(self._stages) if name in stage.names]
        if not ends:
            known = [name for stage in self._stages for name in stage.names]
            near = names.nearest(name, known)
            raise UserError(
                f"train_config.{field}: this network has no stage {name!r}. "
                + (f"The nearest is {near[0]!r}. " if near else "")
                + "Its stages are, from the input on (= other names): "
                + ", ".join(" = ".join(stage.names) for stage in self._stages)
                + "."
            )
        return {variable: name for stage in self._stages[: ends[-1] + 1] for variable in stage.variables}

    def depth(self) -> dict[str, int]:
        """How many stages lie above it, by variable: 0 for those of the head."""
        last = len(self._stages) - 1
        return {variable: last - index for index, stage in enumerate(self._stages) for variable in stage.variables}


class Norms:
    """The batch norms among a detector's variables, and what trainable_batch_norm says about each.

    Attributes:
      affine: names of gamma and beta by the norm's scope.
      affine_rule, statistics_rule: (value, pattern) by scope, where a rule sets that field; the last one counts.
    """

    def __init__(self, variables: Iterable[str], rules: Sequence[NormRule], patterns: Patterns) -> None:
        members: dict[str, list[str]] = {}
        for name in variables:
            members.setdefault(scope_of(name), []).append(name)
        members = {scope: own for scope, own in members.items() if any(is_statistic(name) for name in own)}
        self.affine = {scope: [name for name in own if not is_statistic(name)] for scope, own in members.items()}
        self.affine_rule: dict[str, tuple[bool, str]] = {}
        self.statistics_rule: dict[str, tuple[bool, str]] = {}
        for rule in rules:
            matched = [s for s, own in members.items() if any(patterns.matches(rule.pattern, n) for n in (s, *own))]
            self._check(rule, matched)
            if rule.affine is not None:
                self.affine_rule.update((s, (rule.affine, rule.pattern)) for s in matched if self.affine[s])
            if rule.statistics is not None:
                self.statistics_rule.update((s, (rule.statistics, rule.pattern)) for s in matched)

    def _check(self, rule: NormRule, matched: Sequence[str]) -> None:
        field = f"train_config.trainable_batch_norm {{ pattern: {rule.pattern!r} }}"
        if not self.affine:
            raise UserError(f"{field}: this network has no batch norm. Leave it out.")
        if not matched:
            near = names.nearest(rule.pattern, self.affine) or list(self.affine)[:3]
            raise UserError(f"{field} matches no batch norm. The nearest are: {', '.join(near)}.")
        if rule.affine is not None and rule.statistics is None and not any(self.affine[scope] for scope in matched):
            raise UserError(f"{field} sets affine, but what it matches has neither gamma nor beta (e.g. {matched[0]}).")


def scope_of(name: str) -> str:
    """The scope of a variable: its name without the leaf."""
    return name.rpartition("/")[0]
