from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.data.checks import BadRecord, explain
from od_finetune.data.decoder import Decoded, Decoder
from od_finetune.data.writer import LabelledBox

IDS = {"cat": 1, "dog": 2}
BOX = "image/object/bbox/"


Decode = Callable[[tf.train.Example | bytes], Decoded]


def _compiled(decoder: Decoder) -> Decode:
    """The decoder as a graph traced once; errors as the user sees them."""
    function = tf.function(decoder, input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string)])

    def decode(example: tf.train.Example | bytes) -> Decoded:
        serialized = example if isinstance(example, bytes) else example.SerializeToString()
        try:
            return function(tf.constant(serialized), tf.constant("a.record:7"))
        except tf.errors.OpError as error:
            explained = explain(error)
            assert explained is not None, error
            raise explained from error

    return decode


@pytest.fixture(scope="module")
def decode() -> Decode:
    return _compiled(Decoder(2, IDS, "map.pbtxt"))


@pytest.fixture(scope="module")
def decode_ids() -> Decode:
    """Without a label map."""
    return _compiled(Decoder(2))


def test_all_fields(example, decode: Decode) -> None:
    boxes = [
        LabelledBox(0.1, 0.2, 0.5, 0.6, 2, "dog", difficult=True, area=30.0),
        LabelledBox(0.0, 0.0, 1.0, 1.0, 1, "cat", is_crowd=True, area=768.0),
    ]
    record = example(0, boxes)
    record.features.feature["image/object/weight"].float_list.value[:] = [0.5, 1.0]
    decoded = decode(record)
    assert decoded.key.numpy() == b"a.record:7 image0.png"
    assert decoded.source_id.numpy() == b"image0.png"
    np.testing.assert_allclose(decoded.sample.boxes, [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]])
    objects = {name: value.numpy().tolist() for name, value in decoded.sample.objects.items()}
    assert objects == {
        "classes": [2, 1],
        "weights": [0.5, 1.0],
        "is_crowd": [False, True],
        "difficult": [True, False],
        "group_of": [False, False],
        "area": [30.0, 768.0],
    }


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "1"])
def test_every_kind_of_png_becomes_8_bit_rgb(example, encoded, decode: Decode, mode: str) -> None:
    record = example(0)
    source = encoded(0, mode="L") if mode == "I;16" else encoded(0, mode=mode)
    if mode == "I;16":
        gray = tf.cast(tf.io.decode_png(source), tf.uint16) * 257
        source = tf.io.encode_png(gray).numpy()
    record.features.feature["image/encoded"].bytes_list.value[:] = [source]
    image = decode(record).sample.image
    assert image.dtype == tf.uint8
    assert image.shape == (24, 32, 3)
    expected = tf.io.decode_png(encoded(0, mode="L" if mode == "I;16" else mode), channels=3)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg(example, encoded, decode: Decode, mode: str) -> None:
    record = example(0)
    record.features.feature["image/encoded"].bytes_list.value[:] = [encoded(0, kind="JPEG", mode=mode)]
    assert decode(record).sample.image.shape == (24, 32, 3)


def test_no_boxes(example, decode: Decode) -> None:
    sample = decode(example(0, [])).sample
    assert sample.boxes.shape == (0, 4)
    assert sample.objects["classes"].shape == (0,)


def test_labels_where_there_is_no_text(example, decode: Decode) -> None:
    record = example(0)
    del record.features.feature["image/object/class/text"]
    assert decode(record).sample.objects["classes"].numpy().tolist() == [1, 2]


def test_text_wins_over_labels(example, decode: Decode) -> None:
    record = example(0)
    record.features.feature["image/object/class/label"].int64_list.value[:] = [7, 0]
    assert decode(record).sample.objects["classes"].numpy().tolist() == [1, 2]


def test_slightly_outside_is_clipped(example, decode: Decode) -> None:
    boxes = [LabelledBox(-0.001, 0.2, 1.004, 0.6, 1, "cat")]
    np.testing.assert_allclose(decode(example(0, boxes)).sample.boxes, [[0.0, 0.2, 1.0, 0.6]])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("image/encoded", None, "has no image/encoded"),
        ("image/encoded", [b"not an image"], r"image/encoded \(12 bytes, image/format 'png'\) can't be decoded"),
        ("image/encoded", [b""], r"image/encoded \(0 bytes"),
        (BOX + "xmin", [0.1], r"1 values in image/object/bbox/xmin, expected 2 \(as many as image/object/bbox/ymin\)"),
        (BOX + "ymax", None, r"0 values in image/object/bbox/ymax, expected 2"),
        ("image/object/class/text", [b"cat"], r"1 values in image/object/class/text, expected 2 \(one per box\)"),
        ("image/object/is_crowd", [1, 0, 0], "3 values in image/object/is_crowd, expected 2"),
        (BOX + "xmax", [0.6, 1.2], r"box 1 .* is \[0.3, 0, 1, 1.2\], expected coordinates divided by"),
        (BOX + "ymin", [-0.2, 0.3], r"box 0 .* is \[-0.2, 0.2, 0.5, 0.6\], expected coordinates divided by"),
        (BOX + "xmax", [0.6, 224.0], r"box 1 .* is \[0.3, 0, 1, 224\], expected coordinates divided by"),
        (BOX + "ymax", [0.05, 1.0], r"box 0 .* is \[0.1, 0.2, 0.05, 0.6\], .*inverted"),
        (BOX + "xmin", [0.2, 0.7], r"box 1 .*an area above zero"),
        (BOX + "xmin", [float("nan"), 0.0], r"box 0 .* nan, .*expected finite numbers"),
        ("image/object/class/text", [b"cat", b"cow"], r"class text 'cow' of box 1 is not in map.pbtxt"),
        (BOX + "xmin", [1, 2], "is no tf.train.Example whose image/... features"),
    ],
)
def test_bad_record(example, decode: Decode, key: str, value: list | None, expected: str) -> None:
    record = example(0)
    _set(record, key, value)
    name = "a.record:7" if "Example" in expected else "a.record:7 image0.png"  # unparsable: no source id
    with pytest.raises(BadRecord, match=f"^{name}: .*{expected}"):
        decode(record)


def _set(record: tf.train.Example, key: str, value: list | None) -> None:
    if value is None:
        del record.features.feature[key]
        return
    feature = record.features.feature[key]
    kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(value[0])]
    getattr(feature, kind).value[:] = value


@pytest.mark.parametrize("label", [0, 3, -1])
def test_label_out_of_range(example, decode_ids: Decode, label: int) -> None:
    record = example(0)
    record.features.feature["image/object/class/label"].int64_list.value[:] = [1, label]
    with pytest.raises(BadRecord, match=rf"label id {label} of box 1, expected 1 to 2 \(num_classes"):
        decode_ids(record)


def test_label_map_beyond_num_classes(example) -> None:
    with pytest.raises(BadRecord, match="label id 2 of box 1, expected 1 to 1"):
        _compiled(Decoder(1, IDS))(example(0))


def test_text_without_label_map(example, decode_ids: Decode) -> None:
    record = example(0)
    del record.features.feature["image/object/class/label"]
    with pytest.raises(BadRecord, match="0 values in image/object/class/label, .*set label_map_path"):
        decode_ids(record)


def test_truncated_jpeg(example, encoded, decode: Decode) -> None:
    record = example(0)
    record.features.feature["image/encoded"].bytes_list.value[:] = [encoded(0, kind="JPEG")[:-60]]
    with pytest.raises(BadRecord, match="can't be decoded; expected a whole JPEG"):
        decode(record)


def test_message_with_quotes_and_other_letters_survives(example, decode: Decode) -> None:
    record = example(0)
    record.features.feature["image/object/class/text"].bytes_list.value[:] = [b"cat", 'l\'été "x"'.encode()]
    with pytest.raises(BadRecord, match="class text 'l'été \"x\"' of box 1"):
        decode(record)


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff", b"plain text"])
def test_no_example_at_all(decode: Decode, content: bytes) -> None:
    with pytest.raises(BadRecord, match="^a.record:7: (has no image/encoded|is no tf.train.Example)"):
        decode(content)


def test_errors_about_other_things_are_not_explained() -> None:
    assert explain(ValueError("x")) is None
    assert explain(tf.errors.InvalidArgumentError(None, None, "shapes differ")) is None


def test_eager_decoding_is_the_same(example, decode: Decode) -> None:
    record = example(3).SerializeToString()
    eager = Decoder(2, IDS)(tf.constant(record), tf.constant("a.record:7"))
    tf.nest.map_structure(np.testing.assert_array_equal, eager, decode(record))


def test_errors_of_a_data_set_are_explained(example) -> None:
    decoder = Decoder(2)
    records = [example(0).SerializeToString(), b"plain text"]
    dataset = tf.data.Dataset.from_tensor_slices(records).map(lambda record: decoder(record, tf.constant("b:1")))
    iterator = iter(dataset)
    next(iterator)
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        next(iterator)
    assert str(explain(raised.value)).startswith("b:1: is no tf.train.Example")
