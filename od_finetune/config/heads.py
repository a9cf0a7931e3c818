"""box_predictor message -> head of a single-stage detector."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from od_finetune.config.hyperparams import build_hyperparams
from od_finetune.errors import UserError
from od_finetune.models.heads import dense, shared
from od_finetune.models.layers import ConvHyperparams
from od_finetune.names import Rules
from od_finetune.protos import box_predictor_pb2

AT = "model.ssd.box_predictor"
CONVOLUTIONAL = "convolutional_box_predictor"
WEIGHT_SHARED = "weight_shared_convolutional_box_predictor"

Options = dense.ConvolutionalHeadOptions | shared.SharedHeadOptions


def kind_of(proto: box_predictor_pb2.BoxPredictor) -> str:
    """Name of the predictor that is set.

    Raises:
      UserError: it is none that SSD has.
    """
    kind = proto.WhichOneof("box_predictor_oneof")
    if kind not in (CONVOLUTIONAL, WEIGHT_SHARED):
        raise UserError(f"{AT}: found {kind or 'nothing'}, expected {CONVOLUTIONAL} or {WEIGHT_SHARED}")
    return kind


def build_head(
    proto: box_predictor_pb2.BoxPredictor,
    anchors_per_location: list[int],
    class_slots: int,
    freeze_batchnorm: bool,
    keras: bool,
) -> tuple[tf.Module, Rules]:
    """The head, and the rules from its canonical names to those of TF2 checkpoints."""
    options = head_options(proto, freeze_batchnorm, keras)
    if isinstance(options, shared.SharedHeadOptions):
        return shared.SharedHead(options, anchors_per_location, class_slots), shared.TF2_RULES
    return dense.ConvolutionalHead(options, anchors_per_location, class_slots), dense.TF2_RULES


def head_options(proto: box_predictor_pb2.BoxPredictor, freeze_batchnorm: bool, keras: bool = True) -> Options:
    """The options of either predictor. `keras`: as in the OD API's TF2 half (only the shared one differs)."""
    kind = kind_of(proto)
    predictor = getattr(proto, kind)
    hyperparams = build_hyperparams(predictor.conv_hyperparams, f"{AT}.{kind}.conv_hyperparams")
    if freeze_batchnorm:
        hyperparams = hyperparams.frozen_batchnorm()
    clip = predictor.box_encodings_clip_range
    common = dict(
        kernel_size=predictor.kernel_size,
        box_code_size=predictor.box_code_size,
        num_layers_before_predictor=predictor.num_layers_before_predictor,
        dropout_keep_probability=predictor.dropout_keep_probability if predictor.use_dropout else 1.0,
        use_dropout=predictor.use_dropout,
        class_prediction_bias_init=predictor.class_prediction_bias_init,
        use_depthwise=predictor.use_depthwise,
        box_encodings_clip_range=(clip.min, clip.max) if predictor.HasField("box_encodings_clip_range") else None,
    )
    if kind == WEIGHT_SHARED:
        return _shared_options(predictor, hyperparams, keras, common)
    return dense.ConvolutionalHeadOptions(
        hyperparams=hyperparams,
        min_depth=predictor.min_depth,
        max_depth=predictor.max_depth,
        apply_sigmoid_to_scores=predictor.apply_sigmoid_to_scores,
        **common,
    )


def _shared_options(
    predictor: box_predictor_pb2.WeightSharedConvolutionalBoxPredictor,
    hyperparams: ConvHyperparams,
    keras: bool,
    common: dict,
) -> shared.SharedHeadOptions:
    """In TF1 towers end in ReLU6 whatever the config says, and separable convolutions take its hyperparams for both
    of their halves. In TF2 two fields decide about the latter."""
    if predictor.num_layers_before_predictor > 0 and predictor.depth < 1:
        raise UserError(f"{AT}.{WEIGHT_SHARED}.depth: found {predictor.depth}, expected the channels of the "
                        f"{predictor.num_layers_before_predictor} convolutions before the predictor, e.g. 128")
    if not keras:
        hyperparams = hyperparams._replace(activation="relu6")
        return shared.SharedHeadOptions(hyperparams, hyperparams, predictor.depth,
                                        share_prediction_tower=predictor.share_prediction_tower, **common)
    last = hyperparams._replace(plain_pointwise=True)
    if predictor.use_depthwise and not predictor.apply_conv_hyperparams_to_heads:
        last = last._replace(initializer=tf_keras.initializers.GlorotUniform, depthwise_regularizer=None)
    towers = hyperparams._replace(plain_pointwise=not predictor.apply_conv_hyperparams_pointwise)
    return shared.SharedHeadOptions(towers, last, predictor.depth,
                                    share_prediction_tower=predictor.share_prediction_tower, **common)


def converts_scores(proto: box_predictor_pb2.BoxPredictor) -> bool:
    """Whether the predictor, at inference, yields probabilities: a sigmoid before the post-processing's converter."""
    kinds = box_predictor_pb2.WeightSharedConvolutionalBoxPredictor
    return kind_of(proto) == WEIGHT_SHARED and getattr(proto, WEIGHT_SHARED).score_converter == kinds.SIGMOID
