"""What a record says of an object beside its box and class: masks, keypoints, DensePose points, tracks.

Nothing here fails: what a record gets wrong is cut, filled and reported by the checks that come with the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from od_finetune.data import sample as s
from od_finetune.data.checks import Check, attempt, describe
from od_finetune.data.columns import first_true, fit, pick, same_length

PNG_MASKS, NUMERICAL_MASKS = "PNG_MASKS", "NUMERICAL_MASKS"

POINT_TOLERANCE = 1.0
"""How far, in sides of the image, a labelled point may lie outside of it; farther out it is no normalised number."""

_MASK = "image/object/mask"
_POINT = "image/object/keypoint/"
_DENSE = "image/object/densepose/"
_TRACK = "image/object/track/label"

Decoded = tuple[dict[str, tf.Tensor], list[Check]]


class ObjectExtras:
    """Which of these are loaded, and how records hold them.

    Args:
      mask_type: `PNG_MASKS` (one PNG of the image's size per object, any value above zero is the object) or
        `NUMERICAL_MASKS` (as many floats, row by row, object by object); None loads no masks.
      num_keypoints: per object; 0 loads none.
      keypoint_ids: keypoint text -> place among `num_keypoints`; None: the record has all, in their order.
      keypoint_depths: also `image/object/keypoint/z` and its weights; 0 where a record has none.
      dense_pose: DensePose annotations.
      track_ids: an object's identity over frames.
    """

    def __init__(
        self,
        mask_type: str | None = None,
        num_keypoints: int = 0,
        keypoint_ids: Mapping[str, int] | None = None,
        keypoint_depths: bool = False,
        dense_pose: bool = False,
        track_ids: bool = False,
    ):
        self._mask_type = mask_type
        self._num_keypoints = num_keypoints
        self._depths = keypoint_depths and num_keypoints > 0
        self._dense_pose = dense_pose
        self._track_ids = track_ids
        self._keypoint_ids = None
        if keypoint_ids is not None and num_keypoints:
            table = tf.lookup.KeyValueTensorInitializer(
                list(keypoint_ids), list(keypoint_ids.values()), key_dtype=tf.string, value_dtype=tf.int64
            )
            self._keypoint_ids = tf.lookup.StaticHashTable(table, default_value=-1)

    @property
    def types(self) -> dict[str, tf.DType]:
        """The features to parse."""
        types: dict[str, tf.DType] = {}
        if self._mask_type:
            types[_MASK] = tf.string if self._mask_type == PNG_MASKS else tf.float32
        if self._num_keypoints:
            types |= {_POINT + "x": tf.float32, _POINT + "y": tf.float32, _POINT + "visibility": tf.int64}
            types |= {_POINT + "text": tf.string} if self._keypoint_ids is not None else {}
            types |= {_POINT + "z": tf.float32, _POINT + "z/weights": tf.float32} if self._depths else {}
        if self._dense_pose:
            types |= {_DENSE + "num": tf.int64, _DENSE + "part_index": tf.int64}
            types |= {_DENSE + name: tf.float32 for name in "yxvu"}
        return types | ({_TRACK: tf.int64} if self._track_ids else {})

    @property
    def types_hint(self) -> str:
        """What is easily of another type than expected."""
        kind = {PNG_MASKS: "strings", NUMERICAL_MASKS: "floats"}.get(self._mask_type or "")
        return f"with mask_type {self._mask_type} {_MASK} holds {kind}" if kind else ""

    def decode(self, features: dict[str, tf.Tensor], length: tf.Tensor, image: tf.Tensor) -> Decoded:
        """Values by the names of `data.sample`, with `length` rows each, and the checks that they are what was meant.

        Args:
          features: parsed, of `types`.
          length: int32, how many boxes the record has.
          image: decoded, `[H, W, 3]`; without a pixel where that failed, which is checked elsewhere.
        """
        values: dict[str, tf.Tensor] = {}
        checks: list[Check] = []
        parts = []
        if self._mask_type:
            parts.append((_png_masks if self._mask_type == PNG_MASKS else _numerical_masks)(features, length, image))
        if self._num_keypoints:
            parts.append(self._keypoints(features, length))
        if self._dense_pose:
            parts.append(_dense_pose_points(features, length))
        if self._track_ids:
            ids = tf.cast(fit(features[_TRACK], length), tf.int32)
            parts.append(({s.TRACK_IDS: ids}, [same_length(features, _TRACK, length, _without("load_track_id"))]))
        for more_values, more_checks in parts:
            values |= more_values
            checks += more_checks
        return values, checks

    def _keypoints(self, features: dict[str, tf.Tensor], length: tf.Tensor) -> Decoded:
        total = tf.size(features[_POINT + "y"])
        per_object: int | tf.Tensor = self._num_keypoints
        if self._keypoint_ids is None:
            to_objects, checks = _in_order(total, length, self._num_keypoints)
        else:
            text = features[_POINT + "text"]
            per_object = total // tf.maximum(length, 1)
            ids = self._keypoint_ids.lookup(text)
            to_objects, checks = _by_name(text, ids, total, length, per_object, self._num_keypoints)
        optional = ["visibility", *(["z", "z/weights"] if self._depths else [])]
        checks += [_as_many(features, name, total, name in optional) for name in ("x", *optional)]
        points = tf.stack([features[_POINT + "y"], fit(features[_POINT + "x"], total)], axis=-1)
        finite = tf.reduce_all(tf.math.is_finite(points), axis=-1)
        stated = features[_POINT + "visibility"]
        # COCO's: 0 not labelled, 1 labelled but hidden, 2 visible. Without any, what has coordinates is labelled.
        labelled = tf.where(tf.size(stated) > 0, fit(stated, total, 0) > 0, finite)
        checks += _point_checks(points, finite, labelled, stated, tf.maximum(per_object, 1))
        points = tf.where(labelled[:, None], points, float("nan"))
        values = {
            s.KEYPOINTS: to_objects(points, float("nan")),
            s.KEYPOINT_VISIBILITIES: to_objects(labelled, False),
        }
        if self._depths:
            values[s.KEYPOINT_DEPTHS] = to_objects(fit(features[_POINT + "z"], total), 0.0)
            values[s.KEYPOINT_DEPTH_WEIGHTS] = to_objects(fit(features[_POINT + "z/weights"], total), 0.0)
        return values, checks


def _without(field: str) -> str:
    return f"; write them, or take {field} out of the input reader"


def _png_masks(features: dict[str, tf.Tensor], length: tf.Tensor, image: tf.Tensor) -> Decoded:
    encoded = fit(features[_MASK], length)
    size = tf.shape(image)[:2]
    blank = tf.zeros(tf.concat([[length], size], axis=0), tf.uint8)
    masks, sizes = attempt(_decode_masks, (encoded, size), (blank, tf.zeros([length, 2], tf.int32)))
    wrong = tf.reduce_any(sizes != size, axis=-1)

    def undecodable() -> tf.Tensor:
        sound = tf.map_fn(lambda png: attempt(lambda _: _is_image(png), 0, False), encoded, fn_output_signature=tf.bool)
        return describe("mask ", first_true(tf.logical_not(sound)), f" of {_MASK} can't be decoded; expected a PNG")

    def other_size() -> tf.Tensor:
        found = pick(sizes, wrong)
        return describe(
            "mask ", first_true(wrong), " is ", found[0], "x", found[1], " pixels (height x width), expected ",
            size[0], "x", size[1], ", the size of the image",
        )  # fmt: skip

    checks = [
        same_length(features, _MASK, length, _without("load_instance_masks")),
        Check(tf.reduce_all(sizes > 0), undecodable),
        Check(tf.logical_not(tf.reduce_any(wrong)), other_size),
    ]
    return {s.MASKS: masks}, checks


def _decode_masks(encoded: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks `[N, H, W]`, empty where a PNG has another size, and the sizes found `[N, 2]`."""

    def decode(png: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_png(png, channels=1)[..., 0]
        found = tf.shape(pixels)
        same = tf.reduce_all(tf.equal(found, size))
        mask = tf.cond(same, lambda: tf.cast(pixels > 0, tf.uint8), lambda: tf.zeros(size, tf.uint8))
        return tf.ensure_shape(mask, [None, None]), found

    signature = (tf.TensorSpec([None, None], tf.uint8), tf.TensorSpec([2], tf.int32))
    return tf.map_fn(decode, encoded, fn_output_signature=signature)


def _is_image(png: tf.Tensor) -> tf.Tensor:
    return tf.size(tf.io.decode_png(png, channels=1)) > 0


def _numerical_masks(features: dict[str, tf.Tensor], length: tf.Tensor, image: tf.Tensor) -> Decoded:
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    expected = length * height * width
    found = tf.size(features[_MASK])
    masks = tf.reshape(fit(tf.cast(features[_MASK] > 0.0, tf.uint8), expected), tf.stack([length, height, width]))

    def message() -> tf.Tensor:
        return describe(
            found, f" values in {_MASK}, expected ", expected, " (", length, " boxes of ", height, "x", width,
            " pixels)", _without("load_instance_masks"),
        )  # fmt: skip

    return {s.MASKS: masks}, [Check(tf.equal(found, expected), message)]


ToObjects = Callable[[tf.Tensor, float | bool], tf.Tensor]
"""(values of all keypoints `[M, ...]`, value of a keypoint that a record leaves out) -> `[N, K, ...]`."""


def _in_order(total: tf.Tensor, length: tf.Tensor, count: int) -> tuple[ToObjects, list[Check]]:
    def to_objects(values: tf.Tensor, default: float | bool) -> tf.Tensor:
        del default
        missing = tf.maximum(length * count - total, 0)
        filled = tf.pad(values, [[0, missing]] + [[0, 0]] * (values.shape.rank - 1))
        return tf.reshape(filled[: length * count], [length, count, *values.shape[1:]])

    def message() -> tf.Tensor:
        return describe(
            total, f" values in {_POINT}y, expected ", length * count, " (", length,
            f" boxes with num_keypoints {count} each; of visibility 0 where there is nothing to label)",
        )  # fmt: skip

    return to_objects, [Check(tf.equal(total, length * count), message)]


def _by_name(
    text: tf.Tensor, ids: tf.Tensor, total: tf.Tensor, length: tf.Tensor, per_object: tf.Tensor, count: int
) -> tuple[ToObjects, list[Check]]:
    """Every object has equally many keypoints in the record, each with its name."""
    used = per_object * length
    ids = tf.cast(fit(ids, total), tf.int32)
    places = tf.stack([tf.range(used) // tf.maximum(per_object, 1), tf.maximum(ids[:used], 0)], axis=-1)

    def to_objects(values: tf.Tensor, default: float | bool) -> tf.Tensor:
        empty = tf.fill([length, count, *values.shape[1:]], tf.constant(default, values.dtype))
        return tf.tensor_scatter_nd_update(empty, places, values[:used])

    unknown = ids < 0

    def message() -> tf.Tensor:
        return describe(
            "keypoint text '", pick(fit(text, total), unknown), "' is none of the label map's keypoints; "
            "add it there or take it out of the record",
        )  # fmt: skip

    checks = [
        Check(
            tf.equal(tf.size(text), total),
            lambda: describe(
                tf.size(text), f" values in {_POINT}text, expected ", total, f" (as many as {_POINT}y), since the "
                "input reader says use_keypoint_label_map",
            ),
        ),
        Check(
            tf.equal(used, total),
            lambda: describe(
                total, f" values in {_POINT}y, expected a multiple of the number of boxes, which is ", length
            ),
        ),
        Check(tf.logical_not(tf.reduce_any(unknown)), message),
    ]  # fmt: skip
    return to_objects, checks


def _as_many(features: dict[str, tf.Tensor], name: str, total: tf.Tensor, optional: bool) -> Check:
    found = tf.size(features[_POINT + name])
    holds = tf.equal(found, total)
    return Check(
        tf.logical_or(holds, tf.equal(found, 0)) if optional else holds,
        lambda: describe(found, f" values in {_POINT}{name}, expected ", total, f" (as many as {_POINT}y)"),
    )


def _point_checks(
    points: tf.Tensor, finite: tf.Tensor, labelled: tf.Tensor, stated: tf.Tensor, per_object: tf.Tensor
) -> list[Check]:
    """`points` float32 [M, 2] as recorded; `stated` int64, the visibilities that the record gives."""
    within = tf.reduce_all((points >= -POINT_TOLERANCE) & (points <= 1.0 + POINT_TOLERANCE), axis=-1)
    wrong = tf.logical_and(labelled, tf.logical_not(tf.logical_and(finite, within)))
    unknown = (stated < 0) | (stated > 2)

    def message() -> tf.Tensor:
        number = first_true(wrong)
        numbers = tf.strings.reduce_join(tf.strings.as_string(pick(points, wrong), shortest=True), separator=", ")
        return describe(
            "keypoint ", number % per_object, " of box ", number // per_object, " (y, x) is [", numbers,
            "], expected coordinates divided by the image's height and width",
        )  # fmt: skip

    return [
        Check(tf.logical_not(tf.reduce_any(wrong)), message),
        Check(
            tf.logical_not(tf.reduce_any(unknown)),
            lambda: describe(
                f"{_POINT}visibility holds ", pick(stated, unknown),
                ", expected 0 (not labelled), 1 (labelled, hidden) or 2 (visible)",
            ),
        ),
    ]  # fmt: skip


def _dense_pose_points(features: dict[str, tf.Tensor], length: tf.Tensor) -> Decoded:
    stated = fit(features[_DENSE + "num"], length)
    expected = tf.reduce_sum(stated)
    lists = [_DENSE + name for name in ("part_index", "y", "x", "v", "u")]
    sizes = tf.stack([tf.size(features[key], out_type=tf.int64) for key in lists])
    sound = tf.reduce_all(sizes == expected) & tf.reduce_all(stated >= 0)
    counts = tf.where(sound, stated, tf.zeros_like(stated))

    def padded(key: str) -> tf.Tensor:
        values = features[key][: tf.reduce_sum(counts)]
        return tf.RaggedTensor.from_row_lengths(values, counts, validate=False).to_tensor()

    parts = padded(lists[0])
    coords = tf.stack([padded(key) for key in lists[1:]], axis=-1)
    values = {
        s.DENSE_POSE_NUM_POINTS: tf.cast(counts, tf.int32),
        s.DENSE_POSE_PART_IDS: tf.cast(parts, tf.int32),
        s.DENSE_POSE_SURFACE_COORDS: coords,
    }
    wrong_part = tf.reduce_any((parts < 0) | (parts >= 24))
    checks = [
        same_length(features, _DENSE + "num", length, _without("load_dense_pose")),
        Check(
            sound,
            lambda: describe(
                tf.strings.reduce_join(tf.strings.as_string(sizes), separator=", "), " values in ", ", ".join(lists),
                f", expected the sum of {_DENSE}num, ", expected,
            ),
        ),
        Check(
            tf.logical_not(wrong_part), lambda: tf.constant(f"{lists[0]} holds other numbers than 0 to 23, the parts")
        ),
    ]  # fmt: skip
    return values, checks
