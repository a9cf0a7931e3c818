"""Evaluation: inference-mode detections into metrics, losses averaged, a few pictures."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import orbit
import tensorflow as tf

from od_finetune import fields, randomness
from od_finetune.errors import UserError
from od_finetune.training.trainer import Explain, input_error

logger = logging.getLogger(__name__)

# (batch, detections, index of the image in the batch) -> uint8 [H, W, 3]
Draw = Callable[[fields.Batch, fields.Detections, int], np.ndarray]

IMAGE_TAG = "Detections_Left_Groundtruth_Right"


class Interrupted(Exception):
    """The run was asked to stop in the middle of an evaluation."""


class Evaluator(orbit.StandardEvaluator):
    """`evaluate(-1)` runs the detector over the whole dataset and returns metric values and mean losses.

    Losses are those of the predictions in inference mode, weighted by the images of each batch, without weight
    decay; with names as in training, so that TensorBoard draws both curves in one chart.
    """

    def __init__(
        self,
        detector: fields.Detector,
        dataset: tf.data.Dataset,
        metrics: Sequence[fields.Metric],
        with_losses: bool = True,
        draw: Draw | None = None,
        num_pictures: int = 10,
        should_stop: Callable[[], bool] = lambda: False,
        explain: Explain | None = None,
    ) -> None:
        """Args:
        dataset: finite, of `fields.Batch`.
        draw: pictures the first `num_pictures` images for TensorBoard.
        should_stop: asked after each batch; if true, `Interrupted` is raised.
        explain: as in Trainer.
        """
        super().__init__(dataset)
        self.detector = detector
        self.metrics = list(metrics)
        self.with_losses = with_losses
        self.draw = draw
        self.num_pictures = num_pictures
        self.should_stop = should_stop
        self._explain = explain
        self._totals: dict[str, float] = {}
        self._images = 0

    @property
    def primary(self) -> str:
        """The first metric's main value's name; the total loss where there is no metric."""
        return self.metrics[0].primary if self.metrics else fields.TOTAL_LOSS

    def result_names(self, with_losses: bool) -> list[str]:
        """What an evaluation will give, without one: the metrics' results, and the losses if asked for, as that traces
        the detector."""
        names: list[str] = []
        for metric in self.metrics:
            metric.reset()
            names += metric.result()
        return names + (self._loss_names() if with_losses and self.with_losses else [])

    def _loss_names(self) -> list[str]:
        @tf.autograph.experimental.do_not_convert
        def losses(batch: fields.Batch) -> dict[str, tf.Tensor]:
            return self._losses(batch, self._predictions(batch))

        return list(self.eval_dataset.map(losses).element_spec)  # traced, not run

    def evaluate(self, num_steps: tf.Tensor) -> orbit.runner.Output | None:
        """As orbit's; errors of the input pipeline become UserError."""
        try:
            return super().evaluate(num_steps)
        except tf.errors.OpError as error:
            reported = input_error(error, self._explain)
            if reported is None:
                raise
            raise reported from error

    def eval_begin(self) -> None:
        """Forgets the evaluation before."""
        for metric in self.metrics:
            metric.reset()
        self._totals = {}
        self._images = 0

    def eval_step(
        self, iterator: tf.data.Iterator
    ) -> tuple[fields.Batch, fields.Detections, dict[str, tf.Tensor]]:
        """Detections and losses of the next batch; traced."""
        batch = next(iterator)
        predictions = self._predictions(batch)
        losses = self._losses(batch, predictions) if self.with_losses else {}
        return batch, self.detector.postprocess(predictions, batch.true_shapes), losses

    def _predictions(self, batch: fields.Batch) -> dict[str, tf.Tensor]:
        inputs = self.detector.normalize(batch.images, batch.true_shapes)
        return self.detector.predict(inputs, batch.true_shapes, training=False, **batch.side_inputs)

    def _losses(self, batch: fields.Batch, predictions: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with randomness.step_seed(tf.constant([0, 0])):  # sampled anchors: the same at every evaluation
            losses = dict(self.detector.losses(predictions, batch.groundtruth))
        return {**losses, fields.TOTAL_LOSS: tf.add_n(list(losses.values()))}

    def eval_reduce(self, state: None = None, step_outputs: orbit.runner.Output | None = None) -> None:
        """Takes one batch's outputs into metrics, loss totals and pictures; eager."""
        batch, detections, losses = step_outputs
        for metric in self.metrics:
            metric.update(batch, detections)
        size = int(batch.images.shape[0])
        for name, value in losses.items():
            self._totals[name] = self._totals.get(name, 0.0) + float(value) * size
        if self.draw is not None:
            for index in range(min(size, self.num_pictures - self._images)):
                picture = self.draw(batch, detections, index)
                tf.summary.image(f"{IMAGE_TAG}/{self._images + index}", picture[np.newaxis])
        self._images += size
        if self.should_stop():
            raise Interrupted

    def eval_end(self) -> dict[str, float]:
        """Metric values and mean losses.

        Raises:
          UserError: the dataset was empty.
        """
        if not self._images:
            raise UserError("The evaluation dataset holds no image; look at eval_input_reader's paths and sampling.")
        results: dict[str, float] = {}
        for metric in self.metrics:
            results.update(metric.result())
        results.update({name: total / self._images for name, total in self._totals.items()})
        return results


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps orbit's and pycocotools' prints, which would tear the progress line, out of stdout."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        yield
    logger.debug("%s", said.getvalue())
