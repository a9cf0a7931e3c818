"""Messages -> hyperparams, extractors, resizers, detectors, and the errors on the way."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from google.protobuf import text_format

from od_finetune.config import detector as config
from od_finetune.config import resizers
from od_finetune.config.extractors import TABLE, build_extractor
from od_finetune.config.hyperparams import build_hyperparams, build_initializer
from od_finetune.errors import UserError
from od_finetune.models import image_resizers
from od_finetune.models.layers import BatchNorm, GroupNorm, weighted_layers
from od_finetune.protos import hyperparams_pb2, image_resizer_pb2, model_pb2, ssd_pb2


def hyperparams(text: str):
    return build_hyperparams(text_format.Parse(text, hyperparams_pb2.Hyperparams()))


def extractor(text: str, **arguments):
    return build_extractor(text_format.Parse(text, ssd_pb2.SsdFeatureExtractor()), **arguments)


def test_hyperparams():
    built = hyperparams("activation: SWISH batch_norm { decay: 0.5 epsilon: 0.25 center: false train: false }")
    assert built.activation == "swish" and built.regularizer is None and not built.force_use_bias
    assert built.norm == BatchNorm(decay=0.5, epsilon=0.25, center=False, scale=False, train=False)
    assert hyperparams("sync_batch_norm {}").norm.synchronized
    assert hyperparams("group_norm {}").norm == GroupNorm()
    assert hyperparams("").norm is None and hyperparams("").activation == "relu"
    with pytest.raises(UserError, match="op: found FC"):
        hyperparams("op: FC")


@pytest.mark.parametrize(("extra", "regularized"), [("", True), ("regularize_depthwise: true", True),
                                                    ("regularize_depthwise: false", False)])
def test_regularizers(extra, regularized):
    built = hyperparams("regularizer { l2_regularizer { weight: 0.5 } } " + extra)
    np.testing.assert_allclose(built.regularizer(np.array([2.0, 4.0], np.float32)), 0.5 * 20 / 2)
    assert (built.depthwise_regularizer is not None) == regularized
    built = hyperparams("regularizer { l1_regularizer { weight: 0.5 } }")
    np.testing.assert_allclose(built.regularizer(np.array([-2.0, 4.0], np.float32)), 3.0)


@pytest.mark.parametrize(
    ("text", "mean", "stddev"),
    [
        ("random_normal_initializer { mean: 1 stddev: 0.5 }", 1.0, 0.5),
        ("truncated_normal_initializer { stddev: 0.5 }", 0.0, 0.5 * 0.8796),
        ("variance_scaling_initializer { factor: 2.0 }", 0.0, 0.8796 * (1.3 * 2.0 / 288) ** 0.5),
        ("variance_scaling_initializer { factor: 2.0 mode: FAN_OUT uniform: true }", 0.0, (2.0 / 576) ** 0.5),
        ('keras_initializer_by_name: "he_normal"', 0.0, (2.0 / 288) ** 0.5),
        ("", 0.0, (2.0 / (288 + 576)) ** 0.5),
    ],
)
def test_initializers(text, mean, stddev):
    tf_keras.utils.set_random_seed(0)
    make = build_initializer(text_format.Parse(text, hyperparams_pb2.Initializer()))
    values = make()((3, 3, 32, 64)).numpy()
    assert values.mean() == pytest.approx(mean, abs=0.03 * stddev)
    assert values.std() == pytest.approx(stddev, rel=0.02)
    assert not np.array_equal(values, make()((3, 3, 32, 64)))


def test_unknown_keras_initializer():
    with pytest.raises(UserError, match="keras_initializer_by_name: found 'he_norml'"):
        hyperparams('initializer { keras_initializer_by_name: "he_norml" }')


def test_unknown_extractor_names_the_nearest():
    with pytest.raises(UserError, match="found 'ssd_mobilenetv2'.*nearest: ssd_mobilenet_v2"):
        extractor('type: "ssd_mobilenetv2"')


def test_extractor_without_hyperparams_of_its_own():
    with pytest.raises(UserError, match="override_base_feature_extractor_hyperparams: found false"):
        extractor("type: 'ssd_inception_v3'")


@pytest.mark.parametrize(
    ("kind", "maps"),
    [
        ("ssd_inception_v2", {"Mixed_5c_2_Conv2d_2_3x3_s2_512", "Mixed_5c_2_Conv2d_5_3x3_s2_128"}),
        ("ssd_inception_v3", {"Mixed_7c_2_Conv2d_3_3x3_s2_512", "Mixed_7c_2_Conv2d_5_3x3_s2_128"}),
    ],
)
def test_maps_on_top_of_inception(kind, maps):
    built = extractor(f"type: '{kind}' override_base_feature_extractor_hyperparams: true")
    assert built.num_maps == 6
    built.neck({level: tf.zeros([1, 2, 2, 1]) for level in built.backbone.levels})
    assert maps <= {scope.rpartition("/")[2] for scope in weighted_layers(built.neck)}


def test_extractor_refuses_what_it_does_not_have():
    with pytest.raises(UserError, match="feature_extractor.fpn"):
        extractor('type: "ssd_mobilenet_v1" fpn {}')
    with pytest.raises(UserError, match="num_layers: found 7"):
        extractor('type: "ssd_mobilenet_v1" num_layers: 7')


# MobileDet and MnasFPN have hyperparams of their own; and one of each kind of network is enough.
_OTHERS = re.compile("mobiledet|mnasfpn|v3_small|minimalistic|edgetpu|embedded|resnet1|efficientnet-b")
CONFIGURABLE = [kind for kind in sorted(TABLE) if TABLE[kind].defaults and not _OTHERS.search(kind)]


@pytest.mark.parametrize("kind", CONFIGURABLE)
@pytest.mark.parametrize("override", [False, True])
def test_base_hyperparams(kind, override):
    text = f'type: "{kind}" override_base_feature_extractor_hyperparams: {str(override).lower()}'
    built = extractor(text + " conv_hyperparams { activation: RELU batch_norm { decay: 0.5 } }")
    images = np.zeros((1, 32, 32, 3), np.float32)
    built.neck(built.backbone(images))
    first = next(module for module in built.backbone.submodules if hasattr(module, "momentum"))
    is_slims_resnet = "resnet" in kind and not kind.endswith("keras")
    assert first.momentum == (0.5 if override and not is_slims_resnet else TABLE[kind].defaults.norm.decay)
    # Without override, and always in slim's V2, V3 and ResNets and in EfficientNet-Lite, gamma is learnt; the config's
    # norm has none.
    slim = ("ssd_mobilenet_v2", "ssd_mobilenet_v2_fpn", "ssd_mobilenet_v3_large")
    always = kind in slim or "efficientnet_lite" in kind or is_slims_resnet
    assert first.scale == (not override or always)
    if not kind.endswith("_ppn"):  # which has no norm in its neck
        extra = next(module for module in built.neck.submodules if hasattr(module, "momentum"))
        assert extra.momentum == 0.5 and not extra.scale


@pytest.mark.parametrize("kind", ["ssd_mobiledet_gpu", "ssd_mobilenet_v2_mnasfpn"])
def test_hyperparams_that_no_config_changes(kind, caplog):
    text = "override_base_feature_extractor_hyperparams: true conv_hyperparams { batch_norm { decay: 0.5 } }"
    built = extractor(f'type: "{kind}" depth_multiplier: 0.1 {text}', freeze_batchnorm=True)
    assert f"has no effect on {kind}" in caplog.text
    parts = [built.backbone, built.neck] if kind.endswith("mnasfpn") else [built.backbone]
    norms = [module for part in parts for module in part.submodules if hasattr(module, "momentum")]
    assert len(norms) >= 50
    assert {(norm.momentum, norm.epsilon, norm.keeps_statistics) for norm in norms} == {(0.99, 0.01, True)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('type: "ssd_mobilenet_v1_fpn" bifpn {}', "bifpn: ssd_mobilenet_v1_fpn has a plain feature pyramid"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" fpn {}', "fpn: .* has a bidirectional feature pyramid"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" bifpn { min_level: 0 }', "found min_level 0 and max_level 7"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" bifpn { min_level: 6 }', "found min_level 6 and max_level 7"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" bifpn { max_level: 3 }', "found min_level 3 and max_level 3"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" bifpn { num_filters: 0 }', "num_filters: found 0"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" bifpn { combine_method: "fast_attn" }',
         "combine_method: found 'fast_attn'.*nearest: fast_attention"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" num_layers: 6', "num_layers: found 6.*bifpn, 3 to 7"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" use_explicit_padding: true', "use_explicit_padding: found true"),
        ('type: "ssd_efficientnet-b0_bifpn_keras" override_base_feature_extractor_hyperparams: true',
         "override_base_feature_extractor_hyperparams: found true"),
        ('type: "ssd_mobilenet_v1_fpn" num_layers: 6', "num_layers: found 6.*fpn, 3 to 7"),
        ('type: "ssd_mobilenet_v1_fpn" fpn { min_level: 1 }', "found min_level 1 and max_level 7"),
        ('type: "ssd_mobilenet_v1_fpn" fpn { min_level: 5 max_level: 4 }', "found min_level 5 and max_level 4"),
        ('type: "ssd_mobilenet_v1_ppn" fpn {}', "fpn: ssd_mobilenet_v1_ppn has no feature pyramid"),
        ('type: "ssd_mobilenet_v1_ppn" num_layers: 0', "num_layers: found 0, expected at least 1"),
        ('type: "ssd_mobilenet_v2_mnasfpn" fpn {}', "found min_level 3 and max_level 7, expected 3 and 6"),
        ('type: "ssd_mobilenet_v2_mnasfpn" bifpn {}', "bifpn: ssd_mobilenet_v2_mnasfpn has MnasFPN"),
        ('type: "ssd_mobilenet_v2_mnasfpn" num_layers: 6', "num_layers: found 6, but .* has 4 feature maps"),
        ('type: "embedded_ssd_mobilenet_v1" num_layers: 6', "num_layers: found 6, expected 1 to 5"),
    ],
)
def test_pyramids_that_cannot_be(text, message):
    with pytest.raises(UserError, match=message):
        extractor(text)


@pytest.mark.parametrize(("low", "high", "last"), [(3, 7, "Conv2d_13_pointwise"), (2, 4, "Conv2d_11_pointwise"),
                                                   (5, 6, "Conv2d_13_pointwise")])
def test_levels_of_a_pyramid(low, high, last):
    levels = f"fpn {{ min_level: {low} max_level: {high} }}"
    built = extractor(f'type: "ssd_mobilenet_v1_fpn" depth_multiplier: 0.1 {levels}')
    maps = built.neck(built.backbone(np.zeros((1, 128, 128, 3), np.float32)))
    assert [features.shape[1] for features in maps] == [128 // 2**level for level in range(low, high + 1)]
    assert built.num_maps == len(maps) and {features.shape[3] for features in maps} == {25}
    assert list(weighted_layers(built.backbone))[-1] == f"FeatureExtractor/MobilenetV1/{last}/BatchNorm"


@pytest.mark.parametrize(
    ("kind", "text", "filters", "last", "method"),
    [
        ("b0", "", 64, "node_25/3_up_lvl_7", "fast_attention"),
        ("b0", "bifpn { num_iterations: 1 }", 64, "node_09/1_up_lvl_7", "fast_attention"),
        ("b6", "", 384, "node_65/8_up_lvl_7", "sum"),
        # A message that is there says fast_attention unless it says something else.
        ("b6", "bifpn { num_iterations: 1 num_filters: 16 max_level: 5 } min_depth: 24", 24, "node_03/1_up_lvl_5",
         "fast_attention"),
    ],
)  # fmt: skip
def test_a_bifpn_is_the_versions_unless_the_config_says_otherwise(kind, text, filters, last, method):
    built = extractor(f'type: "ssd_efficientnet-{kind}_bifpn_keras" {text}')
    maps = built.neck({level: tf.zeros([1, 64 // 2**i, 64 // 2**i, 8]) for i, level in enumerate(built.neck.levels)})
    assert {features.shape[3] for features in maps} == {filters} and len(maps) == built.num_maps
    layers = weighted_layers(built.neck)
    smooth = [scope for scope in layers if scope.endswith("separable_conv")]
    assert smooth[-1] == f"FeatureExtractor/Efficientnet{kind.upper()}/bifpn/{last}/post_combine/separable_conv"
    assert any(scope.endswith("/combine") for scope in layers) == (method != "sum")


def test_only_tf1s_fpnlite_has_a_narrow_last_convolution():
    for kind, filters in (("ssd_mobilenet_v2_fpn", 256), ("ssd_mobilenet_v2_fpn_keras", 1280)):
        built = extractor(f'type: "{kind}" use_depthwise: true')
        features = built.backbone(np.zeros((1, 32, 32, 3), np.float32))
        assert features["layer_19"].shape[3] == filters


def test_normalization_is_the_backbones():
    pixels = np.array([0.0, 127.0, 255.0], np.float32)
    np.testing.assert_allclose(extractor('type: "ssd_mobilenet_v1"').normalize(pixels), [-1, -1 / 255, 1], atol=1e-6)
    lite = extractor('type: "ssd_efficientnet_lite0_fpn"').normalize
    np.testing.assert_array_equal(lite(pixels), (pixels - 127) / 128)


def test_anchors_are_those_of_the_pyramids_levels():
    text = SSD.replace("ssd_mobilenet_v1", "ssd_mobilenet_v1_fpn").replace(
        "ssd_anchor_generator { aspect_ratios: 1.0 }",
        "multiscale_anchor_generator { min_level: 2 max_level: 6 aspect_ratios: 1.0 }",
    )
    text = text.replace("conv_hyperparams {} }", "conv_hyperparams {} fpn {} }", 1)
    with pytest.raises(UserError, match="found min_level 2 and max_level 6, expected 3 and 7"):
        config.build_detector(text_format.Parse(text, model_pb2.DetectionModel()))


def test_num_layers_shortens_the_network():
    built = extractor('type: "ssd_mobilenet_v1" depth_multiplier: 0.1 num_layers: 1')
    maps = built.neck(built.backbone(np.zeros((1, 32, 32, 3), np.float32)))
    assert built.num_maps == len(maps) == 1
    assert list(weighted_layers(built.backbone))[-1] == "FeatureExtractor/MobilenetV1/Conv2d_11_pointwise/BatchNorm"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed_shape_resizer { height: 5 width: 7 resize_method: BICUBIC convert_to_grayscale: true }",
         image_resizers.FixedShape(5, 7, "bicubic", True)),
        ("keep_aspect_ratio_resizer { min_dimension: 5 max_dimension: 7 pad_to_max_dimension: true "
         "per_channel_pad_value: [1, 2, 3] }",
         image_resizers.KeepAspectRatio(5, 7, "bilinear", True, False, (1.0, 2.0, 3.0))),
        ("identity_resizer {}", image_resizers.Identity()),
        ("conditional_shape_resizer { condition: SMALLER size_threshold: 9 resize_method: AREA }",
         image_resizers.ConditionalShape(False, 9, "area")),
        ("pad_to_multiple_resizer { multiple: 8 }", image_resizers.PadToMultiple(8)),
    ],
)
def test_resizers(text, expected):
    assert resizers.build_resizer(text_format.Parse(text, image_resizer_pb2.ImageResizer())) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "image_resizer: found nothing"),
        ("keep_aspect_ratio_resizer { min_dimension: 9 max_dimension: 7 }", "min_dimension 9"),
        ("keep_aspect_ratio_resizer { per_channel_pad_value: 1 }", "found 1 values"),
        ("conditional_shape_resizer { condition: INVALID }", "found INVALID"),
    ],
)
def test_resizer_errors(text, message):
    with pytest.raises(UserError, match=message):
        resizers.build_resizer(text_format.Parse(text, image_resizer_pb2.ImageResizer()))


SSD = """ssd {
  num_classes: 3
  image_resizer { fixed_shape_resizer {} }
  feature_extractor { type: "ssd_mobilenet_v1" conv_hyperparams {} }
  box_coder { faster_rcnn_box_coder {} }
  matcher { argmax_matcher {} }
  similarity_calculator { iou_similarity {} }
  box_predictor { convolutional_box_predictor { conv_hyperparams {} } }
  anchor_generator { ssd_anchor_generator { aspect_ratios: 1.0 } }
  loss { localization_loss { weighted_smooth_l1 {} } classification_loss { weighted_sigmoid {} } }
  post_processing { batch_non_max_suppression {} }
}"""


@pytest.mark.parametrize(
    ("find", "replace", "message"),
    [
        (SSD, "experimental_model {}", "found experimental_model, expected ssd"),
        ("num_classes: 3", "", "num_classes: found 0"),
        ("box_coder { faster_rcnn_box_coder", "box_coder { square_box_coder", "box_code_size: found 4, expected 3"),
        ("aspect_ratios: 1.0", "aspect_ratios: 1.0 num_layers: 4", "anchors for 4 feature maps.*has 6"),
        ("convolutional_box_predictor", "rfcn_box_predictor", "found rfcn_box_predictor"),
    ],
)
def test_detector_errors(find, replace, message):
    assert config.build_detector(text_format.Parse(SSD, model_pb2.DetectionModel())).num_classes == 3
    with pytest.raises(UserError, match=message):
        config.build_detector(text_format.Parse(SSD.replace(find, replace), model_pb2.DetectionModel()))
