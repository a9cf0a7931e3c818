"""Holding the outputs of old classes to those of the model that training started from, the teacher.

Learning without Forgetting (Li and Hoiem, 2016, arXiv:1606.09282) for detectors (Shmelkov et al., 2017,
arXiv:1708.06977): both see the same batch; where an old class is not labelled, the teacher says what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from od_finetune import fields
from od_finetune.errors import UserError, first_line

DIRECTORY = "teacher"  # in model_dir
_PREFIX = "ckpt-0"


class KeptOutputs:
    """What a training step does for the outputs of kept classes.

    Args:
      classes: 0-based.
      teacher: a built detector with the weights that training started from; not needed without `weight`.
      weight: of the distillation loss.
      softmax: classes exclude each other; the background is then held as well. Otherwise each is by itself (sigmoid).
      labelled: whether the records label these classes. If not, their outputs get no gradient of the detector's own
        losses, to which every unlabelled object would be background.
    """

    def __init__(
        self,
        classes: Sequence[int],
        teacher: fields.Detector | None = None,
        weight: float = 0.0,
        softmax: bool = False,
        labelled: bool = True,
    ) -> None:
        if weight and teacher is None:
            raise ValueError("a distillation loss needs a teacher")
        self.classes = list(classes)
        self.teacher = teacher
        self.weight = weight
        self.softmax = softmax
        self.labelled = labelled

    def for_losses(self, predictions: dict[str, tf.Tensor], num_classes: int) -> dict[str, tf.Tensor]:
        """The predictions that the detector's losses are to see: the same values, some without gradient."""
        if self.labelled:
            return predictions
        logits = predictions[fields.CLASS_PREDICTIONS]
        columns = self._columns(logits, num_classes)
        kept = tf.reduce_any(tf.range(logits.shape[-1])[:, tf.newaxis] == columns, axis=-1)
        return {**predictions, fields.CLASS_PREDICTIONS: tf.where(kept, tf.stop_gradient(logits), logits)}

    def losses(
        self, inputs: tf.Tensor, true_shapes: tf.Tensor, predictions: dict[str, tf.Tensor], num_classes: int
    ) -> dict[str, tf.Tensor]:
        """The weighted distillation loss by its name; nothing without a weight.

        Args:
          inputs, true_shapes: what the predictions were made of, as `Detector.predict` takes it.
        """
        if not self.weight:
            return {}
        taught = self.teacher.predict(inputs, true_shapes, training=False)[fields.CLASS_PREDICTIONS]
        logits = predictions[fields.CLASS_PREDICTIONS]
        columns = self._columns(logits, num_classes)
        if self.softmax and logits.shape[-1] > num_classes:
            columns = [0, *columns]
        taught, learnt = (tf.gather(values, columns, axis=-1) for values in (tf.stop_gradient(taught), logits))
        loss = _softmax_loss(taught, learnt) if self.softmax else _sigmoid_loss(taught, learnt)
        return {fields.DISTILLATION_LOSS: self.weight * loss}

    def _columns(self, logits: tf.Tensor, num_classes: int) -> list[int]:
        first = logits.shape[-1] - num_classes  # 1 with a background column
        return [first + index for index in self.classes]


def _sigmoid_loss(taught: tf.Tensor, learnt: tf.Tensor) -> tf.Tensor:
    """Kullback-Leibler divergence of two sets of logits `[B, A, k]` from the first, each class by itself.

    Summed over anchors and divided by the number of anchors that hold a kept class, as the teacher sees it (at least
    1): in proportion to the detector's classification loss, which is divided by the number of matched anchors.
    """
    belief = tf.sigmoid(taught)
    cross = tf.nn.sigmoid_cross_entropy_with_logits(labels=belief, logits=learnt)
    own = tf.nn.sigmoid_cross_entropy_with_logits(labels=belief, logits=taught)
    return tf.reduce_sum(cross - own) / _number(tf.reduce_max(belief, axis=-1))


def _softmax_loss(taught: tf.Tensor, learnt: tf.Tensor) -> tf.Tensor:
    """As `_sigmoid_loss`, of classes `[B, A, k]` that exclude each other; the first is the background.

    Only among these: at an object of a new class, of which the teacher knows nothing, the new class's share is free.
    """
    belief, log_belief = tf.nn.softmax(taught), tf.nn.log_softmax(taught)
    divergence = tf.reduce_sum(belief * (log_belief - tf.nn.log_softmax(learnt)), axis=-1)
    return tf.reduce_sum(divergence) / _number(1.0 - belief[..., 0])


def _number(chances: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.reduce_sum(chances), 1.0)


def save_teacher(detector: fields.Detector, model_dir: str | Path) -> None:
    """Keeps the weights that a run starts from in model_dir, for every later part of it."""
    path = Path(model_dir, DIRECTORY, _PREFIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.train.Checkpoint(model=detector.named_variables()).write(str(path))


def load_teacher(teacher: fields.Detector, model_dir: str | Path) -> None:
    """Gives a built detector the weights that the run of model_dir started from.

    Raises:
      UserError: they are not there, damaged, or another model's.
    """
    path = Path(model_dir, DIRECTORY, _PREFIX)
    if not path.with_name(f"{_PREFIX}.index").exists():
        raise UserError(
            f"{path}: no checkpoint lies there, but {model_dir} holds a run to continue and keep_classes asks for "
            "distillation from the model it started from. Was the weight 0 when it began? Then start in a new "
            "--model_dir, with its checkpoint as fine_tune_checkpoint."
        )
    try:
        tf.train.Checkpoint(model=teacher.named_variables()).read(str(path)).assert_existing_objects_matched()
    except (tf.errors.OpError, ValueError, AssertionError, IndexError) as error:
        raise UserError(
            f"{path}: can't be read as the model that this run started from: {first_line(error)}. Start in a new "
            "--model_dir."
        ) from None
