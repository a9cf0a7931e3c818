"""box_predictor messages -> options of the heads."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from google.protobuf import text_format

from od_finetune.config import boxes, heads
from od_finetune.errors import UserError
from od_finetune.protos import box_predictor_pb2, post_processing_pb2

HYPERPARAMS = """conv_hyperparams { activation: RELU batch_norm {} regularizer { l2_regularizer { weight: 1 } }
                                   initializer { random_normal_initializer { stddev: 0.5 } } }"""


def message(text: str) -> box_predictor_pb2.BoxPredictor:
    return text_format.Parse(f"weight_shared_convolutional_box_predictor {{ depth: 8 {HYPERPARAMS} {text} }}",
                             box_predictor_pb2.BoxPredictor())


@pytest.mark.parametrize(
    ("text", "keras", "towers", "last"),
    [  # which halves of a separable convolution have the config's regulariser: (depthwise, pointwise)
        ("", False, (True, True), (True, True)),
        ("", True, (True, False), (False, False)),
        ("apply_conv_hyperparams_to_heads: true", True, (True, False), (True, False)),
        ("apply_conv_hyperparams_pointwise: true", True, (True, True), (False, False)),
    ],
)
def test_separable_convolutions(text, keras, towers, last):
    options = heads.head_options(message(f"use_depthwise: true {text}"), False, keras)
    for hyperparams, (depthwise, pointwise) in ((options.hyperparams, towers), (options.head_hyperparams, last)):
        assert (hyperparams.depthwise_regularizer is not None) == depthwise
        assert isinstance(hyperparams.initializer(), tf_keras.initializers.GlorotUniform) != depthwise
        assert (not hyperparams.plain_pointwise) == pointwise


def test_full_convolutions_always_have_the_configs_hyperparams():
    options = heads.head_options(message(""), False, keras=True)
    assert options.head_hyperparams.regularizer is not None
    assert isinstance(options.head_hyperparams.initializer(), tf_keras.initializers.RandomNormal)


def test_towers_of_tf1_end_in_relu6():
    assert heads.head_options(message(""), False, keras=False).hyperparams.activation == "relu6"
    assert heads.head_options(message(""), False, keras=True).hyperparams.activation == "relu"


def test_fields():
    options = heads.head_options(
        message("num_layers_before_predictor: 2 kernel_size: 5 class_prediction_bias_init: -1 use_dropout: true "
                "share_prediction_tower: true box_encodings_clip_range { min: -1 max: 2 }"), True)  # fmt: skip
    assert options.num_layers_before_predictor == 2 and options.kernel_size == 5 and options.depth == 8
    assert options.class_prediction_bias_init == -1 and options.dropout_keep_probability == pytest.approx(0.8)
    assert options.share_prediction_tower and options.box_encodings_clip_range == (-1, 2)
    assert not options.hyperparams.norm.train


def test_a_tower_needs_a_width():
    proto = message("num_layers_before_predictor: 1")
    proto.weight_shared_convolutional_box_predictor.depth = 0
    with pytest.raises(UserError, match="depth: found 0"):
        heads.head_options(proto, False)


def test_the_heads_score_converter_comes_before_that_of_post_processing():
    assert not heads.converts_scores(message(""))
    assert heads.converts_scores(message("score_converter: SIGMOID"))
    post = text_format.Parse("batch_non_max_suppression {}", post_processing_pb2.PostProcessing())
    logits = tf.constant([[-1.0, 2.0]])
    np.testing.assert_allclose(boxes.build_postprocess(post, True).convert_scores(logits), tf.sigmoid(logits))
    np.testing.assert_allclose(boxes.build_postprocess(post).convert_scores(logits), logits)
