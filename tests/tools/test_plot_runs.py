"""Reading runs for the comparison plot."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MAP, AP50 = "DetectionBoxes_Precision/mAP", "DetectionBoxes_Precision/mAP@.50IOU"


@pytest.fixture
def plot_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("plot_runs")


def _write_events(directory: Path) -> None:
    with tf.summary.create_file_writer(str(directory / "train")).as_default():
        for step, rate in ((10, 1.0), (20, 8.0), (40, 16.0), (60, 8.0)):
            tf.summary.scalar("images_per_second", rate, step)
            tf.summary.scalar("Loss/total_loss", 1.0, step)
    with tf.summary.create_file_writer(str(directory / "eval")).as_default():
        for step in (20, 60):
            tf.summary.scalar(MAP, step / 100, step)
            tf.summary.scalar("Loss/total_loss", 2.0, step)
            tf.summary.image("pictures", np.zeros((1, 4, 4, 3)), step)


def test_events_of_a_model_dir(plot_runs, tmp_path):
    _write_events(tmp_path)
    run = plot_runs.read_run("a", tmp_path, batch_size=4)
    assert run.metrics == {MAP: [(20, pytest.approx(0.2)), (60, pytest.approx(0.6))]}
    assert run.images_per_second == 8.0  # the first interval builds the graph
    assert run.seconds == [(0, 0.0), (10, 40.0), (20, 45.0), (40, 50.0), (60, 60.0)]
    points = list(plot_runs._points(run, MAP, against_seconds=True))
    assert points == [(45.0, pytest.approx(0.2)), (60.0, pytest.approx(0.6))]


def test_batch_size_comes_from_the_config(plot_runs, tmp_path):
    _write_events(tmp_path)
    with pytest.raises(SystemExit, match=r"pipeline\.config: does not exist; say --batch_size"):
        plot_runs.read_run("a", tmp_path)
    (tmp_path / "pipeline.config").write_text("train_config { batch_size: 8 }")
    assert plot_runs.read_run("a", tmp_path).seconds[1] == (10, 80.0)


def test_lines_of_a_file_and_the_picture(plot_runs, tmp_path):
    lines = [{"step": s, "seconds": s / 2, "images_per_second": 9.0, MAP: s / 80, AP50: -1.0} for s in (40, 10)]
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    _write_events(tmp_path / "a")
    runs = [plot_runs.read_run("a", tmp_path / "a", 4), plot_runs.read_run("b", path)]
    assert runs[1].metrics[MAP] == [(10, 0.125), (40, 0.5)]
    assert list(plot_runs._points(runs[1], AP50, against_seconds=False)) == []  # -1: nothing to measure
    plot_runs.plot(runs, plot_runs.METRICS, tmp_path / "docs" / "plot.png", "two runs")
    picture = np.asarray(Image.open(tmp_path / "docs" / "plot.png").convert("RGB")).reshape(-1, 3)
    for color in ((0x25, 0x63, 0xEB), (0xEA, 0x58, 0x0C)):
        assert np.all(picture == color, axis=1).sum() > 500


def test_nothing_to_plot(plot_runs, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "eval").mkdir()
    with pytest.raises(SystemExit, match="holds no evaluation"):
        plot_runs.read_run("a", tmp_path)
