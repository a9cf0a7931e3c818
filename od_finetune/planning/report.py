"""Costs of freezing as text and as a picture."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from od_finetune import text_table
from od_finetune.planning.depth_costs import DepthCosts, Row, agreement

_MB = 1e6
_PREDICTED, _MEASURED = "#2563eb", "#ea580c"


def text(costs: DepthCosts) -> str:
    """A table of the depths, what measuring says of the predictions, and the suggestion."""
    height, width = costs.image_shape
    full = costs.full.cost
    head = (
        f"What freezing saves: one step of {costs.batch_size} images of {height}x{width}, optimiser {costs.optimizer}. "
        f"Its forward pass takes {full.forward_flops / 1e9:.2f} GFLOPs at every depth."
    )
    measured = any(row.measured for row in costs.rows)
    header = ["freeze through", "parameters", "backward GFLOPs", "FLOPs", "bytes", "step"]
    header += ["activations MB", "gradients MB", "slots MB"]
    header += ["s/step", "measured", "CPU s", "peak MB"] if measured else []
    table = [[*header, ""], *(_line(costs, row, measured) for row in costs.rows)]
    lines = [head, *text_table.lines(table, numbers=range(1, len(header)))]
    lines += _measuring(costs) if measured else []
    return "\n".join([*lines, costs.suggestion().text])


def _line(costs: DepthCosts, row: Row, measured: bool) -> list[str]:
    cost = row.cost
    line = [
        row.depth.name,
        f"{row.parameters:,}",
        f"{cost.backward_flops / 1e9:.2f}",
        f"{costs.relative_flops(row):.2f}x",
        f"{costs.relative_bytes(row):.2f}x",
        f"{costs.relative(row):.2f}x",
        *(f"{size / _MB:.1f}" for size in (cost.activation_bytes, row.gradient_bytes, row.optimizer_bytes)),
    ]
    if measured:
        line += _measured(costs, row)
    return [*line, f"<- {row.configured}" if row.configured else ""]


def _measured(costs: DepthCosts, row: Row) -> list[str]:
    if row.measured is None:
        return ["", "", "", ""]
    found = row.measured
    return [
        f"{found.median:.3f}",
        f"{found.relative:.2f}x",
        f"{found.cpu_median:.2f}",
        f"{found.peak_bytes / _MB:.0f}",
    ]


def _measuring(costs: DepthCosts) -> list[str]:
    parts = []
    for row, time, memory in agreement(costs):
        if row is not costs.full:
            saved = "" if memory is None else f", memory saved {memory:.2f}"
            parts.append(f"{row.depth.name}: time {time:.2f}{saved}")
    return [f"Predicted / measured: {'; '.join(parts)}."] if parts else []


def picture(costs: DepthCosts) -> bytes:
    """A PNG: time and memory of a step at each depth, predicted and, where there is, measured."""
    figure = Figure(figsize=(10, 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = [row.depth.name for row in costs.rows]
    places = range(len(names))
    bars = {"color": _PREDICTED, "alpha": 0.6}
    left.bar(places, [costs.relative(row) for row in costs.rows], label="predicted", **bars)
    saved = [(row.memory_bytes - costs.full.memory_bytes) / _MB for row in costs.rows]
    right.bar(places, saved, label="predicted (activations, gradients, slots)", **bars)
    probed = [(i, row) for i, row in enumerate(costs.rows) if row.measured]
    base = costs.full.measured
    if probed and base:
        at = [i for i, _ in probed]
        left.plot(at, [row.measured.relative for _, row in probed], "o-", color=_MEASURED, label="measured")
        peaks = [(row.measured.peak_bytes - base.peak_bytes) / _MB for _, row in probed]
        right.plot(at, peaks, "o-", color=_MEASURED, label="measured (peak of the process)")
    left.set_title("Time of a step, 1 = everything trained")
    right.set_title("Memory against everything trained, MB")
    marks = {costs.suggestion().name: "suggested", **{r.depth.name: r.configured for r in costs.rows if r.configured}}
    for axes in (left, right):
        axes.set_xticks(list(places), [f"{n} *" if n in marks else n for n in names], rotation=70, fontsize=7)
        axes.legend(fontsize=7)
        axes.grid(axis="y", alpha=0.3)
    said = ", ".join(f"{name}: {mark}" for name, mark in marks.items() if name != mark)
    figure.supxlabel(f"frozen through   (* {said})", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
