"""What each depth of freezing costs under a config, predicted and measured, and which one to try."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from od_finetune.planning import plans
from od_finetune.training import costs
from od_finetune.training.costs import Depth, StepCost
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.probe import Measurement

THIS_CONFIG = "this config"
WORTHWHILE = 0.8  # of the most that freezing can save: where a suggestion stops freezing deeper


@dataclasses.dataclass(frozen=True)
class Row:
    """One depth."""

    depth: Depth
    cost: StepCost
    parameters: int  # that train
    gradient_bytes: int
    optimizer_bytes: int  # slots and moving averages
    configured: str = ""  # THIS_CONFIG where the config trains the same; `this config from step N` if later
    measured: Measurement | None = None

    @property
    def memory_bytes(self) -> int:
        """What training at this depth needs beside weights: most activations at once, gradients, slots."""
        return self.cost.peak_bytes + self.gradient_bytes + self.optimizer_bytes


class Suggestion(NamedTuple):
    """Which depth to try, and why."""

    name: str
    relative: float  # cost of a step, 1 being everything trained
    least: float  # the same at the deepest depth
    text: str


@dataclasses.dataclass(frozen=True)
class DepthCosts:
    """Rows from nothing frozen to the deepest; the config's own plans last, unless they equal one of them."""

    rows: tuple[Row, ...]
    batch_size: int
    image_shape: tuple[int, int]
    optimizer: str
    forward_flops: dict[str, int]  # by layer

    @classmethod
    def compute(cls, prepared: plans.Plans) -> DepthCosts:
        """Traces one step with everything trained and counts what is left of it at each depth."""
        detector, config = prepared.detector, prepared.config
        everything = FreezePlan.compute(detector, FreezeRequest())
        trainer = plans.make_trainer(detector, config, everything)
        batch = plans.noise(detector, config)
        step = costs.TracedStep(trainer, batch)
        memory = costs.variable_memory(trainer)
        parameters = {row.name: row.parameters for row in everything.rows}
        configured = _configured(prepared.freeze)

        def row(depth: Depth) -> Row:
            return Row(
                depth,
                step.cost(depth.trained),
                sum(parameters[name] for name in depth.trained),
                sum(memory[name].gradient for name in depth.trained),
                sum(memory[name].slots for name in depth.trained),
                configured=configured.pop(frozenset(depth.trained), ""),
            )

        rows = [row(depth) for depth in costs.depths(detector.stages(), everything.trainable)]
        rows += [row(Depth(said, (said,), tuple(trained))) for trained, said in list(configured.items())]
        size = len(batch.keys), tuple(batch.images.shape[1:3])
        return cls(tuple(rows), *size, type(trainer.optimizer).__name__, step.forward_flops())

    @property
    def full(self) -> Row:
        """The row in which nothing is frozen."""
        return self.rows[0]

    def choose(self, count: int | None) -> list[Row]:
        """Rows to measure: nothing frozen, the config's, the deepest, and up to `count` in all spread between by
        predicted cost; None: all."""
        if count is None:
            return list(self.rows)
        depths = self._cuts()
        chosen = {0, len(depths) - 1}
        times = np.array([self.relative(row) for row in depths])
        for target in np.linspace(times[0], times[-1], max(count, 2)):
            chosen.add(int(np.abs(times - target).argmin()))
        return [row for i, row in enumerate(self.rows) if row.configured or i in chosen]

    def with_measurements(self, measured: dict[str, Measurement]) -> DepthCosts:
        """The same with what was measured, by name of the depth."""
        rows = [dataclasses.replace(row, measured=measured.get(row.depth.name)) for row in self.rows]
        return dataclasses.replace(self, rows=tuple(rows))

    def relative_flops(self, row: Row) -> float:
        """FLOPs of a step, 1 being everything trained."""
        return row.cost.flops / self.full.cost.flops

    def relative_bytes(self, row: Row) -> float:
        """Memory that a step reads and writes, 1 being everything trained."""
        return row.cost.moved_bytes / self.full.cost.moved_bytes

    def relative(self, row: Row) -> float:
        """Predicted time of a step, 1 being everything trained; half of that is put down to FLOPs, half to memory."""
        return (self.relative_flops(row) + self.relative_bytes(row)) / 2

    def estimated(self, row: Row) -> float:
        """Relative time of a step: as measured, between measured depths along the predictions; predicted where nothing
        is measured."""
        known = sorted((self.relative(r), r.measured.relative) for r in self._cuts() if r.measured)
        if len(known) < 2:
            return self.relative(row)
        return float(np.interp(self.relative(row), *zip(*known, strict=True)))

    def suggestion(self) -> Suggestion:
        """The shallowest depth that saves most of what freezing can save."""
        depths = self._cuts()
        least = min(map(self.estimated, depths))
        enough = 1.0 - WORTHWHILE * (1.0 - least)
        row = next(row for row in depths if self.estimated(row) <= enough + 1e-9)
        basis = "measured" if any(r.measured for r in self.rows) else "predicted"
        relative = self.estimated(row)
        if row is self.full:
            return Suggestion(row.depth.name, 1.0, least, "Suggestion: none, as freezing saves nothing here.")
        text = (
            f'Suggestion: freeze_through: "{row.depth.name}". A step then costs {relative:.2f}x of one that trains '
            f"everything ({basis}), and {row.parameters:,} of {self.full.parameters:,} parameters still train. It is "
            f"the shallowest depth with {WORTHWHILE:.0%} of the saving that there is: freezing through "
            f"{depths[-1].depth.name} costs {least:.2f}x, another {relative - least:.2f}x less. What a depth does to "
            "accuracy only training tells."
        )
        return Suggestion(row.depth.name, relative, least, text)

    def _cuts(self) -> list[Row]:
        """The rows without that of a config that freezes in another way."""
        return [row for row in self.rows if row.depth.name != row.configured]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: sizes in bytes, times in seconds.

        `forward_flops_by_layer`; `depths`: a list, each with `freeze_through` (`none`; `this config` where its plan is
        none of the depths), `names`, `configured` (`this config`, `this config from step N`, or empty),
        `trained_variables`, `trained_parameters`, `forward_flops`, `backward_flops`, `moved_bytes` (read and written by
        all operations), `relative_flops`, `relative_bytes` and `relative` (predicted time; of a step, 1: everything
        trained), `activation_bytes`, `peak_bytes` (most tensors alive at once), `gradient_bytes`, `optimizer_bytes`,
        and `measured` (null, or `seconds`, `cpu_seconds`, `relative`, `peak_resident_bytes`); `suggestion`.
        """
        return {
            "batch_size": self.batch_size,
            "image_shape": list(self.image_shape),
            "optimizer": self.optimizer,
            "forward_flops_by_layer": self.forward_flops,
            "depths": [self._row_json(row) for row in self.rows],
            "suggestion": self.suggestion()._asdict(),
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        measured = row.measured and {
            "seconds": list(row.measured.seconds),
            "cpu_seconds": list(row.measured.cpu_seconds),
            "relative": row.measured.relative,
            "peak_resident_bytes": row.measured.peak_bytes,
        }
        return {
            "freeze_through": row.depth.name,
            "names": list(row.depth.names),
            "configured": row.configured,
            "trained_variables": len(row.depth.trained),
            "trained_parameters": row.parameters,
            "forward_flops": row.cost.forward_flops,
            "backward_flops": row.cost.backward_flops,
            "relative_flops": self.relative_flops(row),
            "relative_bytes": self.relative_bytes(row),
            "relative": self.relative(row),
            "moved_bytes": row.cost.moved_bytes,
            "activation_bytes": row.cost.activation_bytes,
            "peak_bytes": row.cost.peak_bytes,
            "gradient_bytes": row.gradient_bytes,
            "optimizer_bytes": row.optimizer_bytes,
            "measured": measured,
        }


def _configured(plan: FreezePlan) -> dict[frozenset[str], str]:
    """What the config trains, from its first step and from later ones -> how to call it."""
    found: dict[frozenset[str], str] = {}
    for phase in plan.phases:
        said = THIS_CONFIG if phase is plan.phases[0] else f"{THIS_CONFIG} from step {phase.from_step}"
        found.setdefault(frozenset(phase.trainable), said)
    return found


def agreement(costs_: DepthCosts) -> Sequence[tuple[Row, float, float | None]]:
    """Of each measured depth: predicted over measured relative time, and over the measured memory saved (None for the
    depth that saves nothing)."""
    full = costs_.full
    found = []
    for row in costs_.rows:
        if row.measured is None or full.measured is None:
            continue
        saved = full.measured.peak_bytes - row.measured.peak_bytes
        memory = (full.memory_bytes - row.memory_bytes) / saved if row is not full and saved > 0 else None
        found.append((row, costs_.relative(row) / row.measured.relative, memory))
    return found
