"""From logits to scores: converters and calibration (both keep the shape `[..., K]`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from od_finetune.errors import UserError

Converter = Callable[[tf.Tensor], tf.Tensor]


def identity_scores(logits: tf.Tensor) -> tf.Tensor:
    """The network's last layer already yields scores."""
    return tf.identity(logits)


def sigmoid_scores(logits: tf.Tensor) -> tf.Tensor:
    """Independent classes."""
    return tf.sigmoid(logits)


def softmax_scores(logits: tf.Tensor) -> tf.Tensor:
    """Exclusive classes, background among them."""
    return tf.nn.softmax(logits, axis=-1)


class ScoreConverter:
    """Divides logits by `logit_scale`, converts them, and calibrates: scores after, temperature before."""

    def __init__(self, convert: Converter, logit_scale: float = 1.0, calibrate: Converter | None = None,
                 calibrate_logits: bool = False):
        if logit_scale == 0.0:
            raise UserError("post_processing.logit_scale is 0; logits are divided by it")
        self._convert, self._scale = convert, logit_scale
        self._calibrate, self._on_logits = calibrate, calibrate_logits

    def __call__(self, logits: tf.Tensor) -> tf.Tensor:
        """`[..., K]` -> `[..., K]`."""
        if self._calibrate is not None and self._on_logits:
            logits = self._calibrate(logits)
        scores = self._convert(logits / self._scale)
        return self._calibrate(scores) if self._calibrate is not None and not self._on_logits else scores


class PiecewiseLinear:
    """A function given by points, linear between them and constant beyond."""

    def __init__(self, points: Sequence[tuple[float, float]]):
        """At least one point; x must not decrease."""
        self._x, self._y = [point[0] for point in points], [point[1] for point in points]
        if not points or any(b < a for a, b in zip(self._x, self._x[1:], strict=False)):
            raise UserError(f"calibration: x_y_pair needs points in ascending order of x, found x = {self._x}")

    def __call__(self, scores: tf.Tensor) -> tf.Tensor:
        """Any shape."""
        if len(self._x) == 1:
            return tf.fill(tf.shape(scores), tf.constant(self._y[0], tf.float32))
        x, y = tf.constant(self._x, tf.float32), tf.constant(self._y, tf.float32)
        inside = tf.clip_by_value(scores, x[0], x[-1])
        flat = tf.searchsorted(x, tf.reshape(inside, [-1]), side="right")
        right = tf.reshape(tf.clip_by_value(flat, 1, len(self._x) - 1), tf.shape(scores))
        x0, x1, y0, y1 = (tf.gather(*pair) for pair in ((x, right - 1), (x, right), (y, right - 1), (y, right)))
        return y0 + tf.math.divide_no_nan(inside - x0, x1 - x0) * (y1 - y0)


class PlattScaling:
    """1 / (1 + exp(a * score + b)) (Platt, 1999)."""

    def __init__(self, a: float = -1.0, b: float = 0.0):
        self._a, self._b = a, b

    def __call__(self, scores: tf.Tensor) -> tf.Tensor:
        """Any shape."""
        return tf.sigmoid(-(self._a * scores + self._b))


class Temperature:
    """Divides logits by a temperature (Guo et al., 2017)."""

    def __init__(self, scaler: float):
        if scaler == 0.0:
            raise UserError("temperature_scaling_calibration.scaler is 0 or not set; logits are divided by it")
        self._scaler = scaler

    def __call__(self, logits: tf.Tensor) -> tf.Tensor:
        """Any shape."""
        return logits / self._scaler


class PerClass:
    """A calibration for each class column (column 0 is the background if there is one); others stay as they are."""

    def __init__(self, by_class: Mapping[int, Converter]):
        self._by_class = dict(by_class)

    def __call__(self, scores: tf.Tensor) -> tf.Tensor:
        """`[..., K]`, K known."""
        columns = tf.unstack(scores, axis=-1)
        outside = sorted(set(self._by_class) - set(range(len(columns))))
        if outside:
            raise UserError(f"calibration_config names class ids {outside}; there are {len(columns)} score columns")
        return tf.stack([self._by_class.get(i, tf.identity)(column) for i, column in enumerate(columns)], axis=-1)
