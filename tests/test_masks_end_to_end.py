"""Masks and keypoints from records through the evaluator to metrics and pictures, with a detector that knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.config import evaluation, label_map
from od_finetune.config.datasets import build_eval_dataset
from od_finetune.config.gallery import Gallery
from od_finetune.data.writer import LabelledBox, LabelledKeypoint, ShardedWriter, make_example
from od_finetune.protos import pipeline_pb2
from od_finetune.training.evaluator import Evaluator

HEIGHT, WIDTH = 40, 60
BOX = (0.25, 0.2, 0.75, 0.8)
POINTS = ((0.3, 0.3), (0.7, 0.6))
CONFIG = """
eval_config {
  metrics_set: 'coco_detection_metrics' metrics_set: 'coco_mask_metrics' metrics_set: 'coco_keypoint_metrics'
  keypoint_edge { start: 0 end: 1 } batch_size: 2
}
eval_input_reader {
  label_map_path: 'MAP' tf_record_input_reader { input_path: 'RECORDS' }
  load_instance_masks: true mask_type: PNG_MASKS num_keypoints: 2
}
"""


class Oracle:
    """Finds the one object that every record has; its mask is the left half of its box, or `wrong` the right one."""

    num_classes = 1
    context_size = None

    def __init__(self, wrong: bool):
        self._mask = np.zeros((1, 1, 2, 40), np.float32)
        self._mask[..., slice(20, 40) if wrong else slice(0, 20)] = 1.0

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.pad(tf.image.resize(image, [20, 30]), [[0, 10], [0, 0], [0, 0]]), tf.constant([20, 30, 3])

    def normalize(self, images: tf.Tensor, true_shapes: tf.Tensor) -> tf.Tensor:
        return images

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        del true_shapes, training
        return {"images": inputs}

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: fields.Groundtruth) -> dict[str, tf.Tensor]:
        assert groundtruth.masks.shape[2:] == predictions["images"].shape[1:3] == (30, 30)
        pixels = tf.reduce_sum(tf.cast(groundtruth.masks, tf.float32), [1, 2, 3])
        return {"Loss/mask_pixels": tf.reduce_mean(pixels)}

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> fields.Detections:
        count = tf.shape(true_shapes)[0]

        def each(value: np.ndarray) -> tf.Tensor:
            return tf.repeat(tf.constant(value)[None], count, axis=0)

        return fields.Detections(
            boxes=each(np.float32([BOX])), scores=each(np.float32([0.9])), classes=each(np.int32([0])),
            num_detections=tf.ones([count], tf.int32), multiclass_scores=None, anchor_indices=None, raw_boxes=None,
            raw_scores=None, masks=each(self._mask[0]), keypoints=each(np.float32([POINTS])),
            keypoint_scores=each(np.float32([[0.9, 0.8]])),
        )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> pipeline_pb2.TrainEvalPipelineConfig:
    mask = np.zeros([HEIGHT, WIDTH, 1], np.uint8)
    mask[10:30, 12:30] = 255
    box = LabelledBox(*BOX, 1, "cat", mask=tf.io.encode_png(mask).numpy(),
                      keypoints=tuple(LabelledKeypoint(*point) for point in POINTS))  # fmt: skip
    encoded = tf.io.encode_png(np.full([HEIGHT, WIDTH, 3], 90, np.uint8)).numpy()
    with ShardedWriter(str(tmp_path / "set.record")) as writer:
        for number in range(3):
            writer.write(make_example(encoded, "png", HEIGHT, WIDTH, str(number), [box]))
    keypoints = "keypoints { id: 0 label: 'nose' } keypoints { id: 1 label: 'tail' }"
    (tmp_path / "map.pbtxt").write_text(f"item {{ id: 1 name: 'cat' {keypoints} }}")
    text = CONFIG.replace("MAP", str(tmp_path / "map.pbtxt")).replace("RECORDS", str(tmp_path / "set.record"))
    return text_format.Parse(text, pipeline_pb2.TrainEvalPipelineConfig())


@pytest.mark.parametrize("wrong", [False, True])
def test_evaluation(config: pipeline_pb2.TrainEvalPipelineConfig, tmp_path: Path, wrong: bool) -> None:
    reader, detector, gallery = config.eval_input_reader[0], Oracle(wrong), Gallery(config)
    metrics = evaluation.build_metrics(config.eval_config, label_map.load_label_map(reader.label_map_path))
    dataset = build_eval_dataset(reader, config.eval_config, detector)
    results = Evaluator(detector, dataset, metrics, draw=gallery).evaluate(tf.constant(-1))
    assert results["DetectionBoxes_Precision/mAP"] == pytest.approx(1.0)
    assert results["DetectionMasks_Precision/mAP@.75IOU"] == pytest.approx(0.0 if wrong else 1.0)
    assert results["Keypoints_Precision/mAP ByCategory/cat"] == pytest.approx(1.0)
    assert results["Loss/mask_pixels"] == 10 * 9  # at half the size, without the padding
    gallery.write(tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0
