"""The embedded data set: what the drawings promise, and that they repeat."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

TOOLS = Path(__file__).resolve().parents[2] / "tools"
DATA = Path(__file__).resolve().parents[2] / "configs" / "quickstart_data"


@pytest.fixture
def make_quickstart(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("make_quickstart")


def _examples(path: Path) -> list[dict]:
    examples = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        examples.append({key: list(getattr(value, value.WhichOneof("kind")).value) for key, value in feature.items()})
    return examples


def test_the_same_bytes_when_run_again(make_quickstart, tmp_path):
    for folder in ("a", "b"):
        make_quickstart.write_target_data(tmp_path / folder, train=3, val=2)
    for name in ("train.record", "val.record", "label_map.pbtxt"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert len(first) > 50
    assert (tmp_path / "a" / "train.record").read_bytes()[:9000] not in (tmp_path / "a" / "val.record").read_bytes()


def test_scenes_keep_what_they_promise(make_quickstart):
    labels = []
    for scene in make_quickstart.scenes(5, 0, 20, make_quickstart.SOURCE_CLASSES):
        height, width = scene.image.shape[:2]
        assert scene.image.dtype == np.uint8
        assert 128 <= min(height, width) <= max(height, width) <= 160
        assert 1 <= len(scene.boxes) == len(scene.labels) <= 4
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= 1
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]) * [height, width] / min(height, width)
        assert np.all((0.12 <= sides.max(axis=1)) & (sides.max(axis=1) <= 0.6))
        labels += scene.labels.tolist()
    assert set(labels) == set(range(6))


def test_any_scene_can_be_drawn_alone(make_quickstart):
    series = list(make_quickstart.scenes(5, 0, 4, make_quickstart.TARGET_CLASSES))
    (alone,) = make_quickstart.scenes(5, 3, 1, make_quickstart.TARGET_CLASSES)
    np.testing.assert_array_equal(series[3].image, alone.image)


@pytest.mark.parametrize("name", ["mug", "star", "leaf", "ring", "house", "fish", "moon", "cross"])
def test_box_is_tight_around_the_object(make_quickstart, monkeypatch, name):
    """An object alone on a plain ground: what differs from the ground, shadow aside, fills the box."""
    scenes = importlib.import_module("quickstart_scenes")
    monkeypatch.setattr(scenes, "background", lambda rng, height, width: np.full((height, width, 3), 255.0))
    monkeypatch.setattr(scenes, "_distractor", lambda rng: [(np.zeros((3, 2)), 0.0)])
    drawn = next(s for s in make_quickstart.scenes(3, 0, 30, [name]) if len(s.boxes) == 1)
    height, width = drawn.image.shape[:2]
    saturated = np.ptp(drawn.image.astype(int), axis=-1) > 45
    rows, columns = np.nonzero(saturated.any(1))[0], np.nonzero(saturated.any(0))[0]
    found = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    np.testing.assert_allclose(found, drawn.boxes[0] * [height, width, height, width], atol=3)


def test_hidden_parts_add_up(make_quickstart):
    scenes = importlib.import_module("quickstart_scenes")

    def strip(start: int, stop: int) -> np.ndarray:
        mask = np.zeros((1, 300), bool)
        mask[0, start:stop] = True
        return mask

    bottom, middle = strip(100, 200), strip(20, 120)
    assert scenes._free(middle, [bottom])
    assert not scenes._free(strip(60, 160), [bottom])  # hides 60 of 100
    assert scenes._free(strip(180, 280), [bottom])
    assert not scenes._free(strip(180, 280), [bottom, middle])  # 20 and 20 of 100
    assert scenes._free(strip(190, 290), [bottom, middle])
    assert not scenes._free(strip(190, 200), [bottom])  # wholly on another


def test_the_embedded_data_are_what_the_tool_writes(make_quickstart):
    classes = make_quickstart.TARGET_CLASSES
    train, val = _examples(DATA / "train.record"), _examples(DATA / "val.record")
    assert (len(train), len(val)) == (200, 60)
    counts = np.zeros(4, int)
    for example, scene in zip(train[:2], make_quickstart.scenes(2, 0, 2, classes), strict=True):
        image = tf.io.decode_jpeg(example["image/encoded"][0]).numpy()
        assert np.abs(image.astype(int) - scene.image).mean() < 6
        np.testing.assert_allclose(example["image/object/bbox/ymin"], scene.boxes[:, 0])
    for example in train + val:
        assert [classes[i - 1].encode() for i in example["image/object/class/label"]] == example[
            "image/object/class/text"
        ]
        counts += np.bincount(example["image/object/class/label"], minlength=5)[1:]
    assert counts.min() > 100
    assert sum(path.stat().st_size for path in DATA.glob("*.*")) < 2.5e6
    assert "id: 4\n  name: 'ring'" in (DATA / "label_map.pbtxt").read_text()


def test_the_embedded_checkpoints_label_map_is_what_the_tool_writes(make_quickstart, tmp_path):
    make_quickstart.write_source_label_map(tmp_path)
    written = (tmp_path / "source" / "label_map.pbtxt").read_bytes()
    assert written == (DATA / "source" / "label_map.pbtxt").read_bytes()
    assert b"id: 6\n  name: 'cross'" in written
