"""From a serialised tf.train.Example in the OD API's keys to a `Sample`, every assumption checked."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from od_finetune.data import sample as s
from od_finetune.data.checks import Check, attempt, describe, require
from od_finetune.data.columns import BOX, first, first_true, fit, pick, same_length
from od_finetune.data.context_features import TYPES as CONTEXT_TYPES
from od_finetune.data.context_features import ContextFeatures
from od_finetune.data.object_extras import ObjectExtras
from od_finetune.data.sample import Sample
from od_finetune.fields import ContextBank

BOX_TOLERANCE = 5e-3
"""How far a box may reach outside the image and still be clipped: half a pixel or a 1-based coordinate at 200
pixels. Farther out it means something else (pixels, another image)."""

_SIDES = ("ymin", "xmin", "ymax", "xmax")
_TYPES = {
    "image/encoded": tf.string,
    "image/format": tf.string,
    "image/filename": tf.string,
    "image/source_id": tf.string,
    "image/key/sha256": tf.string,
    "image/object/class/label": tf.int64,
    "image/object/class/text": tf.string,
    "image/object/weight": tf.float32,
    "image/object/is_crowd": tf.int64,
    "image/object/difficult": tf.int64,
    "image/object/group_of": tf.int64,
    "image/object/area": tf.float32,
    **{BOX + side: tf.float32 for side in _SIDES},
}
_OPTIONAL = {  # field of the sample: (key, value where the record has none)
    s.WEIGHTS: ("image/object/weight", 1.0),
    s.IS_CROWD: ("image/object/is_crowd", False),
    s.DIFFICULT: ("image/object/difficult", False),
    s.GROUP_OF: ("image/object/group_of", False),
    s.AREA: ("image/object/area", 0.0),
}


class Decoded(NamedTuple):
    """A record, decoded."""

    sample: Sample  # image uint8
    key: tf.Tensor  # string: "file:record number source_id"
    source_id: tf.Tensor  # string: image/source_id, else image/filename
    context: ContextBank | None = None  # of this image, without `B`


class Decoder:
    """Decodes records of one data set.

    The image is whatever `tf.io.decode_image` reads, as 8-bit RGB: grayscale is repeated, alpha dropped, 16 bits
    are cut to 8, of an animation the first frame is taken. Classes come from `image/object/class/text` through
    the label map where there is both, else from `image/object/class/label`.
    """

    def __init__(
        self,
        num_classes: int,
        label_ids: dict[str, int] | None = None,
        label_map_path: str = "label map",
        extras: ObjectExtras | None = None,
        context: ContextFeatures | None = None,
    ):
        """Args:
        label_ids: class text -> label id (from 1), see `LabelMap.ids`; None: records carry ids.
        extras: what of an object is loaded beside its box and class.
        context: how a record holds its context bank; None loads none.
        """
        self.num_classes = num_classes
        self._extras = extras
        self._context = context
        self._types = _TYPES | (extras.types if extras else {}) | (CONTEXT_TYPES if context else {})
        self._label_map_path = label_map_path
        self._label_ids = None
        if label_ids:
            table = tf.lookup.KeyValueTensorInitializer(
                list(label_ids), list(label_ids.values()), key_dtype=tf.string, value_dtype=tf.int64
            )
            self._label_ids = tf.lookup.StaticHashTable(table, default_value=-1)

    def __call__(self, serialized: tf.Tensor, position: tf.Tensor) -> Decoded:
        """Decodes one record; `position` ("file:record number") is for messages.

        Raises (eagerly, and through the data set; see `checks.explain`):
          tf.errors.InvalidArgumentError: naming position, source id, what was found and what was expected.
        """
        features = attempt(self._parse, serialized, self._unparsable())
        source_id = first(features["image/source_id"], first(features["image/filename"], ""))
        key = tf.where(tf.equal(source_id, ""), position, tf.strings.join([position, " ", source_id]))
        parsed = features.pop("parsed")
        image = attempt(_decode_image, first(features["image/encoded"], ""), tf.zeros([0, 0, 3], tf.uint8))
        sides, lists, list_checks = self._lists(features)
        raw_boxes = tf.stack(sides, axis=-1)
        boxes = tf.clip_by_value(raw_boxes, 0.0, 1.0)
        checks = list_checks + _box_checks(raw_boxes, boxes)
        checks += self._class_checks(features, lists.pop("text"), lists[s.CLASSES])
        if self._extras:
            extras, extra_checks = self._extras.decode(features, tf.size(sides[0]), image)
            lists |= extras
            checks += extra_checks
        loaded = (image, boxes, lists)
        if self._context:
            bank, context_checks = self._context.decode(features)
            loaded, checks = (*loaded, bank), [*checks, *context_checks]
        image, boxes, lists, *banks = require(
            key,
            [Check(parsed, lambda: tf.constant(self._unparsable_text())), *_image_checks(features, image), *checks],
            loaded,
        )
        image.set_shape([None, None, 3])
        lists[s.CLASSES] = tf.cast(lists[s.CLASSES], tf.int32)
        return Decoded(Sample(image, boxes, lists), key, source_id, *banks)

    def _lists(self, features: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], list[Check]]:
        """The box sides, the lists that go along (`text` too), and the checks that all are of one length.

        All are cut or filled to the length of ymin, so that nothing fails before the checks do.
        """
        length = tf.size(features[BOX + "ymin"])
        checks = []
        for side in _SIDES[1:]:
            checks.append(same_length(features, BOX + side, length))
        sides = [fit(features[BOX + side], length) for side in _SIDES]
        text, label = features["image/object/class/text"], features["image/object/class/label"]
        if self._label_ids is None:
            classes = label
            checks.append(same_length(features, "image/object/class/label", length, self._no_label_hint()))
        else:
            use_text = tf.size(text) > 0
            # only one of the two has any rows
            classes = tf.concat([self._label_ids.lookup(text), label[: tf.where(use_text, 0, tf.size(label))]], axis=0)
            count = tf.size(classes)
            checks.append(
                Check(
                    tf.equal(count, length),
                    lambda: describe(
                        count, " values in image/object/class/", tf.where(use_text, "text", "label"), ", expected ",
                        length, " (one per box)",
                    ),
                )
            )  # fmt: skip
        lists = {s.CLASSES: fit(classes, length), "text": fit(text, length)}
        for name, (key, default) in _OPTIONAL.items():
            values = features[key]
            checks.append(same_length(features, key, length, optional=True))
            values = tf.cast(values, tf.bool if isinstance(default, bool) else tf.float32)
            lists[name] = fit(values, length, default)
        return sides, lists, checks

    def _parse(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        # everything as a list of any length: what is missing or doubled is then ours to report
        spec = {key: tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True) for key, dtype in self._types.items()}
        return {**tf.io.parse_single_example(serialized, spec), "parsed": tf.constant(True)}

    def _unparsable(self) -> dict[str, tf.Tensor]:
        return {**{key: tf.zeros([0], dtype) for key, dtype in self._types.items()}, "parsed": tf.constant(False)}

    def _unparsable_text(self) -> str:
        hint = f"; {self._extras.types_hint}" if self._extras and self._extras.types_hint else ""
        return (
            "is no tf.train.Example whose image/... features have the OD API's types (floats for boxes, int64 "
            f"labels{hint})"
        )

    def _no_label_hint(self) -> str:
        return "; to use image/object/class/text instead, set label_map_path"

    def _class_checks(self, features: dict[str, tf.Tensor], text: tf.Tensor, classes: tf.Tensor) -> list[Check]:
        checks = []
        if self._label_ids is not None:
            unknown = tf.logical_and(tf.equal(classes, -1), tf.size(features["image/object/class/text"]) > 0)
            checks.append(
                Check(
                    tf.logical_not(tf.reduce_any(unknown)),
                    lambda: describe(
                        "class text '", pick(text, unknown), "' of box ", first_true(unknown), " is not in ",
                        self._label_map_path, "; add an item for it or correct the record",
                    ),
                )
            )  # fmt: skip
        wrong = tf.logical_or(classes < 1, classes > self.num_classes)
        checks.append(
            Check(
                tf.logical_not(tf.reduce_any(wrong)),
                lambda: describe(
                    "label id ", pick(classes, wrong), " of box ", first_true(wrong),
                    f", expected 1 to {self.num_classes} (num_classes; 0 is the background)",
                ),
            )
        )  # fmt: skip
        return checks


def _decode_image(encoded: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _image_checks(features: dict[str, tf.Tensor], image: tf.Tensor) -> list[Check]:
    encoded = features["image/encoded"]
    return [
        Check(tf.size(encoded) > 0, lambda: tf.constant("has no image/encoded; expected the bytes of a JPEG or PNG")),
        Check(
            tf.size(image) > 0,
            lambda: describe(
                "image/encoded (", tf.strings.length(first(encoded, "")), " bytes, image/format '",
                first(features["image/format"], ""), "') can't be decoded; expected a whole JPEG, PNG, GIF or BMP",
            ),
        ),
    ]  # fmt: skip


def _box_checks(raw: tf.Tensor, clipped: tf.Tensor) -> list[Check]:
    """`raw` float32 [N, 4] as recorded, `clipped` to the image."""
    ymin, xmin, ymax, xmax = tf.unstack(raw, axis=-1)
    not_finite = tf.reduce_any(tf.logical_not(tf.math.is_finite(raw)), axis=-1)
    outside = tf.reduce_any(tf.logical_or(raw < -BOX_TOLERANCE, raw > 1 + BOX_TOLERANCE), axis=-1)
    inverted = tf.logical_or(ymin > ymax, xmin > xmax)
    empty = tf.reduce_any(clipped[:, 2:] <= clipped[:, :2], axis=-1)
    return [
        _box_check(raw, not_finite, "finite numbers"),
        _box_check(raw, outside, "coordinates divided by the image's height and width, all within 0 to 1"),
        _box_check(raw, inverted, "ymin < ymax and xmin < xmax (it is inverted)"),
        _box_check(raw, empty, "an area above zero"),
    ]


def _box_check(boxes: tf.Tensor, wrong: tf.Tensor, expected: str) -> Check:
    def message() -> tf.Tensor:
        numbers = tf.strings.reduce_join(tf.strings.as_string(pick(boxes, wrong), shortest=True), separator=", ")
        return describe(
            "box ", first_true(wrong), " (ymin, xmin, ymax, xmax) is [", numbers, f"], expected {expected}"
        )

    return Check(tf.logical_not(tf.reduce_any(wrong)), message)
