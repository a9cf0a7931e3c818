"""Context R-CNN (Beery et al. 2020, arXiv:1912.03538): regions attend to what other images of the same camera showed,
and to each other."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from od_finetune.fields import ContextBank
from od_finetune.models.layers import BatchNorm, norm_layer

_NORM = BatchNorm(decay=0.97, epsilon=0.001, center=True, scale=True)
_NEVER = -1e5  # a logit that the softmax makes nothing of


class ContextOptions(NamedTuple):
    """The fields of Context, under the names they have there."""

    context_feature_length: int = 2057
    max_num_context_features: int = 2000
    attention_bottleneck_dimension: int = 2048
    attention_temperature: float = 0.01
    use_self_attention: bool = False
    use_long_term_attention: bool = True
    self_attention_in_sequence: bool = False
    num_attention_heads: int = 1
    num_attention_layers: int = 1


class Projection(tf.Module):
    """A fully connected layer without bias, a norm and ReLU6."""

    def __init__(self, scope: str, units: int):
        super().__init__()
        self._dense = tf_keras.layers.Dense(units, use_bias=False, name=scope)
        self._norm = norm_layer(scope, _NORM)

    def __call__(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        """`[B, N, D]` -> `[B, N, units]`; the norm's statistics are over all N of all B."""
        return tf.nn.relu6(self._norm(self._dense(features), training=training))


class AttentionHead(tf.Module):
    """One head: queries, keys and values within `scope`, and the projection back, `<output>`, beside it."""

    def __init__(self, scope: str, output: str, options: ContextOptions, channels: int):
        super().__init__()
        width = options.attention_bottleneck_dimension
        names = [f"{scope}/fully_connected{suffix}" for suffix in ("", "_1", "_2")]
        self._queries, self._keys, self._values = (Projection(name, width) for name in names)
        self._output = Projection(output, channels)
        self._temperature = options.attention_temperature

    def __call__(
        self, features: tf.Tensor, is_real: tf.Tensor, others: tf.Tensor, others_are_real: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Features `[B, P, D]`, which of them are no padding `[B, P]`, what they look at `[B, M, F]` and `[B, M]`
        -> `[B, P, D]`."""

        def projected(projection: Projection, inputs: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            outputs = tf.math.l2_normalize(projection(inputs, training), axis=-1)
            return outputs * tf.cast(mask, outputs.dtype)[..., tf.newaxis]

        queries = projected(self._queries, features, is_real)
        keys = projected(self._keys, others, others_are_real)
        values = projected(self._values, others, others_are_real)
        logits = tf.matmul(queries, keys, transpose_b=True)
        logits = tf.where(others_are_real[:, tf.newaxis], logits, _NEVER)
        return self._output(tf.matmul(tf.nn.softmax(logits / self._temperature), values), training)


class ContextAttention(tf.Module):
    """What is added to the features of regions.

    Layers follow each other, the heads of a layer are averaged. Attention among the regions themselves comes before
    them (`self_attention_in_sequence`) or beside them. Scopes are those of the OD API's TF1 half.
    """

    def __init__(self, options: ContextOptions):
        super().__init__()
        self._options = options
        self._own: AttentionHead | None = None  # how many channels there are is known at the first call
        self._layers: list[list[AttentionHead]] = []

    def _build(self, channels: int) -> None:
        options = self._options
        outputs = (f"fully_connected{f'_{index}' if index else ''}" for index in range(10**6))
        if options.use_self_attention:
            self._own = AttentionHead("SelfAttentionBlock", next(outputs), options, channels)
        if options.use_long_term_attention:
            self._layers = [
                [
                    AttentionHead(f"AttentionBlock{head}_AttentionLayer{layer}", next(outputs), options, channels)
                    for head in range(options.num_attention_heads)
                ]
                for layer in range(options.num_attention_layers)
            ]

    @property
    def size(self) -> tuple[int, int] | None:
        """Of a bank: rows at most, and their length; None where regions attend to each other alone."""
        if not self._options.use_long_term_attention:
            return None
        return self._options.max_num_context_features, self._options.context_feature_length

    def empty_bank(self, batch: tf.Tensor) -> ContextBank:
        """For `batch` images of which no others are known."""
        features = tf.zeros([batch, 1, self._options.context_feature_length])
        return ContextBank(features, tf.zeros([batch], tf.int32))

    def __call__(self, features: tf.Tensor, count: tf.Tensor, bank: ContextBank, training: bool) -> tf.Tensor:
        """Features `[B * P, h, w, D]`, how many of each image's P are no padding `[B]`, the bank -> what to add to
        them, `[B * P, 1, 1, D]`."""
        channels = features.shape[-1]
        if self._own is None and not self._layers:
            self._build(channels)
        means = tf.reshape(tf.reduce_mean(features, axis=[1, 2]), [tf.shape(count)[0], -1, channels])
        are_real = tf.sequence_mask(count, tf.shape(means)[1])
        own = self._own(means, are_real, means, are_real, training) if self._own is not None else None
        added = own if not self._layers else self._long_term(means, are_real, own, bank, training)
        return tf.reshape(added, [-1, 1, 1, channels])

    def _long_term(
        self, means: tf.Tensor, are_real: tf.Tensor, own: tf.Tensor | None, bank: ContextBank, training: bool
    ) -> tf.Tensor:
        in_sequence = own is not None and self._options.self_attention_in_sequence
        inputs = (own + means) / 2.0 if in_sequence else means
        others = bank.features[:, : self._options.max_num_context_features]
        others_are_real = tf.sequence_mask(bank.size, tf.shape(others)[1])
        outputs = inputs
        for heads in self._layers:
            said = [head(outputs, are_real, others, others_are_real, training) for head in heads]
            outputs += tf.add_n(said) / len(said)
        outputs += inputs
        return outputs if own is None or in_sequence else outputs + own
