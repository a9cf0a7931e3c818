"""Plots several runs' metrics against steps and training time, and their speed.

    python tools/plot_runs.py --run "all=runs/a" --run "frozen=runs/b" --output=docs/comparison.png

A run is a model_dir (its TensorBoard scalars under `eval/` and `train/` are read) or a `.jsonl` file with one object
per line: `step`, optionally `seconds` and `images_per_second`, and metrics by name.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (after the choice of a backend that needs no display)
from matplotlib.axes import Axes  # noqa: E402

METRICS = ("DetectionBoxes_Precision/mAP", "DetectionBoxes_Precision/mAP@.50IOU")
SPEED = "images_per_second"
_COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#b91c1c", "#a16207", "#475569")


class Run(NamedTuple):
    """What is plotted of one run; curves are `(step, value)` by rising step."""

    name: str
    metrics: dict[str, list[tuple[int, float]]]
    seconds: list[tuple[int, float]]  # training time spent until a step, evaluations left out
    images_per_second: float | None  # median over the log intervals but the first, which builds the graph


def read_run(name: str, path: Path, batch_size: int | None = None) -> Run:
    """Reads a model_dir or a `.jsonl` file.

    Args:
      batch_size: what turns images per second into seconds; None: as `pipeline.config` in the model_dir says.

    Raises:
      SystemExit: nothing there to plot.
    """
    scalars = _read_lines(path) if path.suffix == ".jsonl" else _read_events(path)
    speeds = scalars.pop(SPEED, [])
    seconds = scalars.pop("seconds", [])
    if not seconds and speeds:
        batch_size = batch_size or _batch_size(path)
        seconds = _training_seconds(speeds, batch_size)
    found = {metric: scalars[metric] for metric in scalars if metric.startswith(("DetectionBoxes_", "PascalBoxes_"))}
    if not found:
        raise SystemExit(f"{path}: holds no evaluation (looked for scalars DetectionBoxes_*, PascalBoxes_*)")
    rates = [rate for _, rate in speeds[1:] or speeds]
    return Run(name, found, seconds, statistics.median(rates) if rates else None)


def _read_lines(path: Path) -> dict[str, list[tuple[int, float]]]:
    scalars: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line) if line.strip() else {"step": 0}
        step = int(values.pop("step"))
        for name, value in values.items():
            scalars.setdefault(name, {})[step] = float(value)
    return {name: sorted(curve.items()) for name, curve in scalars.items()}


def _read_events(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of `eval/` and of `train/`; of a step written twice (after a resume) the later value."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    scalars: dict[str, list[tuple[int, float]]] = {}
    for part in ("train", "eval"):
        events = EventAccumulator(str(directory / part), size_guidance={TENSORS: 0}).Reload()
        for tag in events.Tags()["tensors"]:
            if part == "train" and tag != SPEED:
                continue
            arrays = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
            curve = {step: float(array) for step, array in arrays if array.shape == () and array.dtype.kind == "f"}
            if curve:
                scalars[tag] = sorted(curve.items())
    return scalars


def _batch_size(model_dir: Path) -> int:
    from od_finetune.config import pipeline

    path = model_dir / "pipeline.config"
    if not path.is_file():
        raise SystemExit(f"{path}: does not exist; say --batch_size")
    return pipeline.load(str(path)).train_config.batch_size


def _training_seconds(speeds: Sequence[tuple[int, float]], batch_size: int) -> list[tuple[int, float]]:
    """Images per second of each interval that ends at a step -> seconds from the start to that step."""
    seconds, total, before = [(0, 0.0)], 0.0, 0
    for step, rate in speeds:
        total += (step - before) * batch_size / rate
        seconds.append((step, total))
        before = step
    return seconds


def plot(runs: Sequence[Run], metrics: Sequence[str], output: Path, title: str = "") -> None:
    """One row per metric: against steps, against seconds; at the right the speeds."""
    metrics = [metric for metric in metrics if any(metric in run.metrics for run in runs)]
    if not metrics:
        known = sorted({metric for run in runs for metric in run.metrics})
        raise SystemExit(f"No run has any of the chosen metrics; there are: {', '.join(known)}")
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = pyplot.figure(figsize=(13, 1 + 3.1 * len(metrics)), layout="constrained")
    grid = figure.add_gridspec(len(metrics), 3, width_ratios=(1, 1, 0.75))
    colors = {run.name: _COLORS[i % len(_COLORS)] for i, run in enumerate(runs)}
    for row, metric in enumerate(metrics):
        _plot_curves(figure.add_subplot(grid[row, 0]), runs, colors, metric, against_seconds=False)
        _plot_curves(figure.add_subplot(grid[row, 1]), runs, colors, metric, against_seconds=True)
    _plot_speeds(figure.add_subplot(grid[:, 2]), runs, colors)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    if title:
        figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def _points(run: Run, metric: str, against_seconds: bool) -> Iterator[tuple[float, float]]:
    """Positions and values to draw; values that could not be measured (-1) are left out."""
    steps, seconds = zip(*run.seconds, strict=True) if run.seconds else ((), ())
    for step, value in run.metrics.get(metric, []):
        if value >= 0 and (steps or not against_seconds):
            yield (float(np.interp(step, steps, seconds)) if against_seconds else step), value


def _plot_curves(
    axes: Axes, runs: Sequence[Run], colors: Mapping[str, str], metric: str, against_seconds: bool
) -> None:
    for run in runs:
        points = list(_points(run, metric, against_seconds))
        axes.plot([x for x, _ in points], [y for _, y in points], ".-", color=colors[run.name], label=run.name)
    axes.set_xlabel("seconds of training" if against_seconds else "steps")
    axes.set_ylabel("" if against_seconds else metric.split("/", 1)[-1])
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.25)


def _plot_speeds(axes: Axes, runs: Sequence[Run], colors: Mapping[str, str]) -> None:
    timed = [run for run in runs if run.images_per_second]
    bars = axes.barh(
        [run.name for run in timed], [run.images_per_second for run in timed], color=[colors[run.name] for run in timed]
    )
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel("images/s in training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--metric", action="append", help=f"default: {', '.join(METRICS)}")
    parser.add_argument("--batch_size", type=int, help="default: what each model_dir's pipeline.config says")
    parser.add_argument("--title", default="")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    runs = []
    for text in flags.run:
        name, _, path = text.rpartition("=")
        runs.append(read_run(name or Path(path).name, Path(path), flags.batch_size))
    plot(runs, flags.metric or METRICS, flags.output, flags.title)
    for run in runs:
        last = {metric.split("/", 1)[-1]: round(curve[-1][1], 4) for metric, curve in run.metrics.items()}
        speed = f"{run.images_per_second:.1f} images/s" if run.images_per_second else "speed unknown"
        print(f"{run.name}: {speed}; last values {last}")


if __name__ == "__main__":
    main()
