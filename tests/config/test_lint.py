from __future__ import annotations

import json

import pytest
import two_stage
from lint_config import only

from od_finetune.cli.main import main
from od_finetune.config import lint, pipeline, positions
from od_finetune.config.finding import ERROR, INFO, WARNING
from od_finetune.errors import UserError
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig


def test_a_good_config_has_no_finding(findings):
    assert findings() == []


@pytest.mark.parametrize(
    "override, path, parts",
    [
        ("train_config.batch_size=0", "train_config.batch_size", ["is 0", "at least 1"]),
        ("model.ssd.num_classes=0", "model.ssd.num_classes", ["found 0", "at least 1"]),
        ("model.ssd.matcher.argmax_matcher.matched_threshold=1.5", "", ["is 1.5", "from 0 to 1"]),
        ("model.ssd.matcher.argmax_matcher.unmatched_threshold=0.8", "model.ssd.matcher.argmax_matcher", ["0.8"]),
        ("model.ssd.feature_extractor.type=ssd_mobilenet_v3", "", ["'ssd_mobilenet_v3'", "the nearest: ssd_mob"]),
        ("model.ssd.image_resizer={}", "model.ssd.image_resizer", ["found nothing", "fixed_shape_resizer"]),
        ("model.ssd.loss={}", "model.ssd.loss.localization_loss", ["is empty", "weighted_l2"]),
        ("train_config.optimizer={}", "train_config.optimizer", ["is empty", "adam_optimizer"]),
        ("train_config.optimizer={adam_optimizer {}}", "", ["constant_learning_rate"]),
        ("train_config.freeze_variables=(", "train_config.freeze_variables[0]", ["no regular expression", "'('"]),
        ("train_config.update_trainable_variables[+]=[", "train_config.update_trainable_variables[0]", ["expression"]),
        ('train_config.freeze_variables=[""]', "train_config.freeze_variables[0]", ["is empty"]),
        ("train_config.learning_rate_multiplier={pattern: '*'}", "", ["no regular expression"]),
        ("train_config.weight_decay={pattern: '['}", "train_config.weight_decay[0].pattern", ["no regular expression"]),
        ("train_config.unfreeze={at_step: 3 pattern: '('}", "train_config.unfreeze[0].pattern[0]", ["no regular"]),
        ("train_config.trainable_batch_norm={pattern: '' affine: true}", "", ["is empty"]),
        ("train_config.data_augmentation_options={}", "", ["random_horizontal_flip"]),
        ("train_config.fine_tune_checkpoint=nowhere/model.ckpt", "", ["no checkpoint", "'nowhere'"]),
        ("train_config.restore={checkpoint: 'nowhere/net'}", "train_config.restore[0].checkpoint", ["'nowhere/net'"]),
        ("train_config.restore={map {pattern: '('}}", "train_config.restore[0].map[0].pattern", ["no regular expr"]),
        ("train_config.restore={skip: 'a' skip: ''}", "train_config.restore[0].skip[1]", ["is empty"]),
        ("train_config.require=*", "train_config.require[0]", ["no regular expression"]),
        ("train_config.fine_tune_checkpoint=PATH_TO_BE_CONFIGURED/model.ckpt", "", ["placeholder"]),
        ("train_input_reader.label_map_path=", "train_input_reader.label_map_path", ["is not set"]),
        ("train_input_reader.label_map_path=label.pbtxt", "", ["no file 'label.pbtxt'"]),
        ("train_input_reader.tf_record_input_reader.input_path[0]=no-*.record", "", ["no file matches 'no-*.record'"]),
        ("train_input_reader.tf_record_input_reader.input_path[0]=PATH_TO_BE_CONFIGURED/a", "", ["placeholder"]),
        ("train_input_reader.tf_record_input_reader.input_path=", "", ["name the TFRecord files"]),
        ("train_input_reader.sample_from_datasets_weights=[0.5, 0.5]", "", ["2 weights for 1 input_path"]),
        ("eval_input_reader[0].sample_1_of_n_examples=0", "eval_input_reader[0].sample_1_of_n_examples", ["is 0"]),
        ("eval_config.metrics_set[0]=coco_detection", "eval_config.metrics_set", ["did you mean 'coco_detection_m"]),
        ("model.ssd.num_classes=1", "train_input_reader.label_map_path", ["num_classes 1"]),
    ],
)
def test_errors_say_what_was_found_and_expected(findings, override, path, parts):
    errors = only(findings(override), ERROR)
    expected_path = path or override.split("=")[0]
    matching = [finding for finding in errors if finding.path.startswith(expected_path)]
    assert matching, errors
    for part in parts:
        assert any(part in finding.text() for finding in matching), (part, matching)


RATE = "train_config.optimizer.momentum_optimizer.learning_rate="
RECORDS = "train_input_reader.tf_record_input_reader.input_path[0]"
NMS = "model.ssd.post_processing.batch_non_max_suppression"


@pytest.mark.parametrize(
    "override, path, part",
    [
        (RATE + "{manual_step_learning_rate {schedule {step: 9} schedule {step: 3}}}", "", "[9, 3]"),
        (RATE + "{cosine_decay_learning_rate {total_steps: 6 warmup_steps: 6}}", "", "no step to decay in"),
        ("train_config.learning_rate_multiplier={pattern: 'a' multiplier: 0}",
         "train_config.learning_rate_multiplier[0].multiplier", "is 0, expected more than 0"),
        ("train_config.layer_decay=2", "train_config.layer_decay", "is 2, expected more than 0 and at most 1"),
        ("train_config.unfreeze={at_step: 0 pattern: 'a'}", "train_config.unfreeze[0].at_step", "is 0, expected 1"),
        (f"{NMS}.max_detections_per_class=101", f"{NMS}.max_detections_per_class", "must not exceed"),
        ("model.ssd.anchor_generator.ssd_anchor_generator.num_layers=6", "model.ssd", "for 6 feature maps"),
        ("train_input_reader.max_number_of_boxes=0", "train_input_reader.max_number_of_boxes", "is 0"),
        ("eval_input_reader[0].max_number_of_boxes=0", "eval_input_reader[0].max_number_of_boxes", "is 0"),
        ("eval_config.use_moving_averages=true", "eval_config.use_moving_averages", "there would be no averages"),
        ("eval_config.groundtruth_box_visualization_color=blak",
         "eval_config.groundtruth_box_visualization_color", "did you mean 'black'?"),
        ("train_config.optimizer={momentum_optimizer {learning_rate {constant_learning_rate {}}} "
         "moving_average_decay: 1}", "train_config.optimizer.moving_average_decay", "less than 1"),
        ("train_config.restore={type: 'full'}", "train_config.restore[0].checkpoint", "its default, neither"),
        ("train_config.restore={checkpoint: '{folder}/labels.pbtxt' type: 'full' "
         "map {pattern: 'a' replacement: '\\\\2'}}",
         "train_config.restore[0].map[0].replacement", "invalid group reference 2"),
        ("train_config.min_restored_fraction=90", "train_config.min_restored_fraction", "from 0 to 1"),
        ("train_config.data_augmentation_options={random_adjust_hue {max_delta: 0.6}}",
         "train_config.data_augmentation_options[0].random_adjust_hue", "expected 0 to 0.5"),
        ("train_config.data_augmentation_options={remap_labels {original_labels: 1 new_label: 3}}",
         "train_config.data_augmentation_options[0].remap_labels", "num_classes (2)"),
        (f"{RECORDS}={{folder}}/labels.pbtxt", "train_input_reader", "is no TFRecord file"),
    ],
)  # fmt: skip
def test_what_a_run_would_refuse_is_found_by_building_its_parts(findings, folder, override, path, part):
    found = findings(override.replace("{folder}", str(folder)))
    (error,) = only(found, ERROR)
    assert part in error.text(), error
    assert error.path == path if path else error.path.startswith("train_config.optimizer")
    assert only(findings(override.replace("{folder}", str(folder)), deep=False), ERROR) == []


def test_an_unfreezing_that_training_does_not_reach_is_a_warning(findings):
    (warning,) = only(findings("train_config.unfreeze={at_step: 10 pattern: 'a'}"), WARNING)
    assert warning.path == "train_config.unfreeze[0].at_step" and "num_steps is 10" in warning.text()
    assert only(findings("train_config.unfreeze={at_step: 9 pattern: 'a'}"), WARNING) == []


def test_several_parts_complain_at_once(findings):
    found = findings("model.ssd.box_coder={}", "model.ssd.matcher={}", "train_config.optimizer={}")
    assert [finding.path for finding in only(found, ERROR)] == [
        "model.ssd.box_coder", "model.ssd.matcher", "train_config.optimizer",
    ]  # fmt: skip


def test_more_than_one_reader_to_evaluate_is_an_error(findings):
    (error,) = findings("eval_input_reader[+]={label_map_path: '/dev/null'}", use=["eval"])[:1]
    assert (error.severity, error.path) == (ERROR, "eval_input_reader[1]")
    assert "one is evaluated" in error.message and "input_path" in error.hint and "--set" in error.hint


KEYPOINT_METRICS = "eval_config.parameterized_metric[+]={coco_keypoint_metrics {class_label: 'cat'}}"


@pytest.mark.parametrize(
    ("override", "field", "chosen", "text"),
    [
        ("eval_config.metrics_set=['coco_mask_metrics']", "load_instance_masks", "metrics_set", "holds coco_mask"),
        ("eval_config.metrics_set=['coco_keypoint_metrics']", "num_keypoints", "metrics_set", "holds coco_keypoint"),
        (KEYPOINT_METRICS, "num_keypoints", "parameterized_metric", "asks for coco_keypoint"),
    ],
)
def test_metrics_measure_what_is_read_and_predicted(findings, override, field, chosen, text):
    found = {finding.path: finding for finding in only(findings(override), ERROR)}
    assert set(found) == {f"eval_input_reader[0].{field}", f"eval_config.{chosen}"}
    assert f"eval_config.{chosen} {text}" in found[f"eval_input_reader[0].{field}"].message
    unpredicted = found[f"eval_config.{chosen}"].message
    assert text in unpredicted and "the model predicts no" in unpredicted


MASK_RCNN = (
    f"model={{faster_rcnn {{ {two_stage.TEXT} number_of_stages: 3 }}}}",
    "model.faster_rcnn.second_stage_box_predictor.mask_rcnn_box_predictor.predict_instance_masks=true",
)


def center_net(tasks: str) -> tuple[str]:
    return (f"model={{center_net {{ num_classes: 2 {tasks} }}}}",)


@pytest.mark.parametrize(
    ("model", "fields", "part"),
    [
        (MASK_RCNN, {"load_instance_masks"}, "mask_rcnn_box_predictor.predict_instance_masks learns from it"),
        (center_net("mask_estimation_task {}"), {"load_instance_masks"}, "center_net.mask_estimation_task learns"),
        (center_net("deepmac_mask_estimation {}"), {"load_instance_masks"}, "center_net.deepmac_mask_estimation"),
        (center_net("densepose_estimation_task {}"), {"load_dense_pose"}, "center_net.densepose_estimation_task"),
        (center_net("track_estimation_task {}"), {"load_track_id"}, "center_net.track_estimation_task"),
        (center_net("keypoint_estimation_task { predict_depth: true }"),
         {"num_keypoints", "load_keypoint_depth_features"}, "keypoint_estimation_task"),
    ],
)  # fmt: skip
def test_models_learn_from_what_is_read(findings, model, fields, part):
    readers = ("train_input_reader", "eval_input_reader[0]")
    found = {finding.path: finding for finding in only(findings(*model, deep=False), ERROR)}
    assert set(found) == {f"{reader}.{each}" for reader in readers for each in fields}
    assert all(part in finding.message for finding in found.values())
    values = {each: "5" if each == "num_keypoints" else "true" for each in fields}
    loaded = [f"{reader}.{each}={value}" for reader in readers for each, value in values.items()]
    assert only(findings(*model, *loaded, deep=False), ERROR) == []
    unread = findings(*model, *loaded[len(fields) :], use=["eval"], deep=False)
    assert only(unread, ERROR) == []  # training's reader takes no part in an evaluation


def test_a_run_refuses_a_mask_model_whose_masks_are_not_read(folder):
    config = pipeline.load(folder / "my.config", MASK_RCNN)
    with pytest.raises(UserError, match=r"train_input_reader.load_instance_masks: is not set, but .* learns from it"):
        lint.check(config)


def test_masks_that_are_read_and_predicted_can_be_measured(findings):
    reads = ("train_input_reader.load_instance_masks=true", "eval_input_reader[0].load_instance_masks=true")
    assert only(findings(*MASK_RCNN, *reads, "eval_config.metrics_set=['coco_mask_metrics']", deep=False), ERROR) == []


def test_flips_know_the_keypoints(findings):
    flip = "train_config.data_augmentation_options[+]={random_horizontal_flip {keypoint_flip_permutation: [0, 2, 1]}}"
    assert not only(findings(flip), ERROR)
    (error,) = only(findings(flip, "train_input_reader.num_keypoints=2"), ERROR)
    assert "keypoint_flip_permutation" in error.text() and "each number of 0 to 1 once" in error.message


def test_averages_that_nobody_reads_are_a_note(findings):
    optimizer = "train_config.optimizer.use_moving_average="
    (note,) = findings(optimizer + "true")
    assert note.severity == INFO and "nothing reads the averages" in note.message
    assert findings(optimizer + "true", "eval_config.use_moving_averages=true") == []


@pytest.mark.parametrize(
    "labels, parts",
    [
        ("item { id: 0 name: 'cat' }", ["id 0", "from 1"]),
        ("item { id: 1 name: 'cat' } item { id: 1 name: 'dog' }", ["id 1", "2 items"]),
        ("item { id: 1 nmae: 'cat' }", ["nmae"]),
        ("", ["no item"]),
    ],
)
def test_label_maps_that_cannot_be_used(findings, folder, labels, parts):
    (folder / "labels.pbtxt").write_text(labels)
    errors = only(findings(), ERROR)
    assert {finding.path for finding in errors} == {
        "train_input_reader.label_map_path",
        "eval_input_reader[0].label_map_path",
    }
    for part in parts:
        assert part in errors[0].message


def test_gaps_and_spare_classes_are_warnings(findings, folder):
    (folder / "labels.pbtxt").write_text("item { id: 1 name: 'cat' } item { id: 4 name: 'dog' }")
    found = findings("model.ssd.num_classes=5")
    assert only(found, ERROR) == []
    texts = " ".join(finding.message for finding in only(found, WARNING))
    assert "no item for id 2-3" in texts and "num_classes 5" in texts


def test_checkpoint_types(findings, folder):
    (folder / "model.ckpt.index").write_bytes(b"x")
    checkpoint = f"train_config.fine_tune_checkpoint={folder}/model.ckpt"
    assert [f.severity for f in findings(checkpoint)] == [WARNING]  # V1 without type: classification
    assert findings(checkpoint, "train_config.fine_tune_checkpoint_type=full") == []
    (error,) = findings(checkpoint, "train_config.fine_tune_checkpoint_version=V2")
    assert error.severity == ERROR and error.path == "train_config.fine_tune_checkpoint_type"
    assert all(name in error.text() for name in ("'classification'", "'detection'", "'full'"))


    (error,) = findings(checkpoint, "train_config.fine_tune_checkpoint_type=detections")
    assert "'detections' is unknown" in error.message
    (error,) = only(findings(checkpoint, "train_config.fine_tune_checkpoint_version=UNKNOWN"), ERROR)
    assert error.path == "train_config.fine_tune_checkpoint_version" and "V1 or V2" in error.message


def test_checkpoint_paths_one_is_likely_to_write(findings, folder):
    kind = "train_config.fine_tune_checkpoint_type=full"
    (folder / "model.ckpt.index").write_bytes(b"x")
    (error,) = findings(f"train_config.fine_tune_checkpoint={folder}/model.ckpt.data-00000-of-00001", kind)
    assert f"without the ending: '{folder}/model.ckpt'" in error.hint
    (error,) = findings(f"train_config.fine_tune_checkpoint={folder}/model", kind)
    assert error.hint.endswith("holds model.ckpt")
    (folder / "half.ckpt.data-00000-of-00001").write_bytes(b"x")
    (error,) = findings(f"train_config.fine_tune_checkpoint={folder}/half.ckpt", kind)
    assert "half.ckpt.index is missing" in error.message


def test_records_that_are_no_files(findings, folder):
    path = "train_input_reader.tf_record_input_reader.input_path[0]="
    assert "is a folder" in findings(path + str(folder))[0].message
    (folder / "empty.record").touch()
    assert "is empty" in findings(path + str(folder / "empty.record"))[0].message
    assert "train-0.record" in findings(path + str(folder / "train-0.recrod"))[0].hint


def test_use_limits_what_is_looked_at(findings):
    bad = ("train_config.batch_size=0", "eval_config.batch_size=0", "eval_config.eval_instance_masks=true")
    assert {finding.path for finding in findings(*bad, use=["train"])} == {"train_config.batch_size"}
    assert {finding.path for finding in findings(*bad, use=["eval"])} == {
        "eval_config.batch_size",
        "eval_config.eval_instance_masks",
    }
    assert findings(*bad, use=[]) == []


def test_check_raises_for_errors_and_returns_the_rest(folder):
    config = pipeline.load(folder / "my.config", ["train_config.sync_replicas=true"])
    assert [finding.severity for finding in lint.check(config)] == [INFO]
    config.train_config.batch_size = 0
    config.graph_rewriter.SetInParent()
    with pytest.raises(UserError) as caught:
        lint.check(config, folder / "my.config")
    for part in ("my.config cannot be run", "train_config.batch_size: is 0", "graph_rewriter", "--allow_unhonoured"):
        assert part in str(caught.value)


def test_findings_have_the_line_of_their_field(folder):
    text = (folder / "my.config").read_text().replace("num_steps: 10", "num_steps: 0")
    (folder / "my.config").write_text(text)
    (warning,) = lint.lint(pipeline.load(folder / "my.config"), folder / "my.config")
    assert warning.line == 1 + text[: text.index("num_steps")].count("\n")


def test_positions_of_lists_maps_and_strings():
    text = """eval_config { # { metrics_set
  metrics_set: ["a",
    'b # {' "continued"]
  super_categories { key: "x" value: "y" }
  metrics_set: "c"
}
eval_input_reader { shuffle: false } eval_input_reader <
  shuffle: true; name: "}"
>
train_config { freeze_variables: [] num_steps: 3 }
"""
    pipeline.parse(text)
    lines = positions.field_lines(text, TrainEvalPipelineConfig.DESCRIPTOR)
    assert lines == {
        "eval_config": 1,
        "eval_config.metrics_set": 2,
        "eval_config.metrics_set[0]": 2,
        "eval_config.metrics_set[1]": 3,
        "eval_config.super_categories": 4,
        "eval_config.metrics_set[2]": 5,
        "eval_input_reader": 7,
        "eval_input_reader[0]": 7,
        "eval_input_reader[0].shuffle": 7,
        "eval_input_reader[1]": 7,
        "eval_input_reader[1].shuffle": 8,
        "eval_input_reader[1].name": 8,
        "train_config": 10,
        "train_config.num_steps": 10,
    }


def test_published_configs_can_be_linted(shared):
    """Whatever a published config contains, lint answers; each has at least its placeholder paths to report."""
    paths = sorted((shared / "reference" / "configs").glob("*/*.config"))
    for path in paths:
        found = lint.lint(pipeline.load(path), path)
        assert any("PATH_TO_BE_CONFIGURED" in finding.message for finding in only(found, ERROR)), path.name
        assert all(finding.line for finding in found if finding.unhonoured), path.name


@pytest.mark.parametrize(
    "name",
    [
        "tf1/ssd_mobilenet_v1_coco.config",
        "tf1/ssd_mobilenet_v1_pets.config",
        "tf1/ssd_mobilenet_v2_coco.config",
        "tf1/ssdlite_mobilenet_v2_coco.config",
        "tf2/ssd_mobilenet_v2_320x320_coco17_tpu-8.config",
        "tf1/ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync.config",
        "tf2/ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8.config",
        "tf2/ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8.config",
    ],
)
def test_mobilenet_ssd_configs_lack_nothing_but_files(shared, name):
    path = shared / "reference" / "configs" / name
    errors = only(lint.lint(pipeline.load(path), path), ERROR)
    assert [f.text() for f in errors if "PATH_TO_BE_CONFIGURED" not in f.message] == []


def test_command_line(folder, capsys):
    config = str(folder / "my.config")
    assert main(["lint", config]) == 0
    assert "nothing to complain about" in capsys.readouterr().out
    assert main(["lint", config, "--set", "train_config.batch_size=0"]) == 1
    out = capsys.readouterr().out
    assert f"{config}:18: error: train_config.batch_size: is 0" in out
    assert "1 error" in out.splitlines()[-1]
    assert main(["lint", config, "--json", "--set=train_config.batch_size=0"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["path"] == "train_config.batch_size" and finding["line"] == 18


def test_command_line_with_a_config_that_does_not_parse(folder, capsys):
    config = folder / "broken.config"
    config.write_text("train_config {\n  bach_size: 3\n}\n")
    assert main(["lint", str(config)]) == 1
    assert f"{config}:2:3: TrainConfig has no field 'bach_size'; did you mean 'batch_size'?" in capsys.readouterr().out
    assert main(["lint", "--json", str(config)]) == 1
    assert json.loads(capsys.readouterr().out)[0]["line"] == 2
    assert main(["lint", str(folder / "my.config"), "--set", "nonsense"]) == 1
    assert "path=value" in capsys.readouterr().out
