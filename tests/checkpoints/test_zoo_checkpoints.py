"""Published checkpoints, or their like written from recorded object graphs, into the detectors of the config."""

import functools

import numpy as np
import pytest
from google.protobuf import text_format

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.protos import pipeline_pb2

TF2_SSD = "tf2_ssd_mobilenet_v2_320x320_coco17_tpu-8"


@functools.cache  # building takes seconds; a test that assigns looks only at what it assigned
def _detector(config, num_classes=None):
    pipeline = text_format.Parse(config.read_text(), pipeline_pb2.TrainEvalPipelineConfig())
    if num_classes:
        pipeline.model.ssd.num_classes = num_classes
    detector = build_detector(pipeline.model)
    detector.build()
    return detector


def _plan(detector, source, **request):
    return RestorePlan.compute(Target.of(detector), [(source, RestoreRequest(source.path, **request))])


def _golden(shared, name):
    return shared / "reference" / "goldens" / name / "pipeline.config"


@pytest.fixture(scope="module")
def coco(shared):
    """The published ssdlite_mobilenet_v2_coco (TF1)."""
    folder = shared / "data" / "ssdlite_mobilenet_v2_coco"
    return folder / "pipeline.config", open_source(folder / "model.ckpt")


@pytest.fixture(scope="module")
def tf2_ssd(shared, save_golden, tmp_path_factory):
    """A TF2 checkpoint of ssd_mobilenet_v2_keras and its values by full name."""
    folder = tmp_path_factory.mktemp("zoo")
    values = save_golden(TF2_SSD, folder / "checkpoint" / "ckpt-0")
    return open_source(folder), values


def test_coco_checkpoint_restores_every_variable(coco):
    config, source = coco
    detector = _detector(config)
    plan = _plan(detector, source, type="full")
    assert len(plan.with_status(Status.RESTORED)) == len(plan.rows) == 404
    assert plan.sources[0].unused == ()
    variables = detector.named_variables()
    plan.apply(variables)
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable, source.read(name), err_msg=name)


def test_one_class_starts_exactly_the_class_head_anew(coco):
    config, source = coco
    detector = _detector(config, num_classes=1)
    variables = detector.named_variables()
    before = {name: variable.numpy() for name, variable in variables.items()}
    plan = _plan(detector, source)
    plan.apply(variables)
    heads = {f"BoxPredictor_{i}/ClassPredictor/{leaf}" for i in range(6) for leaf in ("weights", "biases")}
    assert {row.name for row in plan.with_status(Status.SHAPE_DIFFERS)} == heads
    assert len(plan.with_status(Status.RESTORED)) == 404 - 12
    assert "class head: 12 variables start anew: checkpoint has 91 outputs per anchor, the model 2" in plan.text()
    for name in heads:
        np.testing.assert_array_equal(variables[name], before[name])


@pytest.mark.parametrize(
    "type, version, parts",
    [
        ("classification", "V1", {"backbone"}),
        ("classification", "V2", {"backbone"}),
        ("detection", "V2", {"backbone", "neck"}),
    ],
)
def test_coco_checkpoint_by_type(coco, type, version, parts):
    config, source = coco
    plan = _plan(_detector(config, num_classes=1), source, type=type, version=version)
    assert {row.part for row in plan.with_status(Status.RESTORED)} == parts
    assert {row.part for row in plan.rows} - {row.part for row in plan.with_status(Status.LEFT_OUT)} == parts


def test_tf2_checkpoint_restores_every_variable(tf2_ssd, shared):
    source, values = tf2_ssd
    detector = _detector(_golden(shared, TF2_SSD))
    plan = _plan(detector, source, type="full", version="V2")
    plan.check()
    assert plan.sources[0].unused == ()
    variables, tf2_names = detector.named_variables(), detector.tf2_names()
    plan.apply(variables)
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable, values[tf2_names[name]], err_msg=name)


def test_tf2_checkpoint_into_the_tf1_type(tf2_ssd, shared):
    source, values = tf2_ssd
    detector = _detector(_golden(shared, "tf1_ssd_mobilenet_v2_coco"))
    plan = _plan(detector, source, type="detection")
    assert {row.name for row in plan.rows if row.status is not Status.RESTORED} == set()
    plan.apply(detector.named_variables())
    weights = detector.named_variables()["FeatureExtractor/MobilenetV2/Conv/weights"]
    np.testing.assert_array_equal(weights, values["Conv1/kernel"])


def test_tf1_checkpoint_into_the_tf2_type(coco, shared):
    _, source = coco
    plan = _plan(_detector(_golden(shared, TF2_SSD)), source, type="classification", version="V2")
    backbone = [row for row in plan.rows if row.part == "backbone"]
    assert len(backbone) == 260 and all(row.status is Status.RESTORED for row in backbone)


@pytest.mark.parametrize("type", ["classification", "detection", "full"])
def test_checkpoint_of_another_architecture_is_refused(coco, shared, type):
    _, source = coco
    plan = _plan(_detector(_golden(shared, "tf1_ssd_mobilenet_v1_coco")), source, type=type)
    with pytest.raises(UserError) as error:
        plan.check()
    message = str(error.value)
    assert "would restore none of 135 variables of the backbone" in message and "another architecture" in message
    assert "The model's scope is FeatureExtractor/MobilenetV1." in message
    assert "The checkpoint has FeatureExtractor/MobilenetV2 (320)" in message

