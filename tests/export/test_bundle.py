from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.export import bundle


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_export_writes_and_reports_everything(tiny_detector, tmp_path):
    target = tmp_path / "nested" / "out"
    report = bundle.export(tiny_detector, target, "image_tensor", (1, None, None, 3),
                           pipeline_config="model {}\n", label_map="item { id: 1 name: 'a' }\n")
    assert set(report.files) == {path.name for path in target.iterdir()} == {
        "frozen_inference_graph.pb", "saved_model", "checkpoint", "pipeline.config", "label_map.pbtxt"}
    assert report.files["frozen_inference_graph.pb"] == (target / "frozen_inference_graph.pb").stat().st_size
    assert (target / "pipeline.config").read_text() == "model {}\n"
    text = report.text()
    assert "image_tensor:0" in text and "uint8" in text and "[1, ?, ?, 3]" in text
    assert "detection_classes:0" in text and "frozen_inference_graph.pb" in text
    assert [path.name for path in target.parent.iterdir()] == ["out"], "the scratch directory stayed behind"


def test_checkpoint_moves_with_its_directory(tiny_detector, tmp_path):
    bundle.export(tiny_detector, tmp_path / "out", "image_tensor", formats=())
    (tmp_path / "out").rename(tmp_path / "moved")
    latest = tf.train.latest_checkpoint(str(tmp_path / "moved" / "checkpoint"))
    value = tf.train.load_checkpoint(latest).get_tensor("model/BoxPredictor.SConv.Sbiases/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_array_equal(value, tiny_detector.named_variables()["BoxPredictor/Conv/biases"].numpy())


def test_existing_output_is_refused_then_replaced(tiny_detector, tmp_path):
    bundle.export(tiny_detector, tmp_path / "out", "image_tensor", label_map="old", formats=())
    with pytest.raises(UserError, match="is not empty.*--overwrite"):
        bundle.export(tiny_detector, tmp_path / "out", "image_tensor", formats=())
    bundle.export(tiny_detector, tmp_path / "out", "image_tensor", formats=(), overwrite=True)
    assert not (tmp_path / "out" / "label_map.pbtxt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_never_replaces_what_is_no_export(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex, which no export wrote"):
        bundle.check_directory(tmp_path, overwrite=True)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        bundle.check_directory(tmp_path / "out")


def test_a_failed_export_leaves_the_old_one_untouched(tiny_detector, tmp_path):
    bundle.export(tiny_detector, tmp_path / "out", "image_tensor", pipeline_config="old", formats=())
    before = contents(tmp_path / "out")
    with pytest.raises(RuntimeError, match="disk full"):
        with bundle.replacing(tmp_path / "out", overwrite=True) as folder:
            (folder / "pipeline.config").write_text("half of the n")
            raise RuntimeError("disk full")
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_unknown_format_is_refused(tiny_detector, tmp_path):
    with pytest.raises(UserError, match="onnx is unknown; choose from frozen_graph, saved_model"):
        bundle.export(tiny_detector, tmp_path / "out", "image_tensor", formats=("onnx",))
    assert not (tmp_path / "out").exists()
