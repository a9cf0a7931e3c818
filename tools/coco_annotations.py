"""COCO's JSON (https://cocodataset.org/#format-data) as boxes, masks and keypoints for records."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from PIL import Image

from od_finetune.data.decoder import BOX_TOLERANCE
from od_finetune.data.label_map import Label, LabelMap
from od_finetune.data.writer import LabelledBox, LabelledKeypoint
from od_finetune.errors import UserError


class CocoImage(NamedTuple):
    """An image and what is annotated in it."""

    file_name: str
    annotations: list[dict[str, Any]]


class CocoData(NamedTuple):
    """A data set; `keypoints` has the place of each name among those of all categories."""

    path: str
    images: list[CocoImage]
    categories: dict[int, dict[str, Any]]
    keypoints: dict[str, int]


def load(path: str, keypoints_path: str | None = None) -> CocoData:
    """Reads a JSON, with keypoints of another one by annotation id (COCO has them in a file of their own).

    Raises:
      UserError: a file that is no such JSON; an annotation of an unknown image or category.
    """
    content = _read(path)
    categories = {int(item["id"]): item for item in content["categories"]}
    annotations = {int(item["id"]): item for item in content["annotations"]}
    if keypoints_path:
        other = _read(keypoints_path)
        for item in other["categories"]:
            categories.setdefault(int(item["id"]), item).update(keypoints=item.get("keypoints", []))
        for item in other["annotations"]:
            if int(item["id"]) in annotations:
                annotations[int(item["id"])]["keypoints"] = item["keypoints"]
    by_image: dict[Any, list[dict[str, Any]]] = {item["id"]: [] for item in content["images"]}
    for number, item in annotations.items():
        if item["image_id"] not in by_image or int(item["category_id"]) not in categories:
            raise UserError(
                f"{path}: annotation {number} is of image {item['image_id']} and category {item['category_id']}, "
                "expected ids of images and categories of the file"
            )
        by_image[item["image_id"]].append(item)
    images = [CocoImage(item["file_name"], by_image[item["id"]]) for item in content["images"]]
    names = dict.fromkeys(name for item in categories.values() for name in item.get("keypoints", []))
    return CocoData(path, images, categories, {name: place for place, name in enumerate(names)})


def _read(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"no file {path!r}; expected a JSON of COCO's")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: has no list {key!r}; expected a JSON of COCO's object detection")
    return content


def label_map(data: CocoData, path: str, with_keypoints: bool) -> LabelMap:
    """COCO's categories, with their ids where these count from 1."""
    shift = 1 - min([1, *data.categories])
    labels = []
    for number, item in sorted(data.categories.items()):
        keypoints = item.get("keypoints", []) if with_keypoints else []
        places = tuple((data.keypoints[name], name) for name in keypoints)
        labels.append(Label(number + shift, item["name"], item["name"], places))
    return LabelMap(tuple(labels), path)


def boxes_of(
    image: CocoImage, data: CocoData, size: tuple[int, int], ids: dict[str, int], masks: bool, keypoints: bool
) -> Iterator[LabelledBox]:
    """The objects of an image of `size` (width, height) that have an area.

    Raises:
      UserError: naming file and annotation.
    """
    for item in image.annotations:
        where = f"{data.path}: annotation {item['id']} of {image.file_name}"
        name = data.categories[int(item["category_id"])]["name"]
        if name not in ids:
            raise UserError(f"{where}: class {name!r} is not in the label map, expected one of {', '.join(ids)}")
        left, top, width, height = (float(value) for value in item["bbox"])
        if width <= 0 or height <= 0:
            continue
        sides = np.array([top, left, top + height, left + width]) / np.tile(size[::-1], 2)
        if sides.min() < -BOX_TOLERANCE or sides.max() > 1 + BOX_TOLERANCE:
            raise UserError(f"{where}: bbox {item['bbox']} (x, y, width, height) reaches out of {size[0]}x{size[1]}")
        yield LabelledBox(
            *np.clip(sides, 0.0, 1.0).tolist(),
            ids[name],
            name,
            is_crowd=bool(item.get("iscrowd", 0)),
            area=float(item["area"]) if "area" in item else None,
            mask=mask_png(item, size, where) if masks else None,
            keypoints=_keypoints(item, data, size, where) if keypoints else (),
        )


def mask_png(item: dict[str, Any], size: tuple[int, int], where: str) -> bytes:
    """The segmentation (polygons or run-length code) as a PNG of one bit per pixel."""
    segmentation = item.get("segmentation")
    if not segmentation:
        raise UserError(f"{where}: has no segmentation, but --masks asks for one; expected polygons or run-length code")
    width, height = size
    try:
        codes = hotcoco.mask.fr_py_objects(segmentation, height, width)
        code = hotcoco.mask.merge(codes) if isinstance(codes, list) else codes
        pixels = hotcoco.mask.decode(code)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: segmentation can't be read ({error})") from error
    if pixels.shape != (height, width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UserError(f"{where}: segmentation is of {found} pixels, the image of {width}x{height}")
    file = io.BytesIO()
    Image.fromarray(pixels * np.uint8(255)).convert("1").save(file, "PNG", optimize=True)
    return file.getvalue()


def _keypoints(
    item: dict[str, Any], data: CocoData, size: tuple[int, int], where: str
) -> tuple[LabelledKeypoint, ...]:
    """All keypoints of the data set, those not labelled of visibility 0."""
    points = [LabelledKeypoint(0.0, 0.0, 0)] * len(data.keypoints)
    names: Sequence[str] = data.categories[int(item["category_id"])].get("keypoints", [])
    values = item.get("keypoints") or []
    if values and len(values) != 3 * len(names):
        raise UserError(f"{where}: has {len(values)} numbers of keypoints, expected {3 * len(names)} (x, y, v of each)")
    for name, x, y, visibility in zip(names, values[::3], values[1::3], values[2::3], strict=bool(values)):
        if visibility > 0:
            points[data.keypoints[name]] = LabelledKeypoint(y / size[1], x / size[0], int(visibility))
    return tuple(points)
