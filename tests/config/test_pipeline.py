from __future__ import annotations

import os
import threading

import pytest
from google.protobuf import text_format

from od_finetune.config import pipeline
from od_finetune.errors import UserError

SSD = """\
model {
  ssd {  # comment with num_classes
    num_classes: 3
    image_resizer { fixed_shape_resizer { height: 300 width: 300 } }
    post_processing { batch_non_max_suppression { iou_threshold: 0.6 } }
  }
}
"""


@pytest.fixture
def write(tmp_path):
    def to(text: str, name: str = "my.config"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


@pytest.mark.parametrize(
    "text, line, column, parts",
    [
        ("model {\n  ssd {\n    num_clases: 3\n  }\n}\n", 3, 5, ["Ssd has no field 'num_clases'", "'num_classes'"]),
        # The parser reports the token after the name, here two lines further down.
        ("model {\n  ssd {\n    num_clases\n\n    : 3\n  }\n}\n", 3, 5, ["did you mean 'num_classes'?"]),
        ("modle { }\n", 1, 1, ["TrainEvalPipelineConfig has no field 'modle'", "did you mean 'model'?"]),
        ("train_config { zzz: 1 }\n", 1, 16, ["TrainConfig has no field 'zzz'", "choose one of batch_size,"]),
        (
            "train_config {\n  fine_tune_checkpoint_version: V3\n}\n",
            2,
            33,
            ["'V3' is no value of CheckpointVersion", "choose one of UNKNOWN, V1, V2"],
        ),
        ("train_config { batch_size: lots }\n", 1, 28, ["integer", "lots"]),
        ("train_config { batch_size: 4\n", 2, None, ["}"]),
        ("model { ssd { } faster_rcnn { } }\n", 1, None, ["faster_rcnn", "ssd"]),
        ("train_config { num_steps: 1 num_steps: 2 }\n", 1, None, ["num_steps"]),
    ],
)
def test_syntax_errors_say_where_and_what_instead(text, line, column, parts):
    with pytest.raises(pipeline.ConfigError) as caught:
        pipeline.parse(text, "my.config")
    error = caught.value
    assert error.line in ((line,) if column else (line, line - 1))
    if column:
        assert error.column == column
        assert str(error).startswith(f"my.config:{line}:{column}: ")
    for part in parts:
        assert part in str(error)


def test_load_reads_a_file_and_applies_overrides(write):
    config = pipeline.load(write(SSD), ["model.ssd.num_classes=7", "train_config.batch_size=2"])
    assert config.model.ssd.num_classes == 7
    assert config.train_config.batch_size == 2


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UserError, match=r"no/such\.config: no such file"):
        pipeline.load("no/such.config")
    with pytest.raises(UserError, match="is a folder"):
        pipeline.load(tmp_path)
    binary = tmp_path / "saved_model.pb"
    binary.write_bytes(b"\x08\x01\xff\xfe\x00")
    with pytest.raises(UserError, match="saved_model.pb: not a text file"):
        pipeline.load(binary)


def test_save_writes_what_load_reads(write, tmp_path):
    config = pipeline.load(write(SSD))
    target = pipeline.save(config, tmp_path / "runs" / "a")
    assert target == tmp_path / "runs" / "a" / "pipeline.config"
    assert pipeline.load(target) == config
    assert os.listdir(target.parent) == ["pipeline.config"]


def test_a_reader_never_sees_half_a_saved_config(tmp_path):
    """Saves over an existing file while another thread reads it."""
    config = pipeline.parse(SSD)
    config.train_config.freeze_variables.extend(f"layer_{index}/" for index in range(3000))
    target = pipeline.save(config, tmp_path)
    stop = threading.Event()

    def save_again() -> None:
        while not stop.is_set():
            pipeline.save(config, tmp_path)

    writer = threading.Thread(target=save_again)
    writer.start()
    try:
        lengths = {len(target.read_text()) for _ in range(200)}
    finally:
        stop.set()
        writer.join()
    assert lengths == {len(pipeline.to_text(config))}


def test_model_differences_ignore_spelling_and_postprocessing():
    old = pipeline.parse(SSD)
    new = pipeline.parse(SSD)
    new.model.ssd.post_processing.batch_non_max_suppression.iou_threshold = 0.3
    new.model.ssd.add_background_class = True  # the default, written out
    new.train_config.batch_size = 99
    assert pipeline.model_differences(old, new) == []


def test_model_differences_name_the_fields():
    old = pipeline.parse(SSD)
    new = pipeline.parse(SSD)
    new.model.ssd.num_classes = 5
    new.model.ssd.image_resizer.keep_aspect_ratio_resizer.min_dimension = 600
    new.model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios.extend([1.0, 2.0])
    text = "\n".join(pipeline.model_differences(old, new))
    assert "model.ssd.num_classes: 3 -> 5" in text
    assert "model.ssd.image_resizer.fixed_shape_resizer: {height: 300 width: 300} -> (not set)" in text
    assert "model.ssd.anchor_generator: (not set) -> " in text


def test_differences_find_a_changed_element():
    anchors = "model { ssd { anchor_generator { ssd_anchor_generator { aspect_ratios: [1.0, %s] } } } }"
    found = list(pipeline.differences(pipeline.parse(anchors % "2.0"), pipeline.parse(anchors % "0.5")))
    assert [path for path, _, _ in found] == ["model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios"]
    readers = "eval_input_reader { shuffle: false } eval_input_reader { label_map_path: '%s' }"
    found = list(pipeline.differences(pipeline.parse(readers % "a"), pipeline.parse(readers % "b")))
    assert found == [("eval_input_reader[1].label_map_path", "a", "b")]


def test_to_text_is_text_format():
    config = pipeline.parse(SSD)
    assert text_format.Parse(pipeline.to_text(config), type(config)()) == config
