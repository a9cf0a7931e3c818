"""Hyperparams message -> `layers.ConvHyperparams`."""

from __future__ import annotations

from collections.abc import Callable

import tf_keras

from od_finetune.errors import UserError
from od_finetune.models.layers import SLIM_VARIANCE, BatchNorm, ConvHyperparams, GroupNorm, Regularizer
from od_finetune.protos import hyperparams_pb2

_ACTIVATIONS = {
    hyperparams_pb2.Hyperparams.NONE: "none",
    hyperparams_pb2.Hyperparams.RELU: "relu",
    hyperparams_pb2.Hyperparams.RELU_6: "relu6",
    hyperparams_pb2.Hyperparams.SWISH: "swish",
}

def build_hyperparams(proto: hyperparams_pb2.Hyperparams, field: str = "conv_hyperparams") -> ConvHyperparams:
    """The hyperparams of convolutions; `field` is how an error names the message.

    Depthwise kernels are regularised like the others unless `regularize_depthwise: false` is written out: that is
    what the OD API's SSD models do when the field is not set.
    """
    if proto.op == hyperparams_pb2.Hyperparams.FC:
        raise UserError(f"{field}.op: found FC, expected CONV (fully connected layers have fc_hyperparams)")
    regularizer = build_regularizer(proto.regularizer)
    depthwise = regularizer if not proto.HasField("regularize_depthwise") or proto.regularize_depthwise else None
    return ConvHyperparams(
        initializer=build_initializer(proto.initializer, f"{field}.initializer"),
        regularizer=regularizer,
        depthwise_regularizer=depthwise,
        activation=_ACTIVATIONS[proto.activation],
        norm=_build_norm(proto),
        force_use_bias=proto.force_use_bias,
    )


def build_dense_hyperparams(proto: hyperparams_pb2.Hyperparams, field: str = "fc_hyperparams") -> ConvHyperparams:
    """The hyperparams of fully connected layers that end a network: initialiser and regulariser are all they use.

    Raises:
      UserError: the message is about convolutions, or asks for a norm, which such layers do not have.
    """
    if proto.op != hyperparams_pb2.Hyperparams.FC:
        raise UserError(f"{field}.op: found CONV, expected FC: these are fully connected layers")
    norm = proto.WhichOneof("normalizer_oneof")
    if norm is not None:
        raise UserError(f"{field}.{norm}: the last layers of a network have no norm; remove it")
    return ConvHyperparams(
        initializer=build_initializer(proto.initializer, f"{field}.initializer"),
        regularizer=build_regularizer(proto.regularizer),
        activation="none",
    )


def build_regularizer(proto: hyperparams_pb2.Regularizer) -> Regularizer | None:
    """L1 is weight * sum(|w|); L2 is weight * sum(w^2) / 2, hence half of what tf_keras calls L2."""
    kind = proto.WhichOneof("regularizer_oneof")
    if kind == "l1_regularizer":
        return tf_keras.regularizers.L1(proto.l1_regularizer.weight)
    if kind == "l2_regularizer":
        return tf_keras.regularizers.L2(0.5 * proto.l2_regularizer.weight)
    return None


def build_initializer(
    proto: hyperparams_pb2.Initializer, field: str = "initializer"
) -> Callable[[], tf_keras.initializers.Initializer]:
    """A function that makes a new initialiser at each call."""
    kind = proto.WhichOneof("initializer_oneof")
    if kind is None:
        return tf_keras.initializers.GlorotUniform
    message = getattr(proto, kind)
    if kind == "truncated_normal_initializer":
        return lambda: tf_keras.initializers.TruncatedNormal(message.mean, message.stddev)
    if kind == "random_normal_initializer":
        return lambda: tf_keras.initializers.RandomNormal(message.mean, message.stddev)
    if kind == "variance_scaling_initializer":
        mode = hyperparams_pb2.VarianceScalingInitializer.Mode.Name(message.mode).lower()
        scale = message.factor if message.uniform else message.factor * SLIM_VARIANCE
        distribution = "uniform" if message.uniform else "truncated_normal"
        return lambda: tf_keras.initializers.VarianceScaling(scale, mode, distribution)
    try:
        tf_keras.initializers.get(message)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{field}.keras_initializer_by_name: found {message!r}, expected the name of a tf_keras initializer "
            f"such as 'glorot_uniform' or 'he_normal'"
        ) from error
    return lambda: tf_keras.initializers.get(message)


def _build_norm(proto: hyperparams_pb2.Hyperparams) -> BatchNorm | GroupNorm | None:
    kind = proto.WhichOneof("normalizer_oneof")
    if kind is None:
        return None
    if kind == "group_norm":
        return GroupNorm()
    message = getattr(proto, kind)
    return BatchNorm(
        decay=message.decay,
        epsilon=message.epsilon,
        center=message.center,
        scale=message.scale,
        train=message.train,
        synchronized=kind == "sync_batch_norm",
    )
