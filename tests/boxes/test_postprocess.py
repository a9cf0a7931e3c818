from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes import scores
from od_finetune.boxes.coders import FasterRcnnCoder
from od_finetune.boxes.nms import MulticlassNms, NmsOptions
from od_finetune.boxes.postprocess import Postprocessor, true_window


@pytest.mark.parametrize("name", ["raccoon", "ducky"])
def test_detections_of_the_coco_checkpoint(shared, name):
    golden = np.load(shared / "data/ssdlite_mobilenet_v2_coco" / f"golden_{name}.npz")
    nms = MulticlassNms(NmsOptions(1e-8, 0.6, 100, 100))
    post = Postprocessor(nms, scores.ScoreConverter(scores.sigmoid_scores))
    found = post(golden["box_encodings"], golden["class_logits"], golden["anchors"], FasterRcnnCoder(),
                 tf.constant([[0.0, 0.0, 1.0, 1.0]]))
    number = len(golden["detection_scores"])
    assert int((found.scores[0] > 0.3).numpy().sum()) == number >= 1
    np.testing.assert_allclose(found.boxes[0, :number], golden["detection_boxes"], atol=1e-5)
    np.testing.assert_allclose(found.scores[0, :number], golden["detection_scores"], atol=1e-6)
    assert (found.classes[0, :number].numpy() + 1).tolist() == golden["detection_classes"].tolist()
    assert int(found.num_detections[0]) == 100

    best = tf.gather(found.raw_scores, found.anchor_indices, batch_dims=1)
    np.testing.assert_array_equal(found.multiclass_scores, best)
    own = tf.gather(found.multiclass_scores, found.classes + 1, batch_dims=2)
    np.testing.assert_array_equal(own, found.scores)
    clipped = tf.clip_by_value(tf.gather(found.raw_boxes, found.anchor_indices, batch_dims=1), 0.0, 1.0)
    np.testing.assert_allclose(found.boxes, clipped, atol=1e-6)


def test_without_background_every_column_is_a_class():
    anchors = tf.constant([[0, 0, 1, 1]], tf.float32)
    logits = tf.constant([[[2.0, 1.0]]])
    post = Postprocessor(MulticlassNms(NmsOptions(0.1, 0.6, 1, 2)), scores.ScoreConverter(scores.sigmoid_scores))
    arguments = (tf.zeros([1, 1, 4]), logits, anchors, FasterRcnnCoder(), tf.constant([[0.0, 0.0, 1.0, 1.0]]))
    assert post(*arguments, has_background=False).classes.numpy().tolist() == [[0, 1]]
    with_background = post(*arguments)
    assert with_background.num_detections.numpy().tolist() == [1]
    np.testing.assert_allclose(with_background.scores, [[tf.sigmoid(1.0), 0.0]])
    np.testing.assert_allclose(with_background.multiclass_scores[0, 0], tf.sigmoid(logits)[0, 0])


def test_true_window_is_what_is_no_padding():
    window = true_window(tf.constant([[240, 320, 3], [320, 160, 3]]), 320, 320)
    np.testing.assert_allclose(window, [[0, 0, 0.75, 1], [0, 0, 1, 0.5]])
