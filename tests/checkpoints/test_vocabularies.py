"""Backbones from other frameworks' classification nets: names, layouts, epsilons, and what comes out."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.checkpoints.arrays import HWIO, OIHW, ArraySource
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.models import layers
from od_finetune.models.backbones import mobilenet_v1, mobilenet_v2
from od_finetune.names import apply_rules

FIXTURES = Path(__file__).parent / "fixtures"
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.config"
TOOLS = Path(__file__).resolve().parents[2] / "tools"
LEAVES = [(r"/weights$", "/kernel"), (r"/depthwise_weights$", "/depthwise_kernel")]


@pytest.fixture(scope="module")
def recorder():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("record_torch_names")


def _source(values, layout=OIHW, **fields):
    shapes = {name: value.shape for name, value in values.items()}
    return ArraySource("net.bin", "arrays", shapes, values.__getitem__, layout, **fields)


class Net:
    """A backbone and the target it is."""

    def __init__(self, module, family, levels, tf2_rules, explicit_padding=True, **options):
        scope = f"FeatureExtractor/{module.__name__}"
        hyperparams = family.DEFAULTS._replace(norm=self._norm(**options))
        self.module = module(scope, hyperparams, levels, explicit_padding=explicit_padding)
        self.module(tf.zeros([1, 32, 32, 3]))
        self.variables = layers.named_variables(self.module)
        norms = {name: layer for name, layer in layers.weighted_layers(self.module).items() if "BatchNorm" in name}
        self.target = Target(
            {name: tuple(variable.shape) for name, variable in self.variables.items()},
            {name: apply_rules(name, [*tf2_rules, *LEAVES]) for name in self.variables},
            lambda name: "backbone",
            lambda name: False,
            epsilons={name: layer.epsilon for name, layer in norms.items()},
            vocabularies=family.VOCABULARIES,
        )

    @staticmethod
    def _norm(**options):
        return layers.BatchNorm(decay=0.9997, epsilon=0.001, scale=True)._replace(**options)

    def restore(self, source, **request):
        plan = RestorePlan.compute(self.target, [(source, RestoreRequest(source.path, "classification", **request))])
        plan.apply(self.variables)
        return plan


@pytest.fixture(scope="module")
def v2():
    return Net(mobilenet_v2.MobilenetV2, mobilenet_v2, ("layer_8", "layer_19"), mobilenet_v2.TF2_RULES)


@pytest.fixture(scope="module")
def v1():
    return Net(mobilenet_v1.MobilenetV1, mobilenet_v1, ("Conv2d_13_pointwise",), mobilenet_v1.TF2_RULES)


def _torchvision(recorder):
    return recorder.weights(recorder.read_names(FIXTURES / "torchvision_mobilenet_v2.names"))


def _check_features(net, recorder):
    """Against torch's own of the same weights."""
    features = net.module(tf.constant(recorder.image().transpose(0, 2, 3, 1)))
    with np.load(FIXTURES / "torchvision_mobilenet_v2.npz") as recorded:
        for level in recorded:
            expected = recorded[level].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(features[level], expected, atol=1e-3 * expected.std(), err_msg=level)


@pytest.mark.parametrize("network", ["torchvision", "timm"])
def test_mobilenet_v2_computes_what_torch_does(v2, recorder, network):
    values = _torchvision(recorder)
    if network == "timm":  # the same tensors in the same order, see the tool
        names = recorder.read_names(FIXTURES / "timm_mobilenetv2_100.names")
        assert list(names.values()) == [value.shape for value in values.values()]
        values = dict(zip(names, values.values(), strict=True))
    plan = v2.restore(_source(values))
    assert {row.rule for row in plan.rows} == {network}
    assert {row.status for row in plan.rows} == {Status.RESTORED}
    assert [name.rpartition(".")[0] for name in plan.sources[0].unused] == ["classifier.1"] * 2 or network == "timm"
    _check_features(v2, recorder)
    assert {row.transform for row in plan.rows} == {
        "OIHW -> HWIO", "depthwise OIHW -> HWIO", "epsilon 1e-05 -> 0.001", None
    }  # fmt: skip
    assert "52 batch norms have another epsilon in the checkpoint" in plan.text()


@pytest.mark.slow
def test_a_network_that_pads_otherwise_is_told(recorder):
    source = _source(_torchvision(recorder))
    for padding in (False, True):
        config = pipeline.load(QUICKSTART, ["model.ssd.feature_extractor.type=ssd_mobilenet_v2"])
        config.model.ssd.feature_extractor.use_explicit_padding = padding
        config.model.ssd.feature_extractor.depth_multiplier = 1.0
        target = Target.of(build_detector(config.model))
        plan = RestorePlan.compute(target, [(source, RestoreRequest(source.path, "classification"))])
        told = [notice for notice in plan.sources[0].notices if "use_explicit_padding: true" in notice]
        assert len(told) == (not padding) and all("networks of torchvision" in notice for notice in told)


def test_without_the_epsilon_the_features_would_differ(v2, recorder):
    """That is, the check above can fail."""
    v2.restore(_source(_torchvision(recorder)), batch_norm_epsilon=0.001)
    with pytest.raises(AssertionError, match="layer_"):
        _check_features(v2, recorder)


def test_names_of_one_prefix_more_take_a_map(v2, recorder):
    values = {f"backbone.body.{name}": value for name, value in _torchvision(recorder).items()}
    plan = v2.restore(_source(values), map=((r"^backbone\.body\.", ""),))
    assert len(plan.with_status(Status.RESTORED)) == len(plan.rows) == 260
    assert plan.rows[0].source == "backbone.body.features.0.0.weight"  # as the file has it
    _check_features(v2, recorder)


def test_a_prefix_more_is_diagnosed_with_the_map_that_helps(v2, recorder):
    values = {f"backbone.body.{name}": value for name, value in _torchvision(recorder).items()}
    with pytest.raises(UserError) as error:
        v2.restore(_source(values))
    assert "another scope: 260 variables" in str(error.value) and "under backbone.body." in str(error.value)
    assert r'Write restore { map { pattern: "^backbone\\.body\\." replacement: "" } }' in str(error.value)


def test_by_order_under_names_nobody_knows(v2, recorder):
    values = _torchvision(recorder)
    scopes = list(dict.fromkeys(name.rpartition(".")[0] for name in values))
    odd = {f"m{scopes.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": v for name, v in values.items()}
    plan = v2.restore(_source(odd), by_order=True)
    assert {row.rule for row in plan.rows} == {"by order"}
    assert "  FeatureExtractor/MobilenetV2/Conv <- m0 [3, 3, 3, 32]" in plan.text().splitlines()
    _check_features(v2, recorder)


def test_norms_without_gamma_take_the_epsilon_into_their_variance(recorder):
    net = Net(
        mobilenet_v2.MobilenetV2, mobilenet_v2, ("layer_8", "layer_19"), mobilenet_v2.TF2_RULES,
        scale=False, epsilon=1e-6,
    )  # fmt: skip
    values = _torchvision(recorder)
    norms = [name.removesuffix("running_var") for name in values if name.endswith("running_var")]
    for norm in norms:  # gamma goes into the kernel of the next layer or is 1: here it is 1
        values[f"{norm}weight"] = np.ones_like(values[f"{norm}weight"])
    plan = net.restore(_source(values))
    assert {row.transform for row in plan.rows if row.name.endswith("variance")} == {"epsilon 1e-05 -> 1e-06"}
    name = "FeatureExtractor/MobilenetV2/Conv/BatchNorm/moving_variance"
    np.testing.assert_allclose(net.variables[name], values["features.0.1.running_var"] + 9e-6, rtol=1e-5)
    assert "epsilon" not in (plan.rows[1].transform or "")


def test_mobilenet_v1_of_timm(v1, recorder):
    values = recorder.weights(recorder.read_names(FIXTURES / "timm_mobilenetv1_100.names"))
    plan = v1.restore(_source(values))
    assert {(row.rule, row.status) for row in plan.rows} == {("timm", Status.RESTORED)}
    assert plan.sources[0].unused == ("classifier.bias", "classifier.weight")
    by_order = v1.restore(_source(values), by_order=True)  # timm's names say which layer is which: the orders agree
    assert [row.source for row in by_order.rows] == [row.source for row in plan.rows]


# As GluonCV's model_zoo/mobilenet.py puts its blocks together: the sequences' positions, and the parameters' names.
GLUON = {
    "MobilenetV1/Conv2d_0/weights": ("features.0.weight", "mobilenet0_conv0_weight"),
    "MobilenetV1/Conv2d_1_depthwise/BatchNorm/gamma": ("features.4.gamma", "mobilenet0_batchnorm1_gamma"),
    "MobilenetV1/Conv2d_13_pointwise/BatchNorm/moving_variance": (
        "features.79.running_var", "mobilenet0_batchnorm26_running_var",
    ),
    "MobilenetV2/Conv/weights": ("features.0.weight", "mobilenetv20_features_conv0_weight"),
    "MobilenetV2/Conv/BatchNorm/beta": ("features.1.beta", "mobilenetv20_features_batchnorm0_beta"),
    "MobilenetV2/expanded_conv/depthwise/depthwise_weights": (
        "features.3.out.0.weight", "mobilenetv20_features_linearbottleneck0_conv0_weight",
    ),
    "MobilenetV2/expanded_conv/project/BatchNorm/gamma": (
        "features.3.out.4.gamma", "mobilenetv20_features_linearbottleneck0_batchnorm1_gamma",
    ),
    "MobilenetV2/expanded_conv_16/project/weights": (
        "features.19.out.6.weight", "mobilenetv20_features_linearbottleneck16_conv2_weight",
    ),
    "MobilenetV2/Conv_1/BatchNorm/moving_mean": (
        "features.21.running_mean", "mobilenetv20_features_batchnorm1_running_mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("canonical", GLUON)
def test_gluon_names(canonical):
    family = mobilenet_v1 if "V1" in canonical else mobilenet_v2
    gluon, parameters, stripped = (v for v in family.VOCABULARIES if v.name.startswith("GluonCV"))
    name = f"FeatureExtractor/{canonical}"
    assert (apply_rules(name, gluon.rules), apply_rules(name, parameters.rules)) == GLUON[canonical]
    assert f"mobilenet{'0' if 'V1' in canonical else 'v20'}_{apply_rules(name, stripped.rules)}" == GLUON[canonical][1]


@pytest.mark.parametrize("net, family", [("v1", mobilenet_v1), ("v2", mobilenet_v2)])
def test_every_vocabulary_names_every_variable_once(request, net, family):
    names = request.getfixturevalue(net).variables
    for vocabulary in family.VOCABULARIES:
        spelled = {apply_rules(name, vocabulary.rules) for name in names}
        assert len(spelled) == len(names) and not any("Mobilenet" in name for name in spelled), vocabulary.name


def test_keras_3_calls_depthwise_kernels_kernels(v1):
    values = {
        v1.target.tf2_names[name].replace("depthwise_kernel", "kernel"): np.full(shape, 0.5, np.float32)
        for name, shape in v1.target.shapes.items()
    }
    plan = v1.restore(_source(values, HWIO))
    assert {row.rule for row in plan.rows} == {"TF2 name", "Keras 3 name"}
    assert all(row.status is Status.RESTORED for row in plan.rows)


def test_a_checkpoint_under_two_vocabularies_is_told(v2, recorder):
    values = _torchvision(recorder)
    names = recorder.read_names(FIXTURES / "timm_mobilenetv2_100.names")
    both = values | dict(zip(names, values.values(), strict=True))
    plan = v2.restore(_source(both))
    notice = "260 variables are in the checkpoint under more than one name; taken is the first"
    assert any(notice in line and "(torchvision)" in line and "(timm)" in line for line in plan.text().splitlines())
    assert v2.restore(_source(both), skip=(r"^(blocks|bn\d|conv_)",)).sources[0].notices[0].startswith("52 batch norms")


TF_VISION = {
    "MobilenetV1/Conv2d_0/weights": "backbone/layer_with_weights-0/_conv0/kernel",
    "MobilenetV1/Conv2d_1_depthwise/depthwise_weights": "backbone/layer_with_weights-1/_dwconv0/depthwise_kernel",
    "MobilenetV1/Conv2d_13_pointwise/BatchNorm/gamma": "backbone/layer_with_weights-13/_norm1/gamma",
    "MobilenetV2/expanded_conv/depthwise/BatchNorm/beta": "backbone/layer_with_weights-1/_norm1/beta",
    "MobilenetV2/expanded_conv_16/project/weights": "backbone/layer_with_weights-17/_conv2/kernel",
    "MobilenetV2/Conv_1/weights": "backbone/layer_with_weights-18/_conv0/kernel",
}


@pytest.mark.parametrize("canonical", TF_VISION)
def test_tf_vision_object_paths(canonical):
    family = mobilenet_v1 if "V1" in canonical else mobilenet_v2
    first = next(vocabulary for vocabulary in family.VOCABULARIES if vocabulary.name == "TF-Vision")
    assert apply_rules(f"FeatureExtractor/{canonical}", first.rules) == TF_VISION[canonical]


# Our levels by their endpoint at the same place; their backbones stop before the last convolution of V2.
LEVELS = {
    "MobileNetV1": {"Conv2d_3_pointwise": "2", "Conv2d_5_pointwise": "3", "Conv2d_13_pointwise": "5"},
    "MobileNetV2": {"layer_14": "4", "layer_18": "5", "layer_19": None},
}


@pytest.mark.slow  # importing official.vision takes many seconds
@pytest.mark.parametrize("model_id", LEVELS)
@pytest.mark.parametrize("root", ["backbone", "model"])
def test_backbones_of_tf_models_official_itself(tmp_path, model_id, root):
    from official.vision.modeling.backbones import mobilenet
    from official.vision.modeling.decoders import fpn

    theirs = mobilenet.MobileNet(model_id, input_specs=tf_keras.layers.InputSpec(shape=[None, 64, 64, 3]))
    rng = np.random.default_rng(0)
    for weight in theirs.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    decoder = fpn.FPN(theirs.output_specs, min_level=3, max_level=5, num_filters=8)
    path = tf.train.Checkpoint(**{root: theirs}, decoder=decoder).save(str(tmp_path / "ckpt"))

    levels, family = LEVELS[model_id], {"MobileNetV1": mobilenet_v1, "MobileNetV2": mobilenet_v2}[model_id]
    module = getattr(family, model_id.replace("Net", "net"))
    ours = Net(module, family, tuple(levels), family.TF2_RULES, explicit_padding=False)
    plan = ours.restore(open_source(path))
    assert {(row.status, row.rule) for row in plan.rows} == {(Status.RESTORED, "TF-Vision as object path")}
    assert len(plan.rows) == len(theirs.weights)
    images = tf.constant(rng.uniform(-1, 1, (2, 64, 64, 3)), tf.float32)
    features, expected = ours.module(images), theirs(images)
    for level, endpoint in levels.items():
        if endpoint is not None:
            np.testing.assert_allclose(features[level], expected[endpoint], atol=1e-4 * np.std(expected[endpoint]))
