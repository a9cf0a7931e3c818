"""Masks, keypoints and context banks in the stream."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from reading import AUGMENTED, FakeDetector, example, reader_of, take, train_config

from od_finetune.config.datasets import build_eval_dataset, build_train_dataset, check_reader
from od_finetune.data.dataset import explain
from od_finetune.data.writer import LabelledBox, LabelledKeypoint, ShardedWriter, make_example
from od_finetune.errors import UserError
from od_finetune.protos import eval_pb2

KEYPOINT_MAP = "item { id: 1 name: 'cat' keypoints { id: 1 label: 'ear' } keypoints { id: 0 label: 'nose' } }"
MASKS = "load_instance_masks: true mask_type: PNG_MASKS num_keypoints: 2"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four records of other sizes and numbers of boxes; each mask is its box, the keypoints are two of its corners."""
    path = str(tmp_path_factory.mktemp("masked") / "set.record")
    with ShardedWriter(path) as writer:
        for number in range(4):
            height, width = 12 + 4 * (number % 2), 16
            boxes = []
            for top in range(number):
                mask = np.zeros([height, width, 1], np.uint8)
                mask[top : top + 4, 4:8] = 1
                box = (top / height, 4 / width, (top + 4) / height, 8 / width)
                points = (LabelledKeypoint(*box[:2]), LabelledKeypoint(*box[2:], 2 * (top % 2)))
                boxes.append(LabelledBox(*box, 1, "cat", mask=tf.io.encode_png(mask).numpy(), keypoints=points))
            encoded = tf.io.encode_png(np.zeros([height, width, 3], np.uint8)).numpy()
            writer.write(make_example(encoded, "png", height, width, str(number), boxes, ["nose", "ear"]))
    return path


def test_masks_and_keypoints_in_batches(masked: str) -> None:
    reader = reader_of(masked, MASKS + " shuffle: false max_number_of_boxes: 3")
    dataset = build_train_dataset(reader, train_config(), FakeDetector((24, 32)))
    assert dataset.element_spec.groundtruth.masks.shape == (4, 3, 24, 32)
    assert dataset.element_spec.groundtruth.keypoints.shape == (4, 3, 2, 2)
    (batch,) = take(dataset, 1)
    truth = batch.groundtruth
    assert truth.masks.dtype == np.uint8 and truth.num_boxes.tolist() == [0, 1, 2, 3]
    expected = np.zeros([24, 32], np.uint8)
    expected[0:8, 8:16] = 1  # of 12 x 16 pixels
    np.testing.assert_array_equal(truth.masks[2, 0], expected)
    for masks, count in zip(truth.masks, truth.num_boxes, strict=True):
        assert masks[:count].any((1, 2)).all() and not masks[count:].any()
    np.testing.assert_array_equal(truth.keypoints[:, :, 0], truth.boxes[..., :2])
    assert truth.keypoint_visibilities[3].tolist() == [[True, False], [True, True], [True, False]]
    np.testing.assert_array_equal(truth.keypoints[3, 1, 1], truth.boxes[3, 1, 2:])
    assert np.isnan(truth.keypoints[3, 0, 1]).all()
    assert truth.track_ids is None


def test_masks_of_images_of_different_sizes(masked: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=3)
    batches = take(build_eval_dataset(reader_of(masked, MASKS), config, FakeDetector(None)), 2)
    assert [batch.groundtruth.masks.shape for batch in batches] == [(3, 100, 16, 16), (1, 100, 16, 16)]
    np.testing.assert_array_equal(batches[0].groundtruth.masks[1, 0, :4, 4:8], 1)
    assert batches[0].groundtruth.masks.sum() == 3 * 16 and batches[0].groundtruth.dense_pose_part_ids is None


def test_masks_through_augmentation_and_merging(masked: str) -> None:
    reader = reader_of(masked, MASKS)
    steps = AUGMENTED.replace("flip {}", "flip { keypoint_flip_permutation: [0, 1] }")
    config = train_config(steps + " merge_multiple_label_boxes: true")
    for batch in take(build_train_dataset(reader, config, FakeDetector((20, 20))), 3):
        assert batch.groundtruth.masks.shape == (4, 100, 20, 20)
        assert batch.groundtruth.masks.max() == 1
        real = np.arange(100) < batch.groundtruth.num_boxes[:, None]
        assert not batch.groundtruth.masks[~real].any() and not batch.groundtruth.keypoint_visibilities[~real].any()


def test_keypoints_by_name(masked: str, tmp_path: Path) -> None:
    label_map = tmp_path / "map.pbtxt"
    label_map.write_text(KEYPOINT_MAP)
    reader = reader_of(masked, f"num_keypoints: 3 use_keypoint_label_map: true label_map_path: '{label_map}'")
    *_, last = take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 4)
    assert last.groundtruth.keypoint_visibilities[0, :3].tolist() == [[True, v, False] for v in (False, True, False)]
    reader.num_keypoints = 1
    with pytest.raises(UserError, match=r"num_keypoints is 1, but \S+ has keypoint ids up to 1 .*set it to 2"):
        check_reader(reader)
    label_map.write_text("item { id: 1 name: 'cat' }")
    with pytest.raises(UserError, match="use_keypoint_label_map: .* has no item with keypoints"):
        check_reader(reader)


def test_options_that_do_not_go_together(masked: str) -> None:
    with pytest.raises(UserError, match="load_keypoint_depth_features is set, but num_keypoints is 0"):
        check_reader(reader_of(masked, "load_keypoint_depth_features: true"))
    with pytest.raises(UserError, match="use_keypoint_label_map is set, but num_keypoints is 0"):
        check_reader(reader_of(masked, "use_keypoint_label_map: true"))
    with pytest.raises(UserError, match=r"options\[0\].random_horizontal_flip: does not work with load_dense_pose"):
        check_reader(reader_of(masked, "load_dense_pose: true"), train_config(AUGMENTED))


def test_missing_masks_name_the_record(shards: str) -> None:
    dataset = build_train_dataset(reader_of(shards, "load_instance_masks: true"), train_config(), FakeDetector())
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        take(dataset, 1)
    assert re.search(r"set.record-0000\d-of-00003:\d+ \d+: 0 values in image/object/mask", str(explain(raised.value)))


def _record_file(folder: Path, examples: list[tf.train.Example]) -> str:
    with tf.io.TFRecordWriter(str(folder / "a.record")) as writer:
        for item in examples:
            writer.write(item.SerializeToString())
    return str(folder / "a.record")


def test_context_banks_are_padded_to_the_models_number_of_rows(tmp_path: Path) -> None:
    items = [example(number) for number in range(2)]
    items[1].features.feature["image/context_features"].float_list.value.extend(range(8))
    path, detector = _record_file(tmp_path, items), FakeDetector()
    detector.context_size = (3, 4)
    settings = eval_pb2.EvalConfig(batch_size=2)
    (batch,) = build_eval_dataset(reader_of(path, "load_context_features: true"), settings, detector)
    assert batch.side_inputs == {"context": batch.context}
    np.testing.assert_array_equal(batch.context.size, [0, 2])
    expected = np.zeros((2, 3, 4))
    expected[1, :2] = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(batch.context.features, expected)

    (batch,) = build_eval_dataset(reader_of(path), settings, detector)
    assert batch.context is None and batch.side_inputs == {}


def test_context_that_the_model_would_not_look_at_is_refused(tmp_path: Path) -> None:
    reader = reader_of(_record_file(tmp_path, [example(0)]), "load_context_features: true")
    with pytest.raises(UserError, match="load_context_features is true, but the model has nothing that looks at them"):
        check_reader(reader)
    check_reader(reader, context_size=(10, 4))
