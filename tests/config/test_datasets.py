"""The stream as a whole, built from configs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from reading import AUGMENTED, FakeDetector, example, reader_of, take, train_config

from od_finetune.config.datasets import build_eval_dataset, build_train_dataset, input_files
from od_finetune.data import records
from od_finetune.data.dataset import explain
from od_finetune.data.writer import LabelledBox, ShardedWriter, make_example, shard_paths
from od_finetune.errors import UserError
from od_finetune.fields import Batch
from od_finetune.protos import eval_pb2, input_reader_pb2


def _assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def _source_ids(batches: list[Batch]) -> list[int]:
    return [int(source_id) for batch in batches for source_id in batch.source_ids]


def test_two_runs_are_identical_and_a_resumed_one_goes_on(shards: str) -> None:
    reader, config, detector = (
        reader_of(shards, "shuffle_buffer_size: 7 num_readers: 2"),
        train_config(AUGMENTED),
        FakeDetector(),
    )
    full = take(build_train_dataset(reader, config, detector), 13)
    tf.random.set_seed(0)  # a global seed must not matter
    _assert_same(full, take(build_train_dataset(reader, config, detector), 13))
    for done in (1, 5, 12):  # within the first epoch, at its end, in the third
        resumed = build_train_dataset(reader, config, detector, skip_batches=done)
        _assert_same(full[done:], take(resumed, 13 - done))
    other = take(build_train_dataset(reader, config, detector, seed=6), 5)
    assert _source_ids(other) != _source_ids(full[:5])


def test_every_epoch_holds_every_record_once_in_another_order(shards: str) -> None:
    ids = _source_ids(take(build_train_dataset(reader_of(shards), train_config(), FakeDetector()), 10))
    assert sorted(ids[:20]) == sorted(ids[20:]) == list(range(20))
    assert ids[:20] != ids[20:]


def test_batch_fields(shards: str) -> None:
    dataset = build_train_dataset(reader_of(shards, "max_number_of_boxes: 3"), train_config(), FakeDetector())
    spec = dataset.element_spec
    assert spec.images.shape == (4, 8, 8, 3)
    assert spec.groundtruth.classes.shape == (4, 3, 2)
    (batch,) = take(dataset, 1)
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
        writer.write(example(0, [LabelledBox(0, 0, 0.5, 0.5, 1, "cat")] * 103))
    reader = reader_of(str(tmp_path / "many"))
    (train,) = take(build_train_dataset(reader, train_config("max_number_of_boxes: 2"), FakeDetector()), 1)
    assert train.groundtruth.boxes.shape == (4, 2, 4)
    assert train.groundtruth.num_boxes.tolist() == [2] * 4
    (evaluated,) = take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 1)
    assert evaluated.groundtruth.boxes.shape == (1, 103, 4)
    reader.max_number_of_boxes = 5
    (evaluated,) = take(build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector()), 1)
    assert evaluated.groundtruth.num_boxes.tolist() == [5]


def test_merged_labels(shards: str) -> None:
    config = train_config("merge_multiple_label_boxes: true")
    (batch,) = take(build_train_dataset(reader_of(shards, "max_number_of_boxes: 2"), config, FakeDetector()), 1)
    assert batch.groundtruth.num_boxes.tolist() == [1] * 4
    assert batch.groundtruth.classes[0].tolist() == [[1, 1], [0, 0]]


def test_merged_labels_without_boxes(tmp_path: Path) -> None:
    with ShardedWriter(str(tmp_path / "none")) as writer:
        writer.write(example(0, []))
    config = train_config("merge_multiple_label_boxes: true")
    (batch,) = take(build_train_dataset(reader_of(str(tmp_path / "none")), config, FakeDetector()), 1)
    assert batch.groundtruth.num_boxes.tolist() == [0] * 4


def test_evaluation_is_in_order_and_whole(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=8)
    batches = take(build_eval_dataset(reader_of(shards), config, FakeDetector()), 10)
    assert [len(batch.images) for batch in batches] == [8, 8, 4]
    assert _source_ids(batches) == [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
    shuffled = _source_ids(take(build_eval_dataset(reader_of(shards, "shuffle: true"), config, FakeDetector()), 10))
    assert shuffled != _source_ids(batches) and sorted(shuffled) == list(range(20))


@pytest.mark.slow
def test_evaluation_on_fewer_examples(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=8, num_examples=5)
    assert len(_source_ids(take(build_eval_dataset(reader_of(shards), config, FakeDetector()), 10))) == 5
    third = reader_of(shards, "sample_1_of_n_examples: 3")
    assert len(_source_ids(take(build_eval_dataset(third, eval_pb2.EvalConfig(), FakeDetector()), 99))) == 7


def test_images_of_different_sizes_share_a_batch(shards: str) -> None:
    config = eval_pb2.EvalConfig(batch_size=3)
    (batch,) = take(build_eval_dataset(reader_of(shards.replace("*", "00000*")), config, FakeDetector(None)), 1)
    assert batch.images.shape == (3, 12, 16, 3)
    mixed = take(build_eval_dataset(reader_of(shards), eval_pb2.EvalConfig(batch_size=20), FakeDetector(None)), 1)[0]
    assert mixed.images.shape == (20, 14, 16, 3)
    assert (mixed.images[0, 12:] == 0).all()
    assert mixed.true_shapes[0].tolist() == [12, 16, 3]


@pytest.mark.slow
def test_sampling_weights(shards: str) -> None:
    first, second = (path for path in shard_paths(shards[:-2], 3)[:2])
    reader = reader_of([first, second], "sample_from_datasets_weights: [3, 1]")
    config = train_config()
    full = take(build_train_dataset(reader, config, FakeDetector()), 60)
    counts = Counter(number % 3 for number in _source_ids(full))
    assert set(counts) == {0, 1}
    assert abs(counts[0] / 240 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 240)
    _assert_same(full[50:], take(build_train_dataset(reader, config, FakeDetector(), skip_batches=50), 10))


def test_finite_epochs(shards: str) -> None:
    finite = build_train_dataset(reader_of(shards, "num_epochs: 2"), train_config(batch_size=6), FakeDetector())
    assert [len(batch.images) for batch in take(finite, 99)] == [6] * 6
    with pytest.raises(UserError, match=r"\(20 x 1 epochs\) do not fill one batch of 32"):
        build_train_dataset(reader_of(shards, "num_epochs: 1"), train_config(batch_size=32), FakeDetector())


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
        build_train_dataset(reader_of(shards, text), train_config(), FakeDetector())


def test_reader_without_input() -> None:
    with pytest.raises(UserError, match="external_input_reader given, expected tf_record_input_reader"):
        input_files(text_format.Parse("external_input_reader {}", input_reader_pb2.InputReader()))
    with pytest.raises(UserError, match="no input_path"):
        input_files(text_format.Parse("tf_record_input_reader {}", input_reader_pb2.InputReader()))
    with pytest.raises(UserError, match="'/none/x' matches no file"):
        input_files(reader_of("/none/x"))


def test_label_map_is_checked_against_the_model(shards: str, tmp_path: Path) -> None:
    (tmp_path / "map").write_text("item { id: 3 name: 'cat' }")
    with pytest.raises(UserError, match="largest id is 3, but the model has num_classes 2"):
        build_train_dataset(reader_of(shards, f"label_map_path: '{tmp_path}/map'"), train_config(), FakeDetector())


def _error(action: Callable[[], Any]) -> BaseException:
    with pytest.raises(tf.errors.OpError) as raised:
        action()
    return raised.value


def test_bad_record_is_named_with_file_and_number(tmp_path: Path) -> None:
    with ShardedWriter(str(tmp_path / "bad")) as writer:
        for number in range(6):
            boxes = [LabelledBox(0.5, 0.1, 0.2, 0.9, 1, "cat")] if number == 4 else None
            writer.write(example(number, boxes))
    dataset = build_eval_dataset(reader_of(str(tmp_path / "bad")), eval_pb2.EvalConfig(batch_size=2), FakeDetector())
    explained = explain(_error(lambda: take(dataset, 3)))
    assert str(explained).startswith(f"{tmp_path}/bad:4 4: box 0 (ymin, xmin, ymax, xmax) is [0.5, 0.1, 0.2, 0.9]")


def test_undecodable_image_is_named_before_anything_is_done_with_it(tmp_path: Path) -> None:
    """In a graph the resize of nothing could run, and fail, before the check."""
    with ShardedWriter(str(tmp_path / "bad")) as writer:
        writer.write(make_example(b"no image", "png", 9, 9, "a", []))
    dataset = build_eval_dataset(reader_of(str(tmp_path / "bad")), eval_pb2.EvalConfig(batch_size=1), FakeDetector())
    for _ in range(5):
        explained = explain(_error(lambda: take(dataset, 1)))
        assert str(explained).startswith(f"{tmp_path}/bad:0 a: image/encoded (8 bytes, image/format 'png') can't be")


def test_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    with ShardedWriter(str(path)) as writer:
        for number in range(3):
            writer.write(example(number))
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    reader = reader_of(str(path))
    dataset = build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector())
    error = _error(lambda: take(dataset, 3))
    assert "a record file is damaged: corrupted record" in str(explain(error))
    assert str(explain(error, lambda: input_files(reader))).startswith(f"{path}:2: record is damaged")


def test_a_run_walks_over_its_records_once(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real_open = records._open_unbuffered
    monkeypatch.setattr(records, "_open_unbuffered", lambda path: opened.append(path) or real_open(path))
    records._count.cache_clear()
    reader = reader_of(shards)
    build_train_dataset(reader, train_config(), FakeDetector())
    build_eval_dataset(reader, eval_pb2.EvalConfig(), FakeDetector())
    input_files(reader)
    assert [Path(path).name for path in opened] == [f"set.record-0000{number}-of-00003" for number in range(3)]


def test_a_batch_larger_than_the_set_is_said_in_the_log(shards: str, caplog: pytest.LogCaptureFixture) -> None:
    build_train_dataset(reader_of(shards), train_config(batch_size=21), FakeDetector())
    (said,) = caplog.records
    assert said.name == "od_finetune.config.datasets" and said.levelname == "WARNING"
    assert said.getMessage() == "a batch of 21 holds some of the 20 records more than once"


def test_raccoons(shared: Path) -> None:
    folder = shared / "data/raccoon"
    reader = reader_of(str(folder / "test.record"), f"label_map_path: '{folder}/label_map.pbtxt'")
    detector = FakeDetector((30, 30))
    detector.num_classes = 1
    batches = take(build_eval_dataset(reader, eval_pb2.EvalConfig(batch_size=16), detector), 9)
    names = [name.decode() for batch in batches for name in batch.source_ids]
    assert [Path(name).stem for name in names] == [Path(n).stem for n in (folder / "test.txt").read_text().split()]
    with Image.open(folder / "images" / names[0]) as image:
        assert batches[0].original_shapes[0].tolist() == [image.height, image.width]
    assert all((batch.groundtruth.boxes >= 0).all() and (batch.groundtruth.boxes <= 1).all() for batch in batches)
