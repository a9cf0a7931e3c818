from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from batches import map_tensors

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.metrics.coco import CocoDetectionMetrics
from od_finetune.metrics.pascal_voc import PascalVocMetrics
from od_finetune.training.evaluator import Evaluator, Interrupted


class CountImages:
    """A metric: how many images came, and the mean of the best scores."""

    primary = "images"

    def __init__(self):
        self.reset()

    def reset(self):
        self.keys, self.scores = [], []

    def update(self, batch, detections):
        self.keys += list(batch.keys.numpy())
        self.scores.append(detections.scores.numpy().max())

    def result(self):
        return {"images": float(len(self.keys)), "score": float(np.mean(self.scores))}


def test_metrics_and_mean_losses_of_every_image_each_time(fake_detector, dataset, batch, hashes):
    detector, metric = fake_detector(), CountImages()
    before = hashes(detector)
    ragged = dataset(3, endless=False).unbatch().take(5).batch(2)  # the last batch is smaller
    evaluator = Evaluator(detector, ragged, [metric])
    results = evaluator.evaluate(tf.constant(-1))
    assert results == evaluator.evaluate(tf.constant(-1))
    assert results["images"] == 5.0 and len(set(metric.keys)) == 5
    expected = []
    for i, weight in [(0, 2), (1, 2)]:
        predictions = detector.predict(detector.normalize(batch(i).images, batch(i).true_shapes), batch(i).true_shapes)
        expected.append(weight * float(tf.add_n(list(detector.losses(predictions, batch(i).groundtruth).values()))))
    one = map_tensors(lambda t: t[:1], batch(2))
    predictions = detector.predict(detector.normalize(one.images, one.true_shapes), one.true_shapes)
    expected.append(float(tf.add_n(list(detector.losses(predictions, one.groundtruth).values()))))
    assert results[fields.TOTAL_LOSS] == pytest.approx(sum(expected) / 5, rel=1e-5)
    assert hashes(detector) == before  # batch norm statistics included


def test_draws_the_first_images(fake_detector, dataset, tmp_path):
    drawn = []

    def draw(batch, detections, index):
        drawn.append(batch.keys.numpy()[index])
        return np.zeros([4, 8, 3], np.uint8)

    evaluator = Evaluator(fake_detector(), dataset(3, endless=False), [], draw=draw, num_pictures=3)
    tf.summary.experimental.set_step(7)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        evaluator.evaluate(tf.constant(-1))
    assert [key.split()[-1] for key in drawn] == [b"image-0", b"image-1", b"image-2"]
    events = tf.compat.v1.train.summary_iterator(str(next(tmp_path.iterdir())))
    tags = [value.tag for event in events for value in event.summary.value]
    assert tags == [f"Detections_Left_Groundtruth_Right/{i}" for i in range(3)]
    assert evaluator.primary == fields.TOTAL_LOSS


def test_stops_when_asked_and_refuses_an_empty_dataset(fake_detector, dataset):
    detector = fake_detector()
    with pytest.raises(Interrupted):
        Evaluator(detector, dataset(2, endless=False), [], should_stop=lambda: True).evaluate(tf.constant(-1))
    with pytest.raises(UserError, match="no image"):
        Evaluator(detector, dataset(2, endless=False).take(0), []).evaluate(tf.constant(-1))


def test_it_knows_the_names_of_its_results_before_it_has_any(fake_detector, dataset):
    names = {1: "mug", 2: "plate"}
    metrics = [CocoDetectionMetrics(names, per_category=True), PascalVocMetrics(names)]
    evaluator = Evaluator(fake_detector(), dataset(1, endless=False), metrics)
    known = evaluator.result_names(with_losses=True)
    assert evaluator.primary in known
    assert sorted(known) == sorted(evaluator.evaluate(tf.constant(-1)))
    without = Evaluator(fake_detector(), dataset(1), metrics, with_losses=False)
    assert fields.TOTAL_LOSS not in without.result_names(with_losses=True)
