"""The measurements of docs/classes.md: their records, their configs, their table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.config import class_transfer, pipeline

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.chdir(TOOLS.parent)
    return importlib.import_module("measure_class_transfer")


def test_records_label_the_new_classes_alone_in_pictures_that_show_others(tool, tmp_path):
    written = tool.write_new_only(tmp_path / "new.record", count=12)
    texts = []
    for record in tf.data.TFRecordDataset(str(tmp_path / "new.record")).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        found = [text.decode() for text in feature["image/object/class/text"].bytes_list.value]
        assert found and len(feature["image/object/bbox/ymin"].float_list.value) == len(found)
        texts += found
    assert set(texts) == {"mug", "leaf"} and 0 < written < 12
    names = tool.make_quickstart.TARGET_CLASSES
    scenes = list(tool.make_quickstart.scenes(tool.make_quickstart.TARGET_SEED, 0, 12, names))
    shown = [[names[label] for label in scene.labels] for scene in scenes]
    assert sum(name in tool.NEW for picture in shown for name in picture) == len(texts)
    (first, *_) = tool.only_labelled(iter(scenes), [0, 2])
    assert np.isin(first.labels, [0, 2]).all() and len(first.boxes) == len(first.labels)


def test_every_way_is_a_config_that_makes_sense(tool, tmp_path):
    (tmp_path / "new_only").mkdir()
    (tmp_path / "new_only" / "train.record").touch()
    for study in (tool.transfer_study(), tool.keep_study(tmp_path)):
        assert list(study.ways)[0] in ("fresh head", "plain")
        for way, overrides in study.ways.items():
            config = pipeline.load(study.config, study.common + overrides)
            transfer, kept = class_transfer.class_transfer(config), class_transfer.kept_classes(config)
            assert (transfer is None) == (way == "fresh head")
            assert kept is None or list(kept.ids) == ["star", "ring"]
            assert (kept is None) == ("frozen" not in way and "distilled" not in way)
        changed = pipeline.load(study.config, (tool.SCHEDULE.format(study.optimizer, 7),))
        assert changed.train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate.total_steps == 7


def test_results_and_table(tool, tmp_path):
    path = tmp_path / "run" / "eval" / "results.jsonl"
    assert tool.last_step(tmp_path / "run") == -1
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps({"step": step, "AP": step / 10}) + "\n" for step in (0, 5)))
    assert tool.last_step(tmp_path / "run") == 5 and tool.results(tmp_path / "run")[5] == {"AP": 0.5}
    measured = {"plain": {0: {"star": 0.1, "ring": 0.3}, 5: {"star": 0.0, "ring": 0.0}}}
    lines = tool.table(measured, {"old": ("star", "ring")}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [["", "old, step 0", "old, step 5"], ["---", "---:", "---:"], ["plain", "0.20", "0.00"]]
