"""Writing records: tf.train.Examples in the OD API's keys, and shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import tensorflow as tf


class LabelledKeypoint(NamedTuple):
    """A point of an object: normalised, `visibility` as COCO's (0 not labelled, 1 labelled but hidden, 2 visible)."""

    y: float
    x: float
    visibility: int = 2


class LabelledBox(NamedTuple):
    """One object: normalised corners, label id (from 1), class text and the flags of PASCAL VOC and COCO."""

    ymin: float
    xmin: float
    ymax: float
    xmax: float
    label: int
    text: str
    difficult: bool = False
    is_crowd: bool = False
    area: float | None = None  # pixels
    mask: bytes | None = None  # a PNG of the image's size, above zero on the object
    keypoints: tuple[LabelledKeypoint, ...] = ()  # equally many for all boxes of a data set


def make_example(
    encoded: bytes,
    image_format: str,
    height: int,
    width: int,
    filename: str,
    boxes: Sequence[LabelledBox],
    keypoint_names: Sequence[str] = (),
) -> tf.train.Example:
    """One labelled image; `encoded` holds a JPEG or PNG. `image/object/area` is written if all boxes have it.

    Masks and keypoints are written where there are any; with `keypoint_names`, so is the name of each.

    Raises:
      ValueError: some boxes have a mask and some have none, or they have different numbers of keypoints.
    """
    name = filename.encode()
    features = {
        "image/encoded": _bytes([encoded]),
        "image/format": _bytes([image_format.encode()]),
        "image/height": _ints([height]),
        "image/width": _ints([width]),
        "image/filename": _bytes([name]),
        "image/source_id": _bytes([name]),
        "image/key/sha256": _bytes([hashlib.sha256(encoded).hexdigest().encode()]),
        "image/object/class/label": _ints([box.label for box in boxes]),
        "image/object/class/text": _bytes([box.text.encode() for box in boxes]),
        "image/object/difficult": _ints([int(box.difficult) for box in boxes]),
        "image/object/is_crowd": _ints([int(box.is_crowd) for box in boxes]),
    }
    for side in ("ymin", "xmin", "ymax", "xmax"):
        features[f"image/object/bbox/{side}"] = _floats([getattr(box, side) for box in boxes])
    areas = [box.area for box in boxes if box.area is not None]
    if boxes and len(areas) == len(boxes):
        features["image/object/area"] = _floats(areas)
    features |= _masks(boxes) | _keypoints(boxes, keypoint_names)
    return tf.train.Example(features=tf.train.Features(feature=features))


def _masks(boxes: Sequence[LabelledBox]) -> dict[str, tf.train.Feature]:
    masks = [box.mask for box in boxes if box.mask is not None]
    if not masks:
        return {}
    if len(masks) < len(boxes):
        raise ValueError(f"{len(masks)} of {len(boxes)} boxes have a mask, expected all or none")
    return {"image/object/mask": _bytes(masks)}


def _keypoints(boxes: Sequence[LabelledBox], names: Sequence[str]) -> dict[str, tf.train.Feature]:
    counts = sorted({len(box.keypoints) for box in boxes} | ({len(names)} if names else set()))
    if len(counts) > 1:
        raise ValueError(f"boxes or names of {' and '.join(map(str, counts))} keypoints, expected one number")
    points = [point for box in boxes for point in box.keypoints]
    if not points:
        return {}
    features = {
        "image/object/keypoint/y": _floats([point.y for point in points]),
        "image/object/keypoint/x": _floats([point.x for point in points]),
        "image/object/keypoint/visibility": _ints([point.visibility for point in points]),
        "image/object/keypoint/num": _ints([sum(point.visibility > 0 for point in box.keypoints) for box in boxes]),
    }
    if names:
        features["image/object/keypoint/text"] = _bytes([name.encode() for name in names] * len(boxes))
    return features


def shard_paths(path: str, num_shards: int) -> list[str]:
    """`path` alone for one shard, else `path-00000-of-00010`, ..."""
    if num_shards == 1:
        return [path]
    return [f"{path}-{number:05d}-of-{num_shards:05d}" for number in range(num_shards)]


class ShardedWriter:
    """Writes records to shards in turn. The files appear under their names only when all is written.

    A context manager; leaving it by an error removes what was written.
    """

    def __init__(self, path: str, num_shards: int = 1):
        self._paths = shard_paths(path, num_shards)
        self._writers = [tf.io.TFRecordWriter(_partial(shard)) for shard in self._paths]
        self.num_written = 0

    def write(self, example: tf.train.Example) -> None:
        """Appends one record."""
        self._writers[self.num_written % len(self._writers)].write(example.SerializeToString(deterministic=True))
        self.num_written += 1

    def __enter__(self) -> ShardedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close()
        for path in self._paths:
            if kind is None:
                os.replace(_partial(path), path)
            else:
                os.remove(_partial(path))


def _partial(path: str) -> str:
    return path + ".partial"


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _floats(values: Sequence[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
