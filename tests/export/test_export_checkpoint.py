"""Back to installations of the OD API: `od-finetune export checkpoint`, and the way there and back again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.source import open_source
from od_finetune.cli import main as cli
from od_finetune.config import counterparts, pipeline
from od_finetune.config.detector import build_detector
from od_finetune.config.export import restore_trained
from od_finetune.config.export_checkpoint import export_checkpoint
from od_finetune.errors import UserError

CONFIG = Path(__file__).with_name("tiny_ssd.config")
ROOT = Path(__file__).parents[2]
STEP = 7
AVERAGED = "BoxPredictor_0/ClassPredictor/biases"
EXTRACTOR = "model.ssd.feature_extractor"
HEAD = "model.ssd.box_predictor.convolutional_box_predictor"

# Other detectors: the tiny one with what changes its layers.
VARIANTS = {
    "lite": [f"{HEAD}.use_depthwise=true", f"{HEAD}.kernel_size=3", f"{EXTRACTOR}.use_depthwise=true"],
    "padded": [f"{EXTRACTOR}.use_explicit_padding=true", f"{EXTRACTOR}.num_layers=4",
               "model.ssd.anchor_generator.ssd_anchor_generator.num_layers=4"],
    "deep head": [f"{HEAD}.num_layers_before_predictor=2", f"{HEAD}.max_depth=8", f"{HEAD}.min_depth=4",
                  f"{HEAD}.use_dropout=true", "model.ssd.num_classes=5"],
}  # fmt: skip
PYRAMID = [
    f"{EXTRACTOR}.type=ssd_mobilenet_v1_fpn",
    f"{EXTRACTOR}.fpn={{additional_layer_depth: 16}}",
    "model.ssd.anchor_generator={multiscale_anchor_generator {min_level: 3 max_level: 7 aspect_ratios: 1.0}}",
]


def randomised(config):
    detector = build_detector(config.model)
    generator = np.random.default_rng(3)
    for name, variable in detector.named_variables().items():
        values = generator.normal(0, 0.3, variable.shape)
        variable.assign(np.abs(values) + 0.5 if name.endswith("variance") else values)
    return detector


def save(detector, directory):
    """As training does, with a moving average of one variable."""
    variables = detector.named_variables()
    averages = {AVERAGED: tf.Variable(variables[AVERAGED] + 1.0)}
    tf.train.Checkpoint(
        model=dict(variables), moving_average=averages, step=tf.Variable(STEP, dtype=tf.int64)
    ).save(str(directory / "ckpt"))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory of a run, its config, its variables' values)"""
    config = pipeline.load(CONFIG)
    detector = randomised(config)
    values = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    return save(detector, tmp_path_factory.mktemp("run")), config, values


def restored(checkpoint, config):
    detector = build_detector(config.model)
    restore_trained(detector, open_source(checkpoint))
    return {name: variable.numpy() for name, variable in detector.named_variables().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].tobytes() == value.tobytes(), name


def test_command_writes_tf1(run, tmp_path, capsys):
    directory, config, values = run
    out = tmp_path / "out"
    call = ["export", "checkpoint", "--format=tf1", f"--pipeline_config_path={CONFIG}", f"--output_directory={out}"]
    assert cli.main([*call, f"--trained_checkpoint_dir={directory}"]) == 0
    files = ["checkpoint", "model.ckpt.data-00000-of-00001", "model.ckpt.index", "pipeline.config"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert f"{len(values)} variables of {directory}/ckpt-1 (step 7) -> {out}/model.ckpt" in capsys.readouterr().out
    moved = out.rename(tmp_path / "moved")
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(moved)))
    types = reader.get_variable_to_dtype_map()
    assert types.pop("global_step") == tf.int64 and reader.get_tensor("global_step") == STEP
    assert_same({name: reader.get_tensor(name) for name in types}, values)
    written = pipeline.load(moved / "pipeline.config")
    assert written == config
    assert_same(restored(moved, written), values)


def test_command_writes_tf2(run, tmp_path, capsys):
    directory, _, values = run
    out = tmp_path / "out"
    call = ["export", "checkpoint", "--format=tf2", f"--pipeline_config_path={CONFIG}", f"--output_directory={out}"]
    assert cli.main([*call, f"--trained_checkpoint_prefix={directory}"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "pipeline.config"]
    assert "type is ssd_mobilenet_v1_keras, its TF2 counterpart" in capsys.readouterr().out
    written = pipeline.load(out / "pipeline.config")
    assert written.model.ssd.feature_extractor.type == "ssd_mobilenet_v1_keras"
    assert tf.train.latest_checkpoint(str(out / "checkpoint")) == str(out / "checkpoint" / "ckpt-0")
    assert open_source(out).kind == "TF2 object-based checkpoint"
    assert_same(restored(out, written), values)
    # It is an export: replaced if that is asked for, and only then.
    assert cli.main([*call, f"--trained_checkpoint_prefix={directory}"]) == 2
    call[2] = "--format=tf1"
    assert cli.main([*call, f"--trained_checkpoint_prefix={directory}", "--overwrite"]) == 0
    assert (out / "model.ckpt.index").exists()


def assert_holds(checkpoint, half, detector):
    """Every tensor of an exported checkpoint is the detector's, bit by bit."""
    source = open_source(checkpoint)
    variables = detector.named_variables()
    names = detector.tf2_names() if half == "tf2" else dict(zip(variables, variables, strict=True))
    assert source.names().keys() == set(names.values())
    for name, variable in variables.items():
        assert source.read(names[name]).tobytes() == variable.numpy().tobytes(), name


@pytest.mark.parametrize(
    "overrides", ["lite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("padded", "deep head"))]
)
def test_there_and_back(overrides, tmp_path):
    config = pipeline.load(CONFIG, VARIANTS[overrides])
    detector = randomised(config)
    export_checkpoint(config, save(detector, tmp_path / "run"), tmp_path / "tf2", "tf2")
    assert_holds(tmp_path / "tf2", "tf2", detector)
    there = pipeline.load(tmp_path / "tf2" / "pipeline.config")
    assert there.model.ssd.feature_extractor.type == "ssd_mobilenet_v1_keras"
    export_checkpoint(there, tmp_path / "tf2", tmp_path / "tf1", "tf1")
    assert_holds(tmp_path / "tf1", "tf1", detector)
    assert pipeline.load(tmp_path / "tf1" / "pipeline.config") == config


@pytest.mark.slow
def test_the_published_coco_checkpoint_there_and_back(shared, tmp_path):
    folder = shared / "data" / "ssdlite_mobilenet_v2_coco"
    config = pipeline.load(folder / "pipeline.config")
    export_checkpoint(config, folder / "model.ckpt", tmp_path / "tf2", "tf2")
    export_checkpoint(pipeline.load(tmp_path / "tf2" / "pipeline.config"), tmp_path / "tf2", tmp_path / "tf1", "tf1")
    before, after = (tf.train.load_checkpoint(str(path / "model.ckpt")) for path in (folder, tmp_path / "tf1"))
    names = before.get_variable_to_shape_map()
    assert len(names) == 405
    assert_same(*({name: np.asarray(each.get_tensor(name)) for name in each.get_variable_to_shape_map()}
                  for each in (after, before)))


@pytest.mark.parametrize("half", ["tf1", "tf2"])
@pytest.mark.slow
def test_averages(run, tmp_path, half):
    directory, config, values = run
    export_checkpoint(config, directory, tmp_path / "out", half, use_moving_averages=True)
    written = pipeline.load(tmp_path / "out" / "pipeline.config")
    assert_same(restored(tmp_path / "out", written), {**values, AVERAGED: values[AVERAGED] + np.float32(1)})


def test_averages_as_the_config_says(run, tmp_path):
    directory, _, values = run
    config = pipeline.load(CONFIG, ["eval_config.use_moving_averages=true"])
    report = export_checkpoint(config, directory, tmp_path / "out", "tf1")
    assert any("use_moving_averages is false" in note for note in report.notes)
    written = pipeline.load(tmp_path / "out" / "pipeline.config")
    assert not written.eval_config.use_moving_averages
    assert_same(restored(tmp_path / "out", written), {**values, AVERAGED: values[AVERAGED] + np.float32(1)})


@pytest.mark.slow
def test_pyramid_goes_to_its_own_half_only(tmp_path):
    """TF2 hands the smoothed map down, TF1 the sum before it: the weights of one are no use to the other."""
    config = pipeline.load(CONFIG, PYRAMID)
    detector = randomised(config)
    expected = {name: variable.numpy() for name, variable in detector.named_variables().items()}
    source = save(detector, tmp_path / "run")
    export_checkpoint(config, source, tmp_path / "tf1", "tf1")
    assert_same(restored(tmp_path / "tf1", config), expected)
    with pytest.raises(UserError, match="ssd_mobilenet_v1_fpn_keras of the OD API is no replacement for .*_fpn: with "
                                        "the same weights box_encodings of the same image differ by up to"):
        export_checkpoint(config, source, tmp_path / "tf2", "tf2")
    assert not (tmp_path / "tf2").exists()


@pytest.mark.slow
def test_other_activation_in_the_other_half(tmp_path):
    """TF1's MobileNet V2 has ReLU6 whatever the config says."""
    overrides = [f"{EXTRACTOR}.type=ssd_mobilenet_v2_keras", f"{EXTRACTOR}.conv_hyperparams.activation=RELU",
                 f"{EXTRACTOR}.override_base_feature_extractor_hyperparams=true"]
    config = pipeline.load(CONFIG, overrides)
    source = save(randomised(config), tmp_path / "run")
    with pytest.raises(UserError, match="ssd_mobilenet_v2 of the OD API is no replacement .* differ by up to"):
        export_checkpoint(config, source, tmp_path / "out", "tf1")


@pytest.mark.slow
def test_what_only_decays_differently_is_said(tmp_path):
    config = pipeline.load(CONFIG, [f"{EXTRACTOR}.type=ssd_mobilenet_v2"])
    source = save(randomised(config), tmp_path / "run")
    report = export_checkpoint(config, source, tmp_path / "out", "tf2")
    assert report.notes[-1].startswith("in training by ssd_mobilenet_v2_keras, 17 variables decay there only, e.g. ")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["export"], "required: --pipeline_config_path"),
        (["export", "--pipeline_config_path=a", "--output_directory=b"], "required: --trained_checkpoint_prefix"),
        (["export", "checkpoint", "--pipeline_config_path=a", "--output_directory=b", "--trained_checkpoint_dir=c"],
         "required: --format"),
        (["export", "checkpoint", "--format=tf3"], "invalid choice: 'tf3'"),
        (["export", "chckpoint"], "invalid choice: 'chckpoint'"),
    ],
)  # fmt: skip
def test_calls_that_make_no_sense(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and said in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_config_for_an_installation():
    config = pipeline.load(CONFIG, [
        "train_config.fine_tune_checkpoint=zoo:mobilenet_v2", "train_config.freeze_through=layer_7",
        "train_config.learning_rate_multiplier={pattern: 'a' multiplier: 2}", "eval_config.best_metric=mAP",
        "train_config.optimizer={adam_optimizer {}}",
    ])  # fmt: skip
    changed, notes = counterparts.for_installation(config, "tf2")
    assert changed.train_config.fine_tune_checkpoint == "PATH_TO_BE_CONFIGURED"
    assert pipeline.parse(pipeline.to_text(changed)).train_config.fine_tune_checkpoint_version == 2
    assert "freeze_through" not in pipeline.to_text(changed) and "best_metric" not in pipeline.to_text(changed)
    assert "adam_optimizer" in pipeline.to_text(changed)
    removed = "train_config.learning_rate_multiplier, train_config.freeze_through, eval_config.best_metric"
    assert f"fields that only od_finetune has are left out: {removed}" in notes
    assert config.train_config.freeze_through  # the config that was given stays as it was
    again, notes = counterparts.for_installation(changed, "tf1")
    assert again.model == config.model and "train_config.fine_tune_checkpoint_version is V1" in notes


@pytest.mark.parametrize(
    "overrides, said",
    [
        ([f"{EXTRACTOR}.type=ssd_unheard_of"], "'ssd_unheard_of' has no counterpart in the TF2 half"),
        ([f"{EXTRACTOR}.type=ssd_mobiledet_dsp"], "'ssd_mobiledet_dsp' has no counterpart in the TF2 half"),
        ([f"{EXTRACTOR}.num_layers=1"], "num_layers: found 1; an installation of the OD API would look for layers"),
        ([*PYRAMID, f"{EXTRACTOR}.fpn.max_level=4"], "fpn.max_level: found 4; an installation"),
    ],
)
def test_refused_before_anything_is_read(overrides, said, tmp_path):
    with pytest.raises(UserError, match=said):
        export_checkpoint(pipeline.load(CONFIG, overrides), tmp_path / "nothing", tmp_path / "out", "tf2")
