"""The stream as a whole, built from configs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image

from od_finetune.config.datasets import build_eval_dataset, build_train_dataset, check_reader, input_files
from od_finetune.data import records
from od_finetune.data.dataset import explain
from od_finetune.data.writer import LabelledBox, LabelledKeypoint, ShardedWriter, make_example, shard_paths
from od_finetune.errors import UserError
from od_finetune.fields import Batch
from od_finetune.protos import eval_pb2, input_reader_pb2, train_pb2


class FakeDetector:
    """What a data set needs of a detector."""

    num_classes = 2
    context_size = None

    def __init__(self, size: tuple[int, int] | None = (8, 8)):
        self.size = size

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(image, tf.float32)
        if self.size:
            image = tf.image.resize(image, self.size)
        return image, tf.shape(image)


def _example(number: int, boxes: list[LabelledBox] | None = None) -> tf.train.Example:
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 3, 16, 3), np.uint8)
    encoded = tf.io.encode_png(pixels).numpy()
    if boxes is None:
        boxes = [LabelledBox(0.1, 0.2, 0.5, 0.6, 1, "cat"), LabelledBox(0.1, 0.2, 0.5, 0.6, 2, "dog")]
    return make_example(encoded, "png", *pixels.shape[:2], f"{number}", boxes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Glob of 3 shards with 20 records in all."""
    path = str(tmp_path_factory.mktemp("shards") / "set.record")
    with ShardedWriter(path, 3) as writer:
        for number in range(20):
            writer.write(_example(number))
    return path + "-*"


def _reader(paths: str | list[str], text: str = "") -> Any:
    reader = text_format.Parse(text, input_reader_pb2.InputReader())
    reader.tf_record_input_reader.input_path.extend([paths] if isinstance(paths, str) else paths)
    return reader


def _train(text: str = "", batch_size: int = 4) -> Any:
    return text_format.Parse(f"batch_size: {batch_size} seed: 5 {text}", train_pb2.TrainConfig())


AUGMENTED = "data_augmentation_options { random_horizontal_flip {} } data_augmentation_options { ssd_random_crop {} }"


def _numpy(value: tf.Tensor | None) -> np.ndarray | None:
    return None if value is None else value.numpy()


def _take(dataset: tf.data.Dataset, count: int) -> list[Batch]:
    return [tf.nest.map_structure(_numpy, batch) for batch in dataset.take(count)]


def _assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def _source_ids(batches: list[Batch]) -> list[int]:
    return [int(source_id) for batch in batches for source_id in batch.source_ids]


def test_two_runs_are_identical_and_a_resumed_one_goes_on(shards: str) -> None:
    reader, config, detector = (
        _reader(shards, "shuffle_buffer_size: 7 num_readers: 2"),
        _train(AUGMENTED),
        FakeDetector(),
    )
    full = _take(build_train_dataset(reader, config, detector), 13)
    tf.random.set_seed(0)  # a global seed must not matter
    _assert_same(full, _take(build_train_dataset(reader, config, detector), 13))
    for done in (1, 5, 12):  # within the first epoch, at its end, in the third
        resumed = build_train_dataset(reader, config, detector, skip_batches=done)
        _assert_same(full[done:], _take(resumed, 13 - done))
    other = _take(build_train_dataset(reader, config, detector, seed=6), 5)
    assert _source_ids(other) != _source_ids(full[:5])


def test_every_epoch_holds_every_record_once_in_another_order(shards: str) -> None:
    ids = _source_ids(_take(build_train_dataset(_reader(shards), _train(), FakeDetector()), 10))
    assert sorted(ids[:20]) == sorted(ids[20:]) == list(range(20))
    assert ids[:20] != ids[20:]


def test_batch_fields(shards: str) -> None:
    dataset = build_train_dataset(_reader(shards, "max_number_of_boxes: 3"), _train(), FakeDetector())
    spec = dataset.element_spec
    assert spec.images.shape == (4, 8, 8, 3)
    assert spec.groundtruth.classes.shape == (4, 3, 2)
    (batch,) = _take(dataset, 1)
    np.testing.assert_allclose(batch.groundtruth.boxes[0], [[0.1, 0.2, 0.5, 0.6]] * 2 + [[0] * 4])
    assert batch.groundtruth.classes[0].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert batch.groundtruth.weights[0].tolist() == [1, 1, 0]
    assert batch.groundtruth.num_boxes.tolist() == [2] * 4
    assert batch.true_shapes.tolist() == [[8, 8, 3]] * 4
    number = int(batch.source_ids[0])
    assert batch.original_shapes[0].tolist() == [12 + number % 3, 16]
    shard = f"set.record-0000{number % 3}-of-00003:{number // 3} {number}"
    assert batch.keys[0].decode().endswith(shard)


@pytest.mark.slow
def test_boxes_beyond_the_maximum_are_cut_in_training_only(tmp_path: Path) -> None:
    with ShardedWriter(str(tmp_path / "many")) as writer:
        writer.write(_example(0, [LabelledBox(0, 0, 0.5, 0.5, 1, "cat")] * 103))
    reader = _reader(str(tmp_path / "many"))
    (train,) = _take(build_train_dataset(reader, _train("max_number_of_boxes: 2"), FakeDetector()), 1)
    assert train.groundtruth.boxes.shape == (4, 2, 4)
    assert train.groundtruth.num_boxes.tolist() == [2] * 4
    (evaluated,) = _take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 1)
    assert evaluated.groundtruth.boxes.shape == (1, 103, 4)
    reader.max_number_of_boxes = 5
    (evaluated,) = _take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 1)
    assert evaluated.groundtruth.num_boxes.tolist() == [5]


def test_merged_labels(shards: str) -> None:
    config = _train("merge_multiple_label_boxes: true")
    (batch,) = _take(build_train_dataset(_reader(shards, "max_number_of_boxes: 2"), config, FakeDetector()), 1)
    assert batch.groundtruth.num_boxes.tolist() == [1] * 4
    assert batch.groundtruth.classes[0].tolist() == [[1, 1], [0, 0]]


def test_merged_labels_without_boxes(tmp_path: Path) -> None:
    with ShardedWriter(str(tmp_path / "none")) as writer:
        writer.write(_example(0, []))
    config = _train("merge_multiple_label_boxes: true")
    (batch,) = _take(build_train_dataset(_reader(str(tmp_path / "none")), config, FakeDetector()), 1)
    assert batch.groundtruth.num_boxes.tolist() == [0] * 4


def test_evaluation_is_in_order_and_whole(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=8)
    batches = _take(build_eval_dataset(_reader(shards), config, FakeDetector()), 10)
    assert [len(batch.images) for batch in batches] == [8, 8, 4]
    assert _source_ids(batches) == [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
    shuffled = _source_ids(_take(build_eval_dataset(_reader(shards, "shuffle: true"), config, FakeDetector()), 10))
    assert shuffled != _source_ids(batches) and sorted(shuffled) == list(range(20))


@pytest.mark.slow
def test_evaluation_on_fewer_examples(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=8, num_examples=5)
    assert len(_source_ids(_take(build_eval_dataset(_reader(shards), config, FakeDetector()), 10))) == 5
    third = _reader(shards, "sample_1_of_n_examples: 3")
    assert len(_source_ids(_take(build_eval_dataset(third, eval_pb2.EvalConfig(), FakeDetector()), 99))) == 7


def test_images_of_different_sizes_share_a_batch(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=3)
    (batch,) = _take(build_eval_dataset(_reader(shards.replace("*", "00000*")), config, FakeDetector(None)), 1)
    assert batch.images.shape == (3, 12, 16, 3)
    mixed = _take(build_eval_dataset(_reader(shards), eval_pb2.EvalConfig(batch_size=20), FakeDetector(None)), 1)[0]
    assert mixed.images.shape == (20, 14, 16, 3)
    assert (mixed.images[0, 12:] == 0).all()
    assert mixed.true_shapes[0].tolist() == [12, 16, 3]


@pytest.mark.slow
def test_sampling_weights(shards: str) -> None:
    first, second = (path for path in shard_paths(shards[:-2], 3)[:2])
    reader = _reader([first, second], "sample_from_datasets_weights: [3, 1]")
    config = _train()
    full = _take(build_train_dataset(reader, config, FakeDetector()), 60)
    counts = Counter(number % 3 for number in _source_ids(full))
    assert set(counts) == {0, 1}
    assert abs(counts[0] / 240 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 240)
    _assert_same(full[50:], _take(build_train_dataset(reader, config, FakeDetector(), skip_batches=50), 10))


def test_finite_epochs(shards: str) -> None:
    finite = build_train_dataset(_reader(shards, "num_epochs: 2"), _train(batch_size=6), FakeDetector())
    assert [len(batch.images) for batch in _take(finite, 99)] == [6] * 6
    with pytest.raises(UserError, match=r"\(20 x 1 epochs\) do not fill one batch of 32"):
        build_train_dataset(_reader(shards, "num_epochs: 1"), _train(batch_size=32), FakeDetector())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sample_from_datasets_weights: [1, 2]", "has 2 values, expected 1"),
        ("sample_1_of_n_examples: 0", "sample_1_of_n_examples is 0, expected at least 1"),
        ("max_number_of_boxes: 0", "max_number_of_boxes is 0"),
        ("label_map_path: 'none.pbtxt'", "label_map_path: no file 'none.pbtxt'"),
        ("input_type: TF_SEQUENCE_EXAMPLE", "TF_SEQUENCE_EXAMPLE is not available"),
    ],
)
def test_bad_reader(shards: str, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build_train_dataset(_reader(shards, text), _train(), FakeDetector())


def test_reader_without_input() -> None:
    with pytest.raises(UserError, match="external_input_reader given, expected tf_record_input_reader"):
        input_files(text_format.Parse("external_input_reader {}", input_reader_pb2.InputReader()))
    with pytest.raises(UserError, match="no input_path"):
        input_files(text_format.Parse("tf_record_input_reader {}", input_reader_pb2.InputReader()))
    with pytest.raises(UserError, match="'/none/x' matches no file"):
        input_files(_reader("/none/x"))


def test_label_map_is_checked_against_the_model(shards: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("item { id: 3 name: 'cat' }")
    with pytest.raises(UserError, match="largest id is 3, but the model has num_classes 2"):
        build_train_dataset(_reader(shards, f"label_map_path: '{tmp_path}/map'"), _train(), FakeDetector())


def _error(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(tf.errors.OpError) as raised:
        action()
    return raised.value


def test_bad_record_is_named_with_file_and_number(tmp_path: Path) -> None:
    with ShardedWriter(str(tmp_path / "bad")) as writer:
        for number in range(6):
            boxes = [LabelledBox(0.5, 0.1, 0.2, 0.9, 1, "cat")] if number == 4 else None
            writer.write(_example(number, boxes))
    dataset = build_eval_dataset(_reader(str(tmp_path / "bad")), eval_pb2.EvalConfig(batch_size=2), FakeDetector())
    explained = explain(_error(lambda: _take(dataset, 3)))
    assert str(explained).startswith(f"{tmp_path}/bad:4 4: box 0 (ymin, xmin, ymax, xmax) is [0.5, 0.1, 0.2, 0.9]")


def test_undecodable_image_is_named_before_anything_is_done_with_it(tmp_path: Path) -> None:
    """In a graph the resize of nothing could run, and fail, before the check."""
    with ShardedWriter(str(tmp_path / "bad")) as writer:
        writer.write(make_example(b"no image", "png", 9, 9, "a", []))
    dataset = build_eval_dataset(_reader(str(tmp_path / "bad")), eval_pb2.EvalConfig(batch_size=1), FakeDetector())
    for _ in range(5):
        explained = explain(_error(lambda: _take(dataset, 1)))
        assert str(explained).startswith(f"{tmp_path}/bad:0 a: image/encoded (8 bytes, image/format 'png') can't be")


def test_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    with ShardedWriter(str(path)) as writer:
        for number in range(3):
            writer.write(_example(number))
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    reader = _reader(str(path))
    dataset = build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector())
    error = _error(lambda: _take(dataset, 3))
    assert "a record file is damaged: corrupted record" in str(explain(error))
    assert str(explain(error, lambda: input_files(reader))).startswith(f"{path}:2: record is damaged")


def test_a_run_walks_over_its_records_once(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real_open = records._open_unbuffered
    monkeypatch.setattr(records, "_open_unbuffered", lambda path: opened.append(path) or real_open(path))
    records._count.cache_clear()
    reader = _reader(shards)
    build_train_dataset(reader, _train(), FakeDetector())
    build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector())
    input_files(reader)
    assert [Path(path).name for path in opened] == [f"set.record-0000{number}-of-00003" for number in range(3)]


def test_a_batch_larger_than_the_set_is_said_in_the_log(shards: str, caplog: pytest.LogCaptureFixture) -> None:
    build_train_dataset(_reader(shards), _train(batch_size=21), FakeDetector())
    (said,) = caplog.records
    assert said.name == "od_finetune.config.datasets" and said.levelname == "WARNING"
    assert said.getMessage() == "a batch of 21 holds some of the 20 records more than once"


def test_raccoons(shared: Path) -> None:
    folder = shared / "data/raccoon"
    reader = _reader(str(folder / "test.record"), f"label_map_path: '{folder}/label_map.pbtxt'")
    detector = FakeDetector((30, 30))
    detector.num_classes = 1
    batches = _take(build_eval_dataset(reader, eval_pb2.EvalConfig(batch_size=16), detector), 9)
    names = [name.decode() for batch in batches for name in batch.source_ids]
    assert [Path(name).stem for name in names] == [Path(n).stem for n in (folder / "test.txt").read_text().split()]
    with Image.open(folder / "images" / names[0]) as image:
        assert batches[0].original_shapes[0].tolist() == [image.height, image.width]
    assert all((batch.groundtruth.boxes >= 0).all() and (batch.groundtruth.boxes <= 1).all() for batch in batches)


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
    reader = _reader(masked, MASKS + " shuffle: false max_number_of_boxes: 3")
    dataset = build_train_dataset(reader, _train(), FakeDetector((24, 32)))
    assert dataset.element_spec.groundtruth.masks.shape == (4, 3, 24, 32)
    assert dataset.element_spec.groundtruth.keypoints.shape == (4, 3, 2, 2)
    (batch,) = _take(dataset, 1)
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
    batches = _take(build_eval_dataset(_reader(masked, MASKS), config, FakeDetector(None)), 2)
    assert [batch.groundtruth.masks.shape for batch in batches] == [(3, 100, 16, 16), (1, 100, 16, 16)]
    np.testing.assert_array_equal(batches[0].groundtruth.masks[1, 0, :4, 4:8], 1)
    assert batches[0].groundtruth.masks.sum() == 3 * 16 and batches[0].groundtruth.dense_pose_part_ids is None


def test_masks_through_augmentation_and_merging(masked: str) -> None:
    reader = _reader(masked, MASKS)
    steps = AUGMENTED.replace("flip {}", "flip { keypoint_flip_permutation: [0, 1] }")
    config = _train(steps + " merge_multiple_label_boxes: true")
    for batch in _take(build_train_dataset(reader, config, FakeDetector((20, 20))), 3):
        assert batch.groundtruth.masks.shape == (4, 100, 20, 20)
        assert batch.groundtruth.masks.max() == 1
        real = np.arange(100) < batch.groundtruth.num_boxes[:, None]
        assert not batch.groundtruth.masks[~real].any() and not batch.groundtruth.keypoint_visibilities[~real].any()


def test_keypoints_by_name(masked: str, tmp_path: Path) -> None:
    label_map = tmp_path / "map.pbtxt"
    label_map.write_text(KEYPOINT_MAP)
    reader = _reader(masked, f"num_keypoints: 3 use_keypoint_label_map: true label_map_path: '{label_map}'")
    *_, last = _take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 4)
    assert last.groundtruth.keypoint_visibilities[0, :3].tolist() == [[True, v, False] for v in (False, True, False)]
    reader.num_keypoints = 1
    with pytest.raises(UserError, match=r"num_keypoints is 1, but \S+ has keypoint ids up to 1 .*set it to 2"):
        check_reader(reader)
    label_map.write_text("item { id: 1 name: 'cat' }")
    with pytest.raises(UserError, match="use_keypoint_label_map: .* has no item with keypoints"):
        check_reader(reader)


def test_options_that_do_not_go_together(masked: str) -> None:
    with pytest.raises(UserError, match="load_keypoint_depth_features is set, but num_keypoints is 0"):
        check_reader(_reader(masked, "load_keypoint_depth_features: true"))
    with pytest.raises(UserError, match="use_keypoint_label_map is set, but num_keypoints is 0"):
        check_reader(_reader(masked, "use_keypoint_label_map: true"))
    with pytest.raises(UserError, match=r"options\[0\].random_horizontal_flip: does not work with load_dense_pose"):
        check_reader(_reader(masked, "load_dense_pose: true"), _train(AUGMENTED))


def test_missing_masks_name_the_record(shards: str) -> None:
    dataset = build_train_dataset(_reader(shards, "load_instance_masks: true"), _train(), FakeDetector())
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        _take(dataset, 1)
    assert re.search(r"set.record-0000\d-of-00003:\d+ \d+: 0 values in image/object/mask", str(explain(raised.value)))


def _record_file(folder: Path, examples: list[tf.train.Example]) -> str:
    with tf.io.TFRecordWriter(str(folder / "a.record")) as writer:
        for item in examples:
            writer.write(item.SerializeToString())
    return str(folder / "a.record")


def test_context_banks_are_padded_to_the_models_number_of_rows(tmp_path: Path) -> None:
    items = [_example(number) for number in range(2)]
    items[1].features.feature["image/context_features"].float_list.value.extend(range(8))
    path, detector = _record_file(tmp_path, items), FakeDetector()
    detector.context_size = (3, 4)
    settings = eval_pb2.EvalConfig(batch_size=2)
    (batch,) = build_eval_dataset(_reader(path, "load_context_features: true"), settings, detector)
    assert batch.side_inputs == {"context": batch.context}
    np.testing.assert_array_equal(batch.context.size, [0, 2])
    expected = np.zeros((2, 3, 4))
    expected[1, :2] = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(batch.context.features, expected)

    (batch,) = build_eval_dataset(_reader(path), settings, detector)
    assert batch.context is None and batch.side_inputs == {}


def test_context_that_the_model_would_not_look_at_is_refused(tmp_path: Path) -> None:
    reader = _reader(_record_file(tmp_path, [_example(0)]), "load_context_features: true")
    with pytest.raises(UserError, match="load_context_features is true, but the model has nothing that looks at them"):
        check_reader(reader)
    check_reader(reader, context_size=(10, 4))
