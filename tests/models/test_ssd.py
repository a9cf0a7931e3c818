"""SSD at a tiny width: it builds, trains, freezes and names its variables."""

from __future__ import annotations

import re

import batches
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import everyday
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.boxes.coders import FasterRcnnCoder
from od_finetune.config.detector import build_detector
from od_finetune.config.extractors import TABLE
from od_finetune.models.detectors.ssd import SSD
from od_finetune.protos import model_pb2

HYPERPARAMS = """conv_hyperparams {
  regularizer { l2_regularizer { weight: 4e-5 } }
  initializer { truncated_normal_initializer { stddev: 0.03 } }
  activation: RELU_6
  batch_norm { decay: 0.9 scale: true }
}"""
TINY = """ssd {
  num_classes: 2
  image_resizer { fixed_shape_resizer { height: 64 width: 64 } }
  feature_extractor { type: "%s" depth_multiplier: 0.05 min_depth: 4 %s }
  box_coder { faster_rcnn_box_coder {} }
  matcher { argmax_matcher { force_match_for_each_row: true } }
  similarity_calculator { iou_similarity {} }
  box_predictor { convolutional_box_predictor { %s } }
  anchor_generator { ssd_anchor_generator { aspect_ratios: 1.0 aspect_ratios: 2.0 } }
  loss { localization_loss { weighted_smooth_l1 {} } classification_loss { weighted_sigmoid {} } }
  post_processing { batch_non_max_suppression { score_threshold: 0.1 max_detections_per_class: 10
                                                max_total_detections: 10 }
                    score_converter: SIGMOID }
}"""
FPN = {  # what a feature pyramid is used with
    "anchor_generator": "multiscale_anchor_generator { aspect_ratios: [1.0, 2.0] scales_per_octave: 1 }",
    "box_predictor": f"""weight_shared_convolutional_box_predictor {{ depth: 8 num_layers_before_predictor: 2
                                                                     {HYPERPARAMS} }}""",
}
IMAGES = np.random.RandomState(0).randint(0, 256, (2, 48, 80, 3)).astype(np.uint8)
# Of EfficientDets one, and another with -m slow. The other families have tests of their own beside this file.
_KINDS = re.compile("ssd_(mobilenet_v[12](_fpn)?(_keras)?|efficientnet_lite.*|efficientnet-b[06]_.*|resnet50_.*)")
TYPES = [kind for kind in sorted(TABLE) if _KINDS.fullmatch(kind)]


def tiny(kind: str = "ssd_mobilenet_v1", extractor: str = "", predictor: str = "", **ssd: object) -> SSD:
    text = TINY % (kind, f"{HYPERPARAMS} {extractor}", f"{HYPERPARAMS} {predictor}")
    model = text_format.Parse(text, model_pb2.DetectionModel())
    for name, value in ((FPN if "fpn" in kind else {}) | ssd).items():
        if isinstance(value, str):
            model.ssd.ClearField(name)
            text_format.Parse(value, getattr(model.ssd, name))
        else:
            setattr(model.ssd, name, value)
    return build_detector(model)


def predict(detector: SSD, images: np.ndarray = IMAGES, training: bool = False) -> dict:
    return detector.predict(*detector.preprocess(tf.convert_to_tensor(images)), training=training)


LARGE = {"ssd_efficientnet-b0_bifpn_keras", "ssd_efficientnet-b6_bifpn_keras"}  # in the number of their layers


@pytest.mark.parametrize("kind", everyday(TYPES, set(TYPES) - LARGE))
def test_shapes_names_and_parts(kind):
    detector = tiny(kind)
    variables = detector.named_variables()
    assert set(detector.tf2_names()) == set(variables)
    assert len(set(detector.tf2_names().values())) == len(variables)
    ruled = {name for name in detector.tf2_names().values() if not name.startswith("WeightShared")}  # the same in TF2
    assert not any("FeatureExtractor" in name or "BatchNorm" in name for name in ruled)
    assert {detector.part(name) for name in variables} == {"backbone", "neck", "head"}
    # tf_keras lists a variable twice that does not train although its layer does.
    owned = sum(len({weight.ref() for weight in layer.weights}) for layer in detector.weighted_layers().values())
    assert owned == len(variables) == len({variable.ref() for variable in variables.values()})
    scopes = ["WeightSharedConvolutionalBoxPredictor"] if "fpn" in kind else [f"BoxPredictor_{i}" for i in range(6)]
    assert {name for name in variables if detector.is_class_head(name)} == {
        f"{scope}/ClassPredictor/{leaf}" for scope in scopes for leaf in ("weights", "biases")
    }
    kernels = {name for name in variables if name.endswith(("/weights", "wise_weights"))}
    unregularized = kernels - set(detector.regularizers())
    # These leave depthwise kernels of the backbone out.
    without = kind in ("ssd_mobilenet_v2", "ssd_mobilenet_v2_fpn") or "efficientnet-b" in kind
    assert all(name.endswith("depthwise_weights") for name in unregularized) and bool(unregularized) == without

    predictions = predict(detector)
    anchors = predictions[fields.ANCHORS].shape[0]
    assert predictions[fields.BOX_ENCODINGS].shape == (2, anchors, 4)
    assert predictions[fields.CLASS_PREDICTIONS].shape == (2, anchors, 3)
    sizes = [8, 4, 2, 1, 1] if "fpn" in kind else [4, 2, 1, 1, 1, 1]
    assert [features.shape[1] for features in predictions[fields.FEATURE_MAPS]] == sizes
    detections = detector.postprocess(predictions, tf.constant([[64, 64, 3]] * 2))
    assert detections.boxes.shape == (2, 10, 4) and detections.raw_scores.shape == (2, anchors, 3)
    before = list(variables.values())
    detector.build()
    assert all(a is b for a, b in zip(before, detector.named_variables().values(), strict=True))


SMALL = {"anchor_generator": "ssd_anchor_generator { num_layers: 3 aspect_ratios: 1.0 }"}
TRAINED = {
    "ssd_mobilenet_v1": ("num_layers: 3", SMALL),
    "ssd_mobilenet_v2_keras": ("num_layers: 3", SMALL),
    "ssd_efficientnet_lite0_fpn": ("fpn {}", {}),
}


@pytest.mark.parametrize("kind", everyday(TRAINED, {"ssd_mobilenet_v1"}))
def test_a_few_steps_bring_the_loss_down_and_move_the_variables(kind):
    tf_keras.utils.set_random_seed(1)
    extractor, settings = TRAINED[kind]
    predictor = "use_dropout: false use_depthwise: true kernel_size: 3"
    detector = tiny(kind, f"use_depthwise: true {extractor}", predictor, **settings)
    variables = detector.named_variables()
    trained = [variable for variable in variables.values() if variable.trainable]
    start = {name: variable.numpy() for name, variable in variables.items()}
    inputs, true_shapes = detector.preprocess(tf.constant(IMAGES))

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = detector.losses(detector.predict(inputs, true_shapes, training=True), batches.two_objects())
            loss = tf.add_n(list(losses.values()))
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(0.01 * gradient)
        return loss

    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    still = {name for name, variable in variables.items() if np.array_equal(start[name], variable.numpy())}
    # No box matches an anchor of every map; all else learns from the background too.
    idle = [re.search(r"^(BoxPredictor_\d)/BoxEncoding|/BoxPredictionTower/\w+/BatchNorm/(feature_\d)/", name)
            for name in still]
    num_maps = len(predict(detector)[fields.FEATURE_MAPS])
    assert all(idle) and len({match[1] or match[2] for match in idle}) < num_maps


@pytest.mark.parametrize(
    "kind, background", [("ssd_mobilenet_v1", True), ("ssd_mobilenet_v1_fpn", True), ("ssd_mobilenet_v1_fpn", False)]
)
def test_class_layout_says_which_outputs_are_a_classs(kind, background):
    detector = tiny(kind, add_background_class=background, num_classes=3)
    layouts = {name: detector.class_layout(name) for name in detector.named_variables()}
    found = {name: layout for name, layout in layouts.items() if layout is not None}
    assert set(found) == {name for name in layouts if detector.is_class_head(name)}
    before = predict(detector)[fields.CLASS_PREDICTIONS].numpy()
    for name, layout in found.items():
        assert layout.num_classes == 3 and layout.background == (0 if background else None)
        variable = detector.named_variables()[name]
        assert layout.size == variable.shape[-1]
        if name.endswith("biases"):
            outputs = np.zeros([layout.groups, layout.slots, layout.width], np.float32)
            outputs[:, layout.slot(1)] = 100.0
            variable.assign_add(outputs.ravel())
    change = predict(detector)[fields.CLASS_PREDICTIONS].numpy() - before
    np.testing.assert_allclose(change[..., 1 + background], 100.0, atol=1e-3)
    np.testing.assert_allclose(np.delete(change, 1 + background, axis=-1), 0.0, atol=1e-3)


def test_freeze_batchnorm_keeps_all_statistics():
    detector = tiny(freeze_batchnorm=True)
    before = {name: v.numpy() for name, v in detector.named_variables().items() if "moving" in name}
    predict(detector, training=True)
    assert before and all(np.array_equal(before[n], v) for n, v in detector.named_variables().items() if n in before)


def test_layers_that_are_not_trainable_keep_their_statistics():
    detector = tiny()
    for scope, layer in detector.weighted_layers().items():
        layer.trainable = detector.part(f"{scope}/x") != "backbone"
    before = {name: v.numpy() for name, v in detector.named_variables().items() if "moving" in name}
    predict(detector, training=True)
    moved = {detector.part(n) for n, v in detector.named_variables().items()
             if n in before and not np.array_equal(before[n], v)}
    assert moved == {"neck"}


def test_dropout_acts_in_training_alone():
    detector = tiny(predictor="use_dropout: true dropout_keep_probability: 0.5", freeze_batchnorm=True)
    first, second = (predict(detector, training=True)[fields.CLASS_PREDICTIONS] for _ in range(2))
    assert np.abs(first - second).max() > 0
    first, second = (predict(detector)[fields.CLASS_PREDICTIONS] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_predictor_options():
    detector = tiny(
        predictor="num_layers_before_predictor: 2 min_depth: 6 max_depth: 8 class_prediction_bias_init: -3 "
        "apply_sigmoid_to_scores: true box_encodings_clip_range { min: -0.001 max: 0.001 }",
        add_background_class=False,
        encode_background_as_zeros=True,
    )
    names = list(detector.named_variables())
    assert names.index("BoxPredictor_0/Conv2d_0_1x1_8/weights") < names.index("BoxPredictor_0/Conv2d_1_1x1_8/weights")
    assert detector.tf2_names()["BoxPredictor_0/Conv2d_1_1x1_8/BatchNorm/beta"] == (
        "BoxPredictor/SharedConvolutions_0/Conv2d_1_1x1_8_norm/beta"
    )
    predictions = predict(detector)
    assert predictions[fields.CLASS_PREDICTIONS].shape[-1] == 2
    np.testing.assert_allclose(predictions[fields.CLASS_PREDICTIONS], 1 / (1 + np.exp(3)), atol=0.02)
    assert np.abs(predictions[fields.BOX_ENCODINGS]).max() <= 0.001


def test_padding_is_outside_of_what_is_detected_and_learnt():
    resizer = "keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 64 pad_to_max_dimension: true }"
    detector = tiny(image_resizer=resizer)
    inputs, true_shapes = detector.preprocess(tf.constant(IMAGES))
    np.testing.assert_array_equal(true_shapes, [[38, 64, 3]] * 2)
    np.testing.assert_array_equal(inputs[:, 38:], 0.0)  # -1..1 is what the network takes
    predictions = detector.predict(inputs, true_shapes)
    # A perfect prediction of a box that is the upper left quarter of the true part.
    box = tf.constant([0.0, 0.0, 0.5, 0.5])
    in_padded = box * tf.constant([38 / 64, 1.0, 38 / 64, 1.0])
    anchors = predictions[fields.ANCHORS]
    codes = FasterRcnnCoder().encode(in_padded, anchors)
    predictions[fields.BOX_ENCODINGS] = tf.tile(codes[tf.newaxis], [2, 1, 1])
    labels = batches.two_objects()._replace(boxes=tf.tile(box[None, None], [2, 3, 1]))
    assert float(detector.losses(predictions, labels)[fields.LOCALIZATION_LOSS]) == pytest.approx(0.0, abs=1e-6)
    detections = detector.postprocess(predictions, true_shapes)
    np.testing.assert_allclose(detections.boxes[0, 0], box, atol=1e-5)


def test_size_of_the_image_may_be_unknown():
    detector = tiny(image_resizer="keep_aspect_ratio_resizer { min_dimension: 64 max_dimension: 128 }")

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def run(images):
        return predict(detector, images)

    dynamic = run(IMAGES)
    for name, value in predict(detector).items():
        if name != fields.FEATURE_MAPS:
            np.testing.assert_allclose(dynamic[name], value, atol=1e-5)
    assert dynamic[fields.FEATURE_MAPS][0].shape[1:3] == (4, 7)  # 64 x 107
