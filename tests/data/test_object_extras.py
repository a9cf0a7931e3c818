"""Masks, keypoints and what else a record says of an object: read, and what is wrong named."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from od_finetune.data.checks import BadRecord, explain
from od_finetune.data.decoder import Decoder
from od_finetune.data.object_extras import NUMERICAL_MASKS, PNG_MASKS, ObjectExtras
from od_finetune.data.writer import LabelledBox, LabelledKeypoint, make_example

HEIGHT, WIDTH = 24, 32
MASK, POINT, DENSE = "image/object/mask", "image/object/keypoint/", "image/object/densepose/"
NAMES = {"nose": 0, "left": 1, "right": 2}
BOXES = ((0.1, 0.2, 0.5, 0.6), (0.25, 0.0, 1.0, 0.75))

Decode = Callable[[tf.train.Example], dict[str, np.ndarray]]


def _png(mask: np.ndarray, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).convert(mode).save(file, "PNG")
    return file.getvalue()


def _masks(count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((count, HEIGHT, WIDTH)) > 0.5).astype(np.uint8)


def _keypoints(count: int = 3) -> list[tuple[LabelledKeypoint, ...]]:
    rng = np.random.default_rng(1)
    values = rng.random((2, count, 2))
    return [tuple(LabelledKeypoint(*point, (2, 1, 0)[i % 3]) for i, point in enumerate(row)) for row in values]


def _example(encoded: Callable[..., bytes], boxes: int = 2, names: tuple[str, ...] = ()) -> tf.train.Example:
    objects = [
        LabelledBox(*BOXES[i], 1, "cat", mask=_png(_masks()[i] * (1, 255)[i]), keypoints=_keypoints()[i])
        for i in range(boxes)
    ]
    return make_example(encoded(0), "png", HEIGHT, WIDTH, "a.png", objects, names)


def _numerical(example: tf.train.Example, masks: np.ndarray) -> tf.train.Example:
    del example.features.feature[MASK]
    example.features.feature[MASK].float_list.value[:] = masks.ravel().astype(float)
    return example


def _compiled(extras: ObjectExtras) -> Decode:
    decoder = Decoder(2, extras=extras)
    function = tf.function(decoder, input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string)])

    def decode(example: tf.train.Example) -> dict[str, np.ndarray]:
        try:
            decoded = function(tf.constant(example.SerializeToString()), tf.constant("a.record:7"))
        except tf.errors.OpError as error:
            explained = explain(error)
            assert explained is not None, error
            raise explained from error
        return {name: value.numpy() for name, value in decoded.sample.objects.items()}

    return decode


@pytest.fixture(scope="module")
def decode() -> Decode:
    return _compiled(ObjectExtras(PNG_MASKS, 3, track_ids=True, dense_pose=True))


@pytest.fixture(scope="module")
def decode_others() -> Decode:
    return _compiled(ObjectExtras(NUMERICAL_MASKS, 3, NAMES, keypoint_depths=True))


@pytest.fixture
def record(encoded: Callable[..., bytes]) -> tf.train.Example:
    """With all that `decode` loads."""
    record = _example(encoded)
    feature = record.features.feature
    feature["image/object/track/label"].int64_list.value[:] = [7, 9]
    feature[DENSE + "num"].int64_list.value[:] = [2, 1]
    feature[DENSE + "part_index"].int64_list.value[:] = [3, 0, 23]
    for name, offset in zip("yxvu", (0.0, 0.1, 0.2, 0.3), strict=True):
        feature[DENSE + name].float_list.value[:] = [offset, offset + 0.4, offset + 0.6]
    return record


@pytest.fixture
def named(encoded: Callable[..., bytes]) -> tf.train.Example:
    """With all that `decode_others` loads: two of three keypoints, in another order than the label map's."""
    record = _numerical(_example(encoded), _masks())
    feature = record.features.feature
    for name in ("y", "x"):
        feature[POINT + name].float_list.value[:] = [0.1, 0.2, 0.3, 0.4]
    feature[POINT + "visibility"].int64_list.value[:] = [2, 1, 0, 2]
    feature[POINT + "text"].bytes_list.value[:] = [b"right", b"nose"] * 2
    feature[POINT + "z"].float_list.value[:] = [1, 2, 3, 4]
    return record


def test_all_values(decode: Decode, record: tf.train.Example) -> None:
    objects = decode(record)
    np.testing.assert_array_equal(objects["masks"], _masks())
    assert objects["masks"].dtype == np.uint8
    expected = np.array([[[p.y, p.x] for p in row] for row in _keypoints()], np.float32)
    expected[:, 2] = np.nan
    np.testing.assert_array_equal(objects["keypoints"], expected)
    assert objects["keypoint_visibilities"].tolist() == [[True, True, False]] * 2
    assert objects["track_ids"].tolist() == [7, 9]
    assert objects["dense_pose_num_points"].tolist() == [2, 1]
    assert objects["dense_pose_part_ids"].tolist() == [[3, 0], [23, 0]]
    coords = [[[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7]], [[0.6, 0.7, 0.8, 0.9], [0, 0, 0, 0]]]
    np.testing.assert_allclose(objects["dense_pose_surface_coords"], coords, atol=1e-6)


def test_by_name_and_numerical(decode_others: Decode, named: tf.train.Example) -> None:
    objects = decode_others(named)
    np.testing.assert_array_equal(objects["masks"], _masks())
    nan = np.nan
    expected = [[[0.2, 0.2], [nan, nan], [0.1, 0.1]], [[0.4, 0.4], [nan, nan], [nan, nan]]]
    np.testing.assert_allclose(objects["keypoints"], expected)
    assert objects["keypoint_visibilities"].tolist() == [[True, False, True], [True, False, False]]
    assert objects["keypoint_depths"].tolist() == [[2, 0, 1], [4, 0, 3]]
    assert objects["keypoint_depth_weights"].tolist() == [[0, 0, 0]] * 2  # the record has none


def test_without_visibility_what_has_coordinates_is_labelled(decode: Decode, record: tf.train.Example) -> None:
    del record.features.feature[POINT + "visibility"]
    record.features.feature[POINT + "y"].float_list.value[1] = float("nan")
    assert decode(record)["keypoint_visibilities"].tolist() == [[True, False, True], [True] * 3]


def test_records_without_objects(decode: Decode, decode_others: Decode, encoded: Callable[..., bytes]) -> None:
    objects = decode(_example(encoded, 0))
    assert objects["masks"].shape == (0, HEIGHT, WIDTH)
    assert objects["keypoints"].shape == (0, 3, 2)
    assert objects["dense_pose_part_ids"].shape == (0, 0)
    objects = decode_others(_example(encoded, 0))
    assert objects["masks"].shape == (0, HEIGHT, WIDTH)
    assert objects["keypoint_depths"].shape == (0, 3)


def _set(record: tf.train.Example, key: str, value: list | None) -> None:
    if key in record.features.feature:
        del record.features.feature[key]
    if value is not None:
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(value[0])]
        getattr(record.features.feature[key], kind).value[:] = value


GOOD, SMALL = _png(np.ones((HEIGHT, WIDTH))), _png(np.ones((12, 16)))
OUTSIDE = r"keypoint 1 of box 1 \(y, x\) is \[200, "


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (MASK, [GOOD, SMALL], r"mask 1 is 12x16 pixels \(height x width\), expected 24x32, the size of the image"),
        (MASK, [GOOD], "1 values in image/object/mask, expected 2 .*take load_instance_masks out of the input reader"),
        (MASK, None, "0 values in image/object/mask, expected 2 "),
        (MASK, [b"no image", GOOD], "mask 0 of image/object/mask can't be decoded; expected a PNG"),
        (MASK, [GOOD, GOOD[:-40]], "mask 1 of image/object/mask can't be decoded; expected a PNG"),
        (MASK, [1.0], "is no tf.train.Example .* with mask_type PNG_MASKS image/object/mask holds strings"),
        (POINT + "y", [0.5] * 5, r"5 values in \S+/y, expected 6 \(2 boxes with num_keypoints 3 each"),
        (POINT + "y", None, r"0 values in \S+/y, expected 6 "),
        (POINT + "x", [0.5] * 5, r"5 values in \S+/x, expected 6 \(as many as \S+/y\)"),
        (POINT + "visibility", [2] * 4, r"4 values in \S+/visibility, expected 6"),
        (POINT + "visibility", [2, 2, 3, 2, 2, 2], r"visibility holds 3, expected 0 \(not labelled\), 1 "),
        (POINT + "y", [0.0] * 4 + [200.0, 0.0], OUTSIDE + "0.*expected coordinates divided by the image's height"),
        ("image/object/track/label", [1], r"1 values in image/object/track/label, expected 2"),
        (DENSE + "y", [0.1], r"3, 1, 3, 3, 3 values in \S+part_index, .*expected the sum of \S+num, 3"),
        (DENSE + "part_index", [24, 0, 0], "part_index holds other numbers than 0 to 23"),
    ],
)
def test_bad_record(decode: Decode, record: tf.train.Example, key: str, value: list | None, expected: str) -> None:
    _set(record, key, value)
    name = "a.record:7" if "Example" in expected else "a.record:7 a.png"
    with pytest.raises(BadRecord, match=f"^{name}: .*{expected}"):
        decode(record)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (MASK, [1.0] * 24 * 32, r"768 values in \S+mask, expected 1536 \(2 boxes of 24x32 pixels\)"),
        (POINT + "text", [b"nose"], r"1 values in \S+text, expected 4 .*use_keypoint_label_map"),
        (POINT + "text", [b"right", b"ear"] * 2, "keypoint text 'ear' is none of the label map's keypoints"),
        (POINT + "y", [0.5] * 3, r"3 values in \S+y, expected a multiple of the number of boxes, which is 2"),
        (POINT + "z", [0.5] * 3, r"3 values in \S+z, expected 4"),
    ],
)
def test_bad_record_of_other_forms(
    decode_others: Decode, named: tf.train.Example, key: str, value: list, expected: str
) -> None:
    _set(named, key, value)
    if key == POINT + "y":
        _set(named, POINT + "text", [b"nose"] * 3)
    with pytest.raises(BadRecord, match=f"^a.record:7 a.png: {expected}"):
        decode_others(named)


def test_writer_refuses_halves(encoded: Callable[..., bytes]) -> None:
    box = LabelledBox(*BOXES[0], 1, "cat")
    with pytest.raises(ValueError, match="1 of 2 boxes have a mask"):
        make_example(b"", "png", 1, 1, "a", [box, box._replace(mask=GOOD)])
    with pytest.raises(ValueError, match="0 and 3 keypoints"):
        make_example(b"", "png", 1, 1, "a", [box, box._replace(keypoints=_keypoints()[0])])
