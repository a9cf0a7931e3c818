"""From config and checkpoint to a deployed detector: `od-finetune export` and export_inference_graph.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.source import open_source
from od_finetune.cli import main as cli
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.config.export import restore_trained
from od_finetune.errors import UserError
from od_finetune.export import runner

CONFIG = Path(__file__).with_name("tiny_ssd.config")
ROOT = Path(__file__).parents[2]
BIASES = "BoxPredictor_0/ClassPredictor/biases"


def randomised(seed: int):
    """The config's detector with weights of its own: what training would leave behind."""
    detector = build_detector(pipeline.load(CONFIG).model)
    detector.build()
    generator = np.random.default_rng(seed)
    for name, variable in detector.named_variables().items():
        spread = np.abs(generator.normal(1, 0.2, variable.shape)) if name.endswith("variance") else None
        variable.assign(generator.normal(0, 0.3, variable.shape) if spread is None else spread)
    return detector


@pytest.fixture(scope="module")
def trained():
    return randomised(seed=3)


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """A model_dir as training leaves it, with moving averages that differ from the weights in one variable."""
    variables = trained.named_variables()
    averages = {BIASES: tf.Variable(variables[BIASES] + 1.0)}
    directory = tmp_path_factory.mktemp("model_dir")
    tf.train.Checkpoint(model=dict(variables), moving_average=averages, step=tf.Variable(7, dtype=tf.int64)).save(
        str(directory / "ckpt"))
    return directory


def detections(detector, images):
    inputs, shapes = detector.preprocess(tf.constant(images, tf.float32))
    return detector.postprocess(detector.predict(inputs, shapes), shapes)


def assert_same(outputs, found):
    assert int(outputs["num_detections"][0]) == int(found.num_detections[0]) > 0
    np.testing.assert_allclose(outputs["detection_boxes"], found.boxes, atol=1e-4)
    np.testing.assert_allclose(outputs["detection_scores"], found.scores, atol=1e-4)
    np.testing.assert_array_equal(outputs["detection_classes"], found.classes + 1)
    np.testing.assert_allclose(outputs["raw_detection_boxes"], found.raw_boxes, atol=1e-4)
    np.testing.assert_allclose(outputs["raw_detection_scores"], found.raw_scores, atol=1e-4)


@pytest.mark.slow
def test_command_exports_the_checkpoints_detections(trained, checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["export", f"--pipeline_config_path={CONFIG}", f"--trained_checkpoint_prefix={checkpoint}",
                     f"--output_directory={out}"]) == 0
    printed = capsys.readouterr().out
    assert "image_tensor:0" in printed and "frozen_inference_graph.pb" in printed
    found = detections(trained, images)
    for path in (out / "frozen_inference_graph.pb", out / "saved_model"):
        assert_same(runner.load(path)(images), found)
    assert pipeline.load(out / "pipeline.config") == pipeline.load(CONFIG)
    again = build_detector(pipeline.load(out / "pipeline.config").model)
    restore_trained(again, open_source(out / "checkpoint"))
    for name, variable in trained.named_variables().items():
        np.testing.assert_array_equal(again.named_variables()[name], variable, err_msg=name)


def test_averages_are_used_as_the_config_says(trained, checkpoint):
    detector = build_detector(pipeline.load(CONFIG).model)
    restore_trained(detector, open_source(checkpoint))
    np.testing.assert_array_equal(detector.named_variables()[BIASES], trained.named_variables()[BIASES])
    restore_trained(detector, open_source(checkpoint), use_moving_averages=True)
    for name, variable in trained.named_variables().items():
        shift = 1.0 if name == BIASES else 0.0
        np.testing.assert_array_equal(detector.named_variables()[name], variable + shift, err_msg=name)


def test_averages_that_are_not_there_are_an_error(trained, tmp_path):
    prefix = tf.train.Checkpoint(model=dict(trained.named_variables())).write(str(tmp_path / "plain"))
    with pytest.raises(UserError, match="has no moving averages, but eval_config.use_moving_averages"):
        restore_trained(build_detector(pipeline.load(CONFIG).model), open_source(prefix), use_moving_averages=True)


def test_checkpoint_of_another_number_of_classes_is_refused(checkpoint, tmp_path, capsys):
    arguments = ["export", f"--pipeline_config_path={CONFIG}", f"--trained_checkpoint_prefix={checkpoint}",
                 f"--output_directory={tmp_path / 'out'}", "--set", "model.ssd.num_classes=5"]
    assert cli.main(arguments) == 2
    assert BIASES in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def script(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "export_inference_graph.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


@pytest.mark.slow
def test_script_takes_the_od_apis_flags(trained, checkpoint, encoded, images, tmp_path):
    (tmp_path / "label_map.pbtxt").write_text("item { id: 1 name: 'a' }\nitem { id: 2 name: 'b' }\n")
    done = script(
        "--input_type=encoded_image_string_tensor", f"--pipeline_config_path={CONFIG}",
        f"--trained_checkpoint_prefix={tf.train.latest_checkpoint(str(checkpoint))}",
        f"--output_directory={tmp_path / 'out'}",
        f"--config_override=eval_input_reader {{ label_map_path: '{tmp_path / 'label_map.pbtxt'}' }}",
        "--write_inference_graph=False", "--use_side_inputs=False",
    )
    assert done.returncode == 0, done.stderr
    assert "encoded_image_string_tensor:0" in done.stdout
    outputs = runner.load(tmp_path / "out")(np.array(encoded, dtype=object))
    assert_same(outputs, detections(trained, images))
    assert (tmp_path / "out" / "label_map.pbtxt").read_text().startswith("item { id: 1")


def test_script_knows_which_models_take_side_inputs(tiny_config, tmp_path):
    done = script(f"--pipeline_config_path={tiny_config}", "--trained_checkpoint_prefix=y",
                  f"--output_directory={tmp_path / 'out'}", "--use_side_inputs")
    assert done.returncode == 2 and "--use_side_inputs: the model takes none" in done.stderr


@pytest.mark.parametrize(("flag", "message"), [
    ("--write_inference_graph", "saved_model/ holds the graph with its variables"),
    ("--side_input_names=a", "its side inputs are context_features, float32"),
    ("--trained_checkpoint_dir=there", "give one of"),
])
def test_script_says_what_it_cannot_obey(flag, message):
    done = script("--pipeline_config_path=x", "--trained_checkpoint_prefix=y", "--output_directory=z", flag)
    assert done.returncode == 2 and message in done.stdout + done.stderr
