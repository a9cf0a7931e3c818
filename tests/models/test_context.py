"""Attention of regions to a bank of features and to each other."""

from __future__ import annotations

import batches
import numpy as np
import pytest
import tensorflow as tf
import two_stage
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.config import kinds, roi_heads
from od_finetune.errors import UserError
from od_finetune.export import bundle, runner, saved_model, signatures
from od_finetune.fields import ContextBank
from od_finetune.models.detectors.faster_rcnn import FasterRCNN
from od_finetune.models.heads.context import ContextAttention, ContextOptions
from od_finetune.models.layers import named_variables
from od_finetune.protos import faster_rcnn_pb2, model_pb2
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

OPTIONS = ContextOptions(context_feature_length=5, attention_bottleneck_dimension=4)
RANDOM = np.random.RandomState(0)
FEATURES = RANDOM.normal(size=(6, 2, 2, 3)).astype(np.float32)  # 2 images, 3 regions of each
BANK = RANDOM.normal(size=(2, 7, 5)).astype(np.float32)


def attention(**options: object) -> ContextAttention:
    module = ContextAttention(OPTIONS._replace(**options))
    module(FEATURES, tf.constant([3, 3]), module.empty_bank(tf.constant(2)), False)
    for index, variable in enumerate(named_variables(module).values()):
        drawn = np.random.RandomState(index).normal(size=variable.shape)
        variable.assign(np.abs(drawn) if len(variable.shape) == 1 else drawn)
    return module


def bank(size: tuple[int, int] = (7, 7), values: np.ndarray = BANK) -> ContextBank:
    return ContextBank(tf.constant(values), tf.constant(size))


def names(**options: object) -> list[str]:
    return list(dict.fromkeys(name.split("/weights")[0] for name in named_variables(attention(**options))
                              if name.endswith("weights")))  # fmt: skip


def test_names_are_those_of_tf1():
    block = "AttentionBlock0_AttentionLayer0/fully_connected"
    assert names() == [block, f"{block}_1", f"{block}_2", "fully_connected"]
    every = names(use_self_attention=True, num_attention_heads=2)
    assert [name for name in every if "/" not in name] == ["fully_connected", "fully_connected_1", "fully_connected_2"]
    assert every[0] == "SelfAttentionBlock/fully_connected"
    assert "AttentionBlock1_AttentionLayer0/fully_connected_2" in every


def project(module: ContextAttention, scope: str, inputs: np.ndarray) -> np.ndarray:
    values = {name.removeprefix(f"{scope}/"): variable.numpy() for name, variable in named_variables(module).items()
              if name.startswith(f"{scope}/")}  # fmt: skip
    norm = {leaf: values[f"BatchNorm/{leaf}"] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    centred = (inputs @ values["weights"] - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3)
    return np.clip(centred * norm["gamma"] + norm["beta"], 0, 6)


def test_attention_by_hand():
    module = attention(attention_temperature=0.5)
    found = module(FEATURES, tf.constant([3, 3]), bank(), False).numpy().reshape(2, 3, 3)
    block = "AttentionBlock0_AttentionLayer0/fully_connected"
    means = FEATURES.mean(axis=(1, 2)).reshape(2, 3, 3)

    def unit(scope: str, inputs: np.ndarray) -> np.ndarray:
        projected = project(module, scope, inputs)
        return projected / np.maximum(np.linalg.norm(projected, axis=-1, keepdims=True), 1e-6)

    queries, keys, values = unit(block, means), unit(f"{block}_1", BANK), unit(f"{block}_2", BANK)
    weights = np.exp(queries @ keys.transpose(0, 2, 1) / 0.5)
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = 2 * means + project(module, "fully_connected", weights @ values)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_sequence", [False, True])
def test_padding_changes_nothing(in_sequence: bool):
    module = attention(use_self_attention=True, self_attention_in_sequence=in_sequence)
    count = tf.constant([2, 3])
    expected = module(FEATURES, count, bank((4, 7)), False).numpy().reshape(2, 3, 3)
    features, values = FEATURES.copy(), BANK.copy()
    features[2], values[0, 4:] = 9.0, 9.0  # the padding of the first image
    found = module(features, count, bank((4, 7), values), False).numpy().reshape(2, 3, 3)
    np.testing.assert_allclose(found[0, :2], expected[0, :2], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    values[0, 0] = 9.0
    changed = module(FEATURES, count, bank((4, 7), values), False).numpy().reshape(2, 3, 3)
    assert np.abs(changed[0, :2] - expected[0, :2]).max() > 1e-4


def test_more_than_the_maximum_is_cut_off():
    module = attention(max_num_context_features=4)
    count = tf.constant([3, 3])
    np.testing.assert_array_equal(module(FEATURES, count, bank(), False),
                                  module(FEATURES, count, bank((4, 4), BANK[:, :4]), False))  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [
    ("use_long_term_attention: false", "both use_self_attention and use_long_term_attention are false"),
    ("attention_position: ATTENTION_DEFAULT", "attention_position: found ATTENTION_DEFAULT"),
    ("num_attention_heads: 0", "num_attention_heads: found 0, expected more than 0"),
])  # fmt: skip
def test_contexts_that_cannot_be(text: str, message: str):
    proto = text_format.Parse(f"context_config {{ {text} }}", faster_rcnn_pb2.FasterRcnn())
    with pytest.raises(UserError, match=message):
        roi_heads.build_context(proto)


def test_no_context_without_a_message():
    assert roi_heads.build_context(faster_rcnn_pb2.FasterRcnn()) is None


def tiny() -> FasterRCNN:
    return two_stage.tiny(context_config="attention_bottleneck_dimension: 4 context_feature_length: 5 "
                          "attention_temperature: 1.0")  # fmt: skip


@pytest.mark.slow
def test_regions_of_a_detector_see_the_bank():
    detector = tiny()
    variables = detector.named_variables()
    assert {detector.part(name) for name in variables if "fully_connected" in name} == {"head"}
    images = tf.constant(RANDOM.normal(size=(2, 64, 64, 3)).astype(np.float32))
    shapes = tf.constant([[64, 64, 3]] * 2)

    @tf.function(autograph=False)
    def classes(seen: ContextBank | None) -> tf.Tensor:
        return detector.predict(images, shapes, context=seen)[fields.CLASS_PREDICTIONS]

    empty = classes(None)
    np.testing.assert_allclose(classes(bank((0, 0))), empty, rtol=1e-5, atol=1e-5)
    assert np.abs(classes(bank()) - empty).max() > 1e-3

    @tf.function(autograph=False)
    def gradient(seen: ContextBank | None) -> tf.Tensor:
        text = tf.constant(["a", "b"])
        batch = fields.Batch(images, shapes, batches.two_objects(), text, text, shapes[:, :2], seen)
        return trainer.gradients(batch)[1]["AttentionBlock0_AttentionLayer0/fully_connected_1/weights"]

    plan = FreezePlan.compute(detector, FreezeRequest())
    trainer = Trainer(detector, plan, optimizers.Adam(schedules.constant(1e-3)), tf.data.Dataset.range(1))
    assert np.abs(gradient(bank())).max() > 0
    assert np.abs(gradient(None)).max() == 0


@pytest.mark.slow
def test_an_export_takes_the_bank(tmp_path):
    detector = tiny()
    detector.build()
    images = (RANDOM.randint(-3, 4, (2, 64, 64, 3)) + [124, 117, 104]).astype(np.uint8)  # near what becomes 0
    seen = bank((7, 3))

    @tf.function(autograph=False)
    def scores(pixels: tf.Tensor, context: ContextBank | None) -> tf.Tensor:
        inputs, shapes = detector.preprocess(pixels)
        return detector.postprocess(detector.predict(inputs, shapes, context=context), shapes).raw_scores

    pixels = tf.constant(images)
    classes = detector.named_variables()["SecondStageBoxPredictor/ClassPredictor/weights"]
    classes.assign(classes / 5)  # whose scores would all be 0 or 1
    expected, without = scores(pixels, seen), scores(pixels, None)
    assert np.abs(expected - without).max() > 1e-3
    formats = bundle.export(detector, tmp_path / "images", signatures.IMAGE_TENSOR)
    assert list(formats.inputs) == ["image_tensor", "context_features", "valid_context_size"]
    for path in (tmp_path / "images" / "frozen_inference_graph.pb", tmp_path / "images" / "saved_model"):
        exported = runner.load(path)
        found = exported(images, (seen.features.numpy(), seen.size.numpy()))
        np.testing.assert_allclose(found["raw_detection_scores"], expected, atol=1e-5)
        np.testing.assert_allclose(exported(images)["raw_detection_scores"], without, atol=1e-5)
        assert exported.detect(tf.io.encode_png(images[0]).numpy()).boxes.shape[-1] == 4

    saved_model.export(detector, tmp_path / "records", signatures.TF_EXAMPLE)
    records = [
        tf.train.Example(features=tf.train.Features(feature={
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])),
            "image/context_features": tf.train.Feature(float_list=tf.train.FloatList(value=BANK[row, :size].ravel())),
        })).SerializeToString()
        for row, (image, size) in enumerate(zip(images, (7, 3), strict=True))
    ]  # fmt: skip
    exported = runner.load(tmp_path / "records")
    np.testing.assert_allclose(exported(np.array(records, object))["raw_detection_scores"], expected, atol=1e-5)
    with pytest.raises(UserError, match="this export takes none beside its images"):
        exported(np.array(records, object), (BANK, np.array([7, 3])))
    bare = []
    for serialized in records:
        example = tf.train.Example.FromString(serialized)
        del example.features.feature["image/context_features"]
        bare.append(example.SerializeToString())
    np.testing.assert_allclose(exported(np.array(bare, object))["raw_detection_scores"], without, atol=1e-5)
    example.features.feature["image/context_features"].float_list.value.extend([1.0] * 8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="numbers in image/context_features, which are rows of 5"):
        exported(np.array([example.SerializeToString()], object))
    del example.features.feature["image/context_features"].float_list.value[5:]
    example.features.feature["image/context_feature_length"].int64_list.value.append(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="image/context_feature_length"):
        exported(np.array([example.SerializeToString()], object))


@pytest.mark.parametrize(("features", "sizes", "message"), [
    ((1, 7, 5), (7, 3), r"have the shape \[1, 7, 5\], expected \[2, rows, 5\] for 2 images"),
    ((2, 7, 4), (7, 3), r"have the shape \[2, 7, 4\]"),
    ((2, 7), (7, 3), r"have the shape \[2, 7\]"),
    ((2, 7, 5), (7,), r"numbers of context features are \[7\], expected 2"),
    ((2, 7, 5), (7, 8), r"numbers of context features are \[7, 8\], expected 2, none above the 7 rows"),
])  # fmt: skip
def test_banks_that_an_export_does_not_take(features, sizes, message):
    exported = runner.ExportedDetector(tf.TensorSpec([None], tf.uint8), False, lambda batch, **side: side, (None, 5))
    with pytest.raises(UserError, match=message):
        exported(np.zeros(2), (np.zeros(features, np.float32), np.array(sizes)))


def test_regions_that_attend_to_each_other_alone_take_no_bank():
    model = model_pb2.DetectionModel()
    text_format.Parse("context_config { use_self_attention: true use_long_term_attention: false }", model.faster_rcnn)
    assert kinds.context_size(model) is None
    assert roi_heads.build_context(model.faster_rcnn).size is None
    model.faster_rcnn.context_config.use_long_term_attention = True
    assert kinds.context_size(model) == roi_heads.build_context(model.faster_rcnn).size == (2000, 2057)
