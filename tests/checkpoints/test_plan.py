import json
import logging

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.cli.common import log_to_stderr
from od_finetune.errors import UserError

# canonical name: (TF2 name, shape for one class, part)
CONV, NORM = "FeatureExtractor/TinyNet/Conv_0/weights", "FeatureExtractor/TinyNet/Conv_0/BatchNorm/"
BOX, CLASS = "BoxPredictor_0/BoxEncodingPredictor/", "BoxPredictor_0/ClassPredictor/"
LAYOUT = {
    CONV: ("Conv1/kernel", (3, 3, 3, 4), "backbone"),
    NORM + "gamma": ("bn_Conv1/gamma", (4,), "backbone"),
    NORM + "moving_mean": ("bn_Conv1/moving_mean", (4,), "backbone"),
    "FeatureExtractor/TinyNet/layer_2_1x1/weights": ("extractor/FeatureMaps/layer_2_conv/kernel", (1, 1, 4, 2), "neck"),
    BOX + "weights": ("BoxPredictor/BoxHead_0/kernel", (1, 1, 4, 12), "head"),
    BOX + "biases": ("BoxPredictor/BoxHead_0/bias", (12,), "head"),
    CLASS + "weights": ("BoxPredictor/ClassHead_0/kernel", (1, 1, 4, 6), "head"),
    CLASS + "biases": ("BoxPredictor/ClassHead_0/bias", (6,), "head"),
}
BACKBONE = {name for name, (_, _, part) in LAYOUT.items() if part == "backbone"}
NECK = {name for name, (_, _, part) in LAYOUT.items() if part == "neck"}
HEAD = LAYOUT.keys() - BACKBONE - NECK
CLASS_HEAD = {CLASS + "weights", CLASS + "biases"}
TF2_NAMES = {name: tf2_name for name, (tf2_name, _, _) in LAYOUT.items()}


def _part(name):
    return LAYOUT[name][2]


def _with_classes(name, shape, num_classes):
    return (*shape[:-1], 3 * (num_classes + 1)) if name.startswith(CLASS) else shape


def _model(num_classes=1):
    return {
        name: tf.Variable(tf.fill(_with_classes(name, shape, num_classes), -1.0))
        for name, (_, shape, _) in LAYOUT.items()
    }


def _weights(num_classes=1):
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(size=_with_classes(name, shape, num_classes)).astype(np.float32)
        for name, (_, shape, _) in LAYOUT.items()
    }


def _compute(model, source, num_classes=1, **request):
    request = RestoreRequest(source.path, **request)
    return RestorePlan.compute(_target(model, num_classes), [(source, request)])


def _target(model, num_classes=None, tf2_names=TF2_NAMES):
    shapes = {name: tuple(variable.shape) for name, variable in model.items()}
    return Target(shapes, tf2_names, _part, CLASS_HEAD.__contains__, num_classes)


def _restored(plan):
    return {row.name for row in plan.with_status(Status.RESTORED)}


def _write_tf1(folder, weights, save_tensors):
    slots = {CONV + "/Momentum": weights[CONV], "global_step": np.int64(9)}
    return save_tensors(folder / "model.ckpt", weights | slots)


def _write_tf2(folder, weights, save_tensors):
    return _write_objects(folder, {TF2_NAMES[name]: value for name, value in weights.items()})


def _write_own(folder, weights, save_tensors):
    model = {name: tf.Variable(value) for name, value in weights.items()}
    return tf.train.Checkpoint(step=tf.Variable(3), model=model, moving_average=model).write(str(folder / "ckpt-3"))


def _write_slim(folder, weights, save_tensors):
    net = {name.partition("/")[2]: weights[name] for name in BACKBONE}
    return save_tensors(folder / "tiny.ckpt", net | {"TinyNet/Logits/weights": np.zeros((4, 10), np.float32)})


def _write_keras(folder, weights, save_tensors):
    return _write_objects(folder, {TF2_NAMES[name]: weights[name] for name in BACKBONE})


def _write_objects(folder, by_full_name):
    variables = {f"v{i}": tf.Variable(value, name=name) for i, (name, value) in enumerate(by_full_name.items())}
    return tf.train.Checkpoint(net=variables).save(str(folder / "ckpt"))


DETECTION_FILES = [_write_tf1, _write_tf2, _write_own]
CLASSIFICATION_FILES = [_write_slim, _write_keras]


@pytest.fixture(params=DETECTION_FILES)
def detection_file(request, tmp_path, save_tensors):
    return open_source(request.param(tmp_path, _weights(), save_tensors))


@pytest.fixture
def tf1_file(tmp_path, save_tensors):
    return open_source(_write_tf1(tmp_path, _weights(), save_tensors))


@pytest.mark.parametrize(
    "request_fields, expected",
    [
        ({"type": "classification"}, BACKBONE),
        ({"type": "classification", "version": "V2"}, BACKBONE),
        ({"type": "detection"}, BACKBONE | NECK | HEAD),
        ({"type": "detection", "feature_extractor_only": True}, BACKBONE | NECK),
        ({"type": "detection", "version": "V2"}, BACKBONE | NECK),
        ({"type": "full"}, BACKBONE | NECK | HEAD),
        ({"type": "full", "version": "V2"}, BACKBONE | NECK | HEAD),
    ],
)
def test_type_selects_parts_of_any_detection_checkpoint(detection_file, request_fields, expected):
    model, weights = _model(), _weights()
    plan = _compute(model, detection_file, **request_fields)
    assert _restored(plan) == expected
    assert {row.name for row in plan.with_status(Status.LEFT_OUT)} == LAYOUT.keys() - expected
    plan.apply(model)
    for name, variable in model.items():
        np.testing.assert_array_equal(variable, weights[name] if name in expected else np.full(variable.shape, -1.0))


@pytest.mark.parametrize("write", CLASSIFICATION_FILES)
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_backbone_from_a_classification_checkpoint(tmp_path, save_tensors, write, version):
    model, weights = _model(), _weights()
    source = open_source(write(tmp_path, weights, save_tensors))
    plan = _compute(model, source, type="classification", version=version)
    assert _restored(plan) == BACKBONE
    plan.apply(model)
    for name in BACKBONE:
        np.testing.assert_array_equal(model[name], weights[name])


def test_backbone_from_another_detectors_scope(tmp_path, save_tensors):
    weights = {name.replace("FeatureExtractor", "FirstStageFeatureExtractor"): v for name, v in _weights().items()}
    source = open_source(save_tensors(tmp_path / "faster_rcnn.ckpt", weights))
    plan = _compute(_model(), source, type="classification")
    assert _restored(plan) == BACKBONE
    assert {row.rule for row in plan.with_status(Status.RESTORED)} == {"other feature extractor scope"}


def test_match_by_object_path(tmp_path):
    paths = {f"v{i}": tf.Variable(value) for i, value in enumerate(_weights().values())}
    source = open_source(tf.train.Checkpoint(net=paths).save(str(tmp_path / "ckpt")))
    by_path = dict(zip(LAYOUT, (f"net/v{i}" for i in range(len(LAYOUT))), strict=True))
    request = RestoreRequest(source.path, "full")
    plan = RestorePlan.compute(_target(_model(), tf2_names=by_path), [(source, request)])
    assert plan.problem is None and _restored(plan) == LAYOUT.keys()


def test_changed_number_of_classes_starts_exactly_the_class_head_anew(detection_file):
    model = _model(num_classes=20)
    plan = _compute(model, detection_file, num_classes=20)
    assert {row.name for row in plan.with_status(Status.SHAPE_DIFFERS)} == CLASS_HEAD
    assert _restored(plan) == LAYOUT.keys() - CLASS_HEAD
    sentence = "class head: 2 variables start anew: checkpoint has 2 outputs per anchor, the model 21"
    assert sentence in plan.text().splitlines()
    assert plan.to_json()["class_head"] == sentence
    plan.apply(model)
    assert all((model[name].numpy() == -1).all() for name in CLASS_HEAD)


def test_class_head_without_the_number_of_classes_gives_plain_outputs(tf1_file):
    text = _compute(_model(num_classes=20), tf1_file, num_classes=None).text()
    assert f"checkpoint has 6 class outputs in {CLASS}biases, the model 63" in text


def test_class_head_left_out_by_type_says_so(tf1_file):
    text = _compute(_model(), tf1_file, version="V2").text()
    assert "class head: 2 variables start anew: the type leaves heads out" in text


def test_full_lists_every_mismatch(tmp_path, save_tensors):
    weights = _weights(num_classes=90)
    del weights[NORM + "gamma"]
    source = open_source(_write_tf1(tmp_path, weights, save_tensors))
    model = _model()
    plan = _compute(model, source, type="full")
    with pytest.raises(UserError) as error:
        plan.apply(model)
    message = str(error.value)
    assert "3 of 8 do not match" in message
    assert f"{NORM}gamma: not in the checkpoint" in message
    assert f"{CLASS}biases: checkpoint [273], model [6]" in message
    assert f"{CLASS}weights: checkpoint [1, 1, 4, 273], model [1, 1, 4, 6]" in message
    assert (model[CONV].numpy() == -1).all()  # nothing was assigned


def test_each_missing_variable_is_warned_of(tmp_path, save_tensors, caplog):
    weights = _weights()
    missing = [NORM + "moving_mean", BOX + "biases"]
    for name in missing:
        del weights[name]
    source = open_source(_write_tf1(tmp_path, weights, save_tensors))
    model = _model(num_classes=2)
    with caplog.at_level(logging.WARNING):
        _compute(model, source).apply(model)
    for name in missing:
        assert f"Variable [{name}] is not available in checkpoint" in caplog.messages
    assert len(caplog.messages) == 2  # the class head's other shape is in the plan's text, not said twice
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_command_line_shows_the_warnings(tmp_path, save_tensors, capsys):
    weights = _weights()
    del weights[NORM + "gamma"]
    model = _model()
    with log_to_stderr():
        _compute(model, open_source(_write_tf1(tmp_path, weights, save_tensors))).apply(model)
    assert capsys.readouterr().err == f"Variable [{NORM}gamma] is not available in checkpoint\n"


def test_text_shows_counts_per_scope_and_what_did_not_match(tmp_path, save_tensors):
    weights = _weights() | {"FeatureExtractor/TinyNet/Conv_9/weights": np.zeros(3, np.float32)}
    del weights[CONV]
    source = open_source(save_tensors(tmp_path / "model.ckpt", weights))
    plan = _compute(_model(), source, notices=("a field is deprecated",))
    lines = plan.text().splitlines()
    assert "Notice: a field is deprecated" in lines
    rows = [line.split() for line in lines]
    assert ["backbone", "FeatureExtractor/TinyNet/Conv_0", "3", "2", "-", "-", "1", "-"] in rows
    assert ["head", "BoxPredictor_0", "4", "4", "-", "-", "-", "-"] in rows
    assert ["total", "8", "7", "-", "-", "1", "-"] in rows
    assert lines[lines.index("Not in checkpoint (1):") + 1] == f"  {CONV}"
    assert "Not used of the checkpoint (1): FeatureExtractor/TinyNet/Conv_9 (1)" in lines
    assert plan.sources[0].unused == ("FeatureExtractor/TinyNet/Conv_9/weights",)


def test_json_is_complete_and_written_atomically(tmp_path, detection_file):
    plan = _compute(_model(num_classes=3), detection_file, num_classes=3)
    path = tmp_path / "run" / "restore_plan.json"
    plan.write(path)
    plan.write(path)
    assert [file.name for file in path.parent.iterdir()] == ["restore_plan.json"]
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["rows"]] == list(LAYOUT)
    assert content["counts"] == {
        "restored": 6, "rows transplanted": 0, "shape differs": 2, "not in checkpoint": 0, "left out by type": 0
    }  # fmt: skip
    row = content["rows"][-1]
    assert (row["name"], row["source_shape"], row["shape"]) == (CLASS + "biases", [6], [12])
    assert row["status"] == "shape differs"
    again = _compute(_model(num_classes=3), detection_file, num_classes=3)
    assert content == json.loads(json.dumps(again.to_json()))  # the same every time


def test_nothing_is_read_for_a_plan_and_each_tensor_once(tf1_file, monkeypatch):
    reads = []
    read = tf1_file.read
    monkeypatch.setattr(tf1_file, "read", lambda name: reads.append(name) or read(name))
    model = _model()
    plan = _compute(model, tf1_file)
    assert reads == []
    plan.apply(model)
    assert sorted(reads) == sorted(LAYOUT)


class TestRefused:
    def _problem(self, tmp_path, save_tensors, weights, **request):
        model = _model()
        plan = _compute(model, open_source(save_tensors(tmp_path / "model.ckpt", weights)), **request)
        with pytest.raises(UserError) as error:
            plan.apply(model)
        assert (model[CONV].numpy() == -1).all()
        return str(error.value)

    def test_classification_checkpoint_as_detection(self, tmp_path, save_tensors):
        net = {name.partition("/")[2]: value for name, value in _weights().items() if name in BACKBONE}
        message = self._problem(tmp_path, save_tensors, net)
        assert "another kind of file" in message and "fine_tune_checkpoint_type: 'classification'" in message

    def test_other_architecture_with_agreeing_head(self, tmp_path, save_tensors):
        weights = {name.replace("TinyNet/Conv_0", "OtherNet/Mixed_5b"): value for name, value in _weights().items()}
        message = self._problem(tmp_path, save_tensors, weights)
        assert "would restore none of 3 variables of the backbone" in message
        assert "another architecture" in message
        assert "The model's scope is FeatureExtractor/TinyNet/Conv_0." in message
        assert "BoxPredictor_0 (4)" in message

    def test_other_scope(self, tmp_path, save_tensors):
        weights = {f"tower_0/{name}": value for name, value in _weights().items()}
        message = self._problem(tmp_path, save_tensors, weights)
        assert "another scope" in message and "under tower_0." in message

    def test_other_depth_multiplier(self, tmp_path, save_tensors):
        weights = {name: np.zeros((*value.shape[:-1], 99), np.float32) for name, value in _weights().items()}
        message = self._problem(tmp_path, save_tensors, weights)
        assert "restore none of 3 variables of the backbone" in message
        assert "3 of the names are in the checkpoint with another shape" in message and "depth_multiplier" in message

    def test_other_depth_multiplier_with_a_layer_that_agrees(self, tmp_path, save_tensors):
        weights = _weights()
        weights |= {name: np.zeros(99, np.float32) for name in (CONV, NORM + "gamma")}
        message = self._problem(tmp_path, save_tensors, weights)
        assert "restore 1 of 3 variables of the backbone" in message and "depth_multiplier" in message

    def test_unrelated_file_under_full_is_explained_not_listed(self, tmp_path, save_tensors):
        weights = {"generator/dense/kernel": np.zeros((2, 2), np.float32)}
        message = self._problem(tmp_path, save_tensors, weights, type="full")
        assert "would restore none of 3 variables of the backbone" in message and "generator/dense (1)" in message

    def test_no_weights_at_all(self, tmp_path, save_tensors):
        message = self._problem(tmp_path, save_tensors, {"global_step": np.int64(1)})
        assert "it holds no weights" in message

    def test_values_that_are_not_finite(self, tmp_path, save_tensors):
        weights = _weights()
        weights[BOX + "biases"][3] = np.nan
        assert f"{BOX}biases has values that are not finite" in self._problem(tmp_path, save_tensors, weights)

    def test_damage_found_while_reading_leaves_the_model_alone(self, tmp_path, save_tensors):
        prefix = save_tensors(tmp_path / "model.ckpt", _weights())
        data = tmp_path / "model.ckpt.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        content[-3] ^= 1
        data.write_bytes(content)
        model = _model()
        with pytest.raises(UserError, match="half-written or damaged"):
            _compute(model, open_source(prefix)).apply(model)
        assert all((variable.numpy() == -1).all() for variable in model.values())


def test_casts_to_the_models_type(tmp_path, save_tensors):
    weights = {name: value.astype(np.float16) for name, value in _weights().items()}
    model = _model()
    _compute(model, open_source(save_tensors(tmp_path / "half.ckpt", weights))).apply(model)
    np.testing.assert_array_equal(model[CONV], weights[CONV].astype(np.float32))


def test_warns_of_a_backbone_that_is_mostly_missing(tmp_path, save_tensors):
    weights = _weights()
    del weights[CONV], weights[NORM + "gamma"]
    text = _compute(_model(), open_source(save_tensors(tmp_path / "m.ckpt", weights))).text()
    assert "Warning: only 1 of the backbone's 3 variables" in text
