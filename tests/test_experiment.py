"""The main job end to end: what a run leaves behind, how it goes on, and what it says of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from od_finetune import experiment
from od_finetune.checkpoints.source import open_source
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.config.export import restore_trained
from od_finetune.errors import UserError
from od_finetune.export import runner
from od_finetune.training.evaluator import IMAGE_TAG
from od_finetune.training.trainer import NotFiniteError

DATA = Path(__file__).resolve().parents[1] / "configs" / "quickstart_data"
SOURCE = DATA / "source" / "model.ckpt"
TRAIN_PATH = "train_input_reader.tf_record_input_reader.input_path[0]"
NO_EVALUATION = "eval_input_reader="


@pytest.fixture
def run(tiny_config, tmp_path):
    """Trains the tiny config with changes in `model_dir` (the test's own by default); returns the exit code."""

    def start(*overrides: str, model_dir: Path = tmp_path / "run", config: Path = tiny_config, **options) -> int:
        return experiment.train_and_evaluate(experiment.Options(str(config), str(model_dir), overrides, **options))

    return start


@pytest.fixture
def continued(trained, tmp_path) -> Path:
    """A copy of the trained model_dir, to go on in."""
    return Path(shutil.copytree(trained.model_dir, tmp_path / "run"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    source = open_source(checkpoint)
    return {name: source.read(name) for name in source.names()}


def read_events(directory: Path) -> dict[str, tf.TensorProto]:
    """The last value of each tag."""
    values = {}
    for path in directory.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            values.update({value.tag: value.tensor for value in event.summary.value})
    return values


def test_restores_everything_but_the_class_head(trained):
    plan = read_json(trained.model_dir / "restore_plan.json")
    assert plan["checkpoint"] == str(SOURCE) and plan["type"] == "detection" and plan["problem"] is None
    fresh = {row["name"] for row in plan["rows"] if row["status"] != "restored"}
    heads = ("BoxPredictor_0/ClassPredictor", "BoxPredictor_1/ClassPredictor")
    assert fresh == {f"{head}/{leaf}" for head in heads for leaf in ("weights", "biases")}
    assert plan["counts"]["restored"] == len(plan["rows"]) - 4 > 100
    assert plan["class_head"] in trained.said


def test_frozen_is_untouched_and_the_rest_has_moved(trained):
    plan = read_json(trained.model_dir / "freeze_plan.json")
    before, after = weights(SOURCE), weights(trained.model_dir / "ckpt-2")
    rows = [row for row in plan["variables"] if "ClassPredictor" not in row["name"]]
    frozen = {row["name"] for row in rows if "frozen" in row["state"]}
    same = {row["name"] for row in rows if np.array_equal(before[row["name"]], after[row["name"]])}
    assert frozen == same
    assert {name.split("/")[2].split("_")[1] for name in frozen} == set("012345")
    assert any(name.endswith("moving_variance") for name in frozen) and len(rows) > 1.5 * len(frozen)
    multipliers = {row["multiplier"] for row in plan["variables"] if "ClassPredictor" in row["name"]}
    assert multipliers == {3.0}
    assert "Freeze plan:" in trained.said


def test_leaves_checkpoint_best_results_and_picture(trained):
    assert trained.exit_code == 0
    assert tf.train.latest_checkpoint(str(trained.model_dir)) == str(trained.model_dir / "ckpt-2")
    best = read_json(trained.model_dir / "best" / "best.json")
    results = read_json(trained.model_dir / "eval" / "results.json")
    assert results["step"] == best["step"] == 2
    assert results["results"][best["metric"]] == best["value"]
    assert {"DetectionBoxes_Precision/mAP", "PascalBoxes_Precision/mAP@0.5IOU", "Loss/total_loss"} <= results[
        "results"].keys()
    with Image.open(trained.model_dir / "eval" / "detections.png") as picture:
        assert picture.width > 200 and picture.height > 100
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # photographs, not a blank sheet


def test_writes_events_of_training_and_evaluation(trained):
    training, evaluation = (read_events(trained.model_dir / name) for name in ("train", "eval"))
    assert {"Loss/total_loss", "Loss/regularization_loss", "learning_rate", "images_per_second"} <= training.keys()
    assert tf.make_ndarray(training["learning_rate"]) == pytest.approx(0.01)
    results = read_json(trained.model_dir / "eval" / "results.json")["results"]
    assert tf.make_ndarray(evaluation["Loss/total_loss"]) == pytest.approx(results["Loss/total_loss"])
    assert tf.make_ndarray(evaluation["PascalBoxes_Precision/mAP@0.5IOU"]) == pytest.approx(
        results["PascalBoxes_Precision/mAP@0.5IOU"])
    pictures = [tag for tag in evaluation if tag.startswith(IMAGE_TAG)]
    assert len(pictures) == 2
    assert tf.io.decode_png(tf.make_ndarray(evaluation[pictures[0]])[2]).shape[-1] == 3


def test_exports_the_best_checkpoints_detections(trained):
    detector = build_detector(pipeline.load(trained.model_dir / "pipeline.config").model)
    restore_trained(detector, open_source(trained.model_dir / "best"))
    record = next(iter(tf.data.TFRecordDataset(str(DATA / "val.record")))).numpy()
    encoded = tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0]
    images = tf.io.decode_image(encoded)[None].numpy()
    inputs, shapes = detector.preprocess(tf.constant(images, tf.float32))
    expected = detector.postprocess(detector.predict(inputs, shapes), shapes)
    found = runner.load(trained.export_dir / "frozen_inference_graph.pb")(images)
    assert int(found["num_detections"][0]) == int(expected.num_detections[0]) > 0
    np.testing.assert_allclose(found["detection_boxes"], expected.boxes, atol=1e-4)
    np.testing.assert_allclose(found["detection_scores"], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["detection_classes"], expected.classes + 1)
    assert {"saved_model", "checkpoint", "pipeline.config", "label_map.pbtxt"} <= {
        path.name for path in trained.export_dir.iterdir()}


def test_continues_where_it_stopped_until_it_no_longer_improves(run, continued, eager, capsys):
    before = weights(continued / "ckpt-2")
    (continued / "restore_plan.json").unlink()
    patience = ("eval_config.early_stopping_patience=1", "eval_config.early_stopping_min_delta=2")  # an mAP is below 2
    assert run(*patience, model_dir=continued, num_train_steps=100) == 0
    said = capsys.readouterr().err
    assert f"Continuing from {continued}/ckpt-2 at step 2" in said and "step 3/100" in said
    assert "DetectionBoxes_Precision/mAP stopped improving: stopping at step 4" in said
    assert not (continued / "restore_plan.json").exists()  # nothing was restored from fine_tune_checkpoint again
    assert read_json(continued / "eval" / "results.json")["step"] == 4
    after = weights(continued / "ckpt-4")
    states = {row["name"]: row["state"] for row in read_json(continued / "freeze_plan.json")["variables"]}
    assert {name for name in after if np.array_equal(before[name], after[name])} == {
        name for name, state in states.items() if "frozen" in state}


def test_a_complete_run_stays_as_it_is(run, continued, eager):
    first = read_json(continued / "eval" / "results.json")
    written = (continued / "ckpt-2.index").stat().st_mtime_ns
    assert run(model_dir=continued) == 0
    again = read_json(continued / "eval" / "results.json")
    assert again["step"] == 2 and again["results"] == pytest.approx(first["results"], abs=1e-4)
    assert (continued / "ckpt-2.index").stat().st_mtime_ns == written
    assert not list(continued.glob("ckpt-[013456789]*"))


def test_model_dir_of_another_config_is_refused(run, trained):
    saved = (trained.model_dir / "pipeline.config").read_bytes()
    with pytest.raises(UserError) as error:
        run("model.ssd.num_classes=5", "model.ssd.feature_extractor.depth_multiplier=0.5", model_dir=trained.model_dir)
    for said in (f"{trained.model_dir} holds checkpoints of another model", "model.ssd.num_classes: 4 -> 5",
                 "model.ssd.feature_extractor.depth_multiplier: 0.25 -> 0.5", "new --model_dir"):
        assert said in str(error.value)
    assert (trained.model_dir / "pipeline.config").read_bytes() == saved


@pytest.mark.parametrize(("override", "expected"), [
    (f"{TRAIN_PATH}=none.record", f"{TRAIN_PATH}: no file matches 'none.record'"),
    ("train_config.fine_tune_checkpoint=no/model.ckpt", "fine_tune_checkpoint: no checkpoint 'no/model.ckpt'"),
    ("train_input_reader.label_map_path=", "train_input_reader.label_map_path: is not set; name the label map"),
    ("model.ssd.num_classes=3", "largest id is 4, but the model has num_classes 3; set num_classes to 4"),
    ("train_config.data_augmentation_options[+]={autoaugment_image {}}", "data_augmentation_options[1]"),
    ("train_config.summarize_gradients=true", "TrainConfig.summarize_gradients is set but not honoured"),
    ("train_config.data_augmentation_options[+]={random_flip {}}", "did you mean 'random_"),
    ("train_config.freeze_variables[0]=FeatureExtractor/MobilenetV2", "The nearest names are: FeatureExtractor/Mobi"),
], ids=[
    "missing record", "missing checkpoint", "no label map", "num_classes below the label map's", "unhonoured step",
    "unhonoured field", "unknown step", "pattern without match",
])  # fmt: skip
def test_config_that_cannot_be_run(run, tmp_path, override, expected):
    with pytest.raises(UserError) as error:
        run(override)
    assert expected in str(error.value)
    assert not list(tmp_path.glob("run/ckpt-*"))


def test_config_typo_names_line_and_nearest_field(run, tiny_config, tmp_path):
    config = tmp_path / "typo.config"
    text = tiny_config.read_text()
    config.write_text(text.replace("batch_size: 2", "batchsize: 2", 1))
    line = text[: text.index("batch_size: 2")].count("\n") + 1
    expected = rf"typo.config:{line}:3: TrainConfig has no field 'batchsize'; did you mean 'batch_size'\?"
    with pytest.raises(UserError, match=expected):
        run(config=config)


@pytest.mark.slow
def test_unhonoured_fields_are_left_out_if_allowed(run, tmp_path, eager, caplog):
    step = "train_config.data_augmentation_options[+]={autoaugment_image {}}"
    assert run(step, NO_EVALUATION, allow_unhonoured=True, num_train_steps=1) == 0
    assert "autoaugment_image is set but not honoured" in caplog.text
    assert "autoaugment" not in (tmp_path / "run" / "pipeline.config").read_text()
    assert (tmp_path / "run" / "ckpt-1.index").exists()


@pytest.mark.parametrize(("kept", "expected"), [
    (0, "train.record' is empty; write the records anew"),
    (-20, "train.record: cut short in record 199: the file has "),
], ids=["empty", "cut short"])  # fmt: skip
def test_record_file_that_is_not_whole(run, tmp_path, eager, kept, expected):
    path = tmp_path / "train.record"
    content = (DATA / "train.record").read_bytes()
    path.write_bytes(content[:kept])
    with pytest.raises(UserError) as error:
        run(f"{TRAIN_PATH}={path}", NO_EVALUATION)
    assert expected in str(error.value)


@pytest.mark.parametrize(("change", "expected"), [
    ({"ymax": 1.4}, "box 0 (ymin, xmin, ymax, xmax) is [0.1, 0.2, 1.4, 0.7], expected coordinates divided by"),
    ({"label": 0}, "label id 0 of box 0, expected 1 to 4 (num_classes; 0 is the background)"),
    ({"label": 5}, "label id 5 of box 0, expected 1 to 4"),
], ids=["box outside", "label 0", "label above num_classes"])  # fmt: skip
def test_bad_record_is_named_before_the_first_step(run, broken_records, tmp_path, eager, change, expected):
    path = broken_records(**change)
    with pytest.raises(UserError) as error:
        run(f"{TRAIN_PATH}={path}", NO_EVALUATION)
    assert str(error.value).startswith(f"{path}:1 broken.png: ") and expected in str(error.value)
    # The plans were there before anything was trained, and no checkpoint that the next run would go on from.
    assert {"restore_plan.json", "freeze_plan.json"} <= {entry.name for entry in (tmp_path / "run").iterdir()}
    assert not list((tmp_path / "run").glob("ckpt-*"))


def test_checkpoint_of_another_architecture(run, eager):
    with pytest.raises(UserError) as error:
        run("model.ssd.feature_extractor.depth_multiplier=0.5")
    for said in (str(SOURCE), "another architecture", "Check depth_multiplier"):
        assert said in str(error.value)


@pytest.mark.parametrize(("kept", "expected"), [
    (None, r"half-written or incompletely copied checkpoint: there is model.ckpt.index, but no model.ckpt.data-00000"),
    (1000, r"half-written or damaged checkpoint: the data files have 1000 bytes, the index promises at least"),
], ids=["shard missing", "shard cut short"])  # fmt: skip
def test_half_written_checkpoint(run, tmp_path, kept, expected):
    shutil.copy(f"{SOURCE}.index", tmp_path)
    if kept is not None:
        shard = "model.ckpt.data-00000-of-00001"
        (tmp_path / shard).write_bytes(SOURCE.with_name(shard).read_bytes()[:kept])
    with pytest.raises(UserError, match=expected):
        run(f"train_config.fine_tune_checkpoint={tmp_path / 'model.ckpt'}")


@pytest.mark.slow
def test_loss_that_is_no_number_stops_the_run(run, tmp_path, eager):
    rate = "train_config.optimizer={momentum_optimizer {learning_rate {constant_learning_rate {learning_rate: 1e30}}}}"
    with pytest.raises(NotFiniteError) as error:
        run(rate, NO_EVALUATION, num_train_steps=10, checkpoint_every_n=1)
    for said in ("Step 2: the loss or its gradient is not finite", f"{DATA}/train.record:", "lower the learning rate",
                 f"The last good checkpoint: {tmp_path}/run/ckpt-1."):
        assert said in str(error.value)
