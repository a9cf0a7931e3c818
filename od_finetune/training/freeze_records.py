"""What a FreezePlan is asked and what it answers, as plain records."""

from __future__ import annotations

from typing import NamedTuple

TRAINED = "trained"
FROZEN = "frozen"
STATISTICS = "statistics"  # a batch norm's moving mean or variance, following the training batches
FROZEN_STATISTICS = "frozen statistics"

_STATISTIC_LEAVES = ("moving_mean", "moving_variance")


class NormRule(NamedTuple):
    """trainable_batch_norm: what trains in the batch norms of which some variable matches the pattern."""

    pattern: str
    affine: bool | None = None  # gamma and beta; None leaves them to the other rules
    statistics: bool | None = None  # whether they follow the batches; None: unless gamma and beta are frozen


class Unfreezing(NamedTuple):
    """unfreeze: what begins to train when so many updates were made."""

    at_step: int
    patterns: tuple[str, ...] = ()
    freeze_through: str = ""  # from then on freezing ends with this stage; "": patterns alone


class FreezeRequest(NamedTuple):
    """What the config asks for; patterns as in `names.pattern_matches`."""

    update: tuple[str, ...] = ()  # update_trainable_variables: train only these (empty: all)
    freeze: tuple[str, ...] = ()  # freeze_variables: then take these away
    multipliers: tuple[tuple[str, float], ...] = ()  # (pattern, learning-rate multiplier); the last match wins
    freeze_through: str = ""  # and take away all stages up to and including this one
    batch_norms: tuple[NormRule, ...] = ()  # over all of these; the last match that says something wins
    unfreeze: tuple[Unfreezing, ...] = ()
    layer_decay: float = 1.0  # factor on the learning rate from each stage to the one below it
    weight_decay: tuple[tuple[str, float], ...] = ()  # (pattern, L2 weight); the last match wins


class Row(NamedTuple):
    """One variable of the plan."""

    name: str
    state: str
    pattern: str  # the request that decided, "" where none did
    multiplier: float  # of the learning rate; 0 for what is not trained
    parameters: int
    weight_decay: float | None = None  # L2 weight in place of its layer's own regulariser

    @property
    def trainable(self) -> bool:
        """Whether the optimiser updates it."""
        return self.state == TRAINED

    @property
    def frozen(self) -> bool:
        """Whether it keeps its value through training."""
        return self.state in (FROZEN, FROZEN_STATISTICS)


def is_statistic(name: str) -> bool:
    """Whether a canonical name is a batch norm's moving mean or variance."""
    return name.rpartition("/")[2] in _STATISTIC_LEAVES
