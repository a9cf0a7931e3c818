"""Writes annotated images as TFRecords with a label map: a PASCAL VOC folder (one XML per image) or a JSON of COCO's.

    python tools/create_tf_record.py --annotations_dir=voc/Annotations --images_dir=voc/JPEGImages \
        --output_path=data/train.record [--image_set=voc/ImageSets/Main/train.txt] [--num_shards=4]
    python tools/create_tf_record.py --coco_json=instances_train2017.json --images_dir=train2017 \
        --output_path=data/train.record [--masks] [--keypoints [--coco_keypoints_json=person_keypoints_train2017.json]]

The label map is read from --label_map_path if that file exists, else written there: of VOC with ids from 1 in the
alphabetical order of the class names found, of COCO with the ids of its categories. JPEG and PNG images are stored as
they are, masks as one PNG per object (mask_type: PNG_MASKS).
"""

from __future__ import annotations

import io
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter

import coco_annotations
from absl import app, flags
from PIL import Image, UnidentifiedImageError

from od_finetune.config.label_map import load_label_map
from od_finetune.data.decoder import BOX_TOLERANCE
from od_finetune.data.label_map import Label, LabelMap
from od_finetune.data.writer import LabelledBox, ShardedWriter, make_example
from od_finetune.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("annotations_dir", None, "Folder of the XML files of PASCAL VOC.")
    flags.DEFINE_string("coco_json", None, "Or: annotations in one JSON of COCO's object detection.")
    flags.DEFINE_string("coco_keypoints_json", None, "Keypoints of the same annotations, where in a JSON of their own.")
    flags.DEFINE_bool("masks", False, "Write the segmentations of --coco_json.")
    flags.DEFINE_bool("keypoints", False, "Write the keypoints of --coco_json.")
    flags.DEFINE_string("images_dir", None, "Folder of the images.", required=True)
    flags.DEFINE_string("output_path", None, "The TFRecord file; shards get -00000-of-N appended.", required=True)
    flags.DEFINE_string("label_map_path", None, "Label map; beside the output, label_map.pbtxt, where not given.")
    flags.DEFINE_string("image_set", None, "Text file whose first column names the images to take; else all.")
    flags.DEFINE_integer("num_shards", 1, "Number of files.", lower_bound=1)
    flags.DEFINE_bool("ignore_difficult", False, "Leave out objects marked difficult.")


def annotation_files(directory: str, image_set: str | None) -> list[str]:
    """The XML files to convert, sorted or in the image set's order."""
    if not os.path.isdir(directory):
        raise UserError(f"--annotations_dir: no folder {directory!r}")
    if image_set is None:
        files = sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".xml"))
        if not files:
            raise UserError(f"--annotations_dir: no .xml file in {directory!r}")
        return files
    if not os.path.isfile(image_set):
        raise UserError(f"--image_set: no file {image_set!r}")
    with open(image_set, encoding="utf-8") as file:
        names = [line.split()[0] for line in file if line.strip()]
    files = [os.path.join(directory, os.path.splitext(name)[0] + ".xml") for name in names]
    missing = [path for path in files if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{image_set}: {len(missing)} of {len(files)} images have no annotation, first {missing[0]!r}")
    return files


def parse(path: str) -> ElementTree.Element:
    """The `annotation` element of a file."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: no XML ({error})") from error
    if root.tag != "annotation":
        raise UserError(f"{path}: root element is <{root.tag}>, expected <annotation>")
    return root


def class_names(files: list[str]) -> list[str]:
    """All names of objects, sorted."""
    return sorted({text(item, "name", path) for path in files for item in parse(path).iter("object")})


def text(element: ElementTree.Element, name: str, path: str) -> str:
    """The text of a child element that has to be there."""
    found = element.findtext(name)
    if not found or not found.strip():
        raise UserError(f"{path}: <{element.tag}> has no <{name}>")
    return found.strip()


def voc_labels(names: list[str], path: str) -> LabelMap:
    """A map of `names` to ids from 1."""
    return LabelMap(tuple(Label(number, name, name) for number, name in enumerate(names, 1)), path)


def write_label_map(labels: LabelMap) -> LabelMap:
    """Writes a map to its path and returns it."""
    with open(labels.path, "w", encoding="utf-8") as file:
        for label in labels.labels:
            points = "".join(
                f"  keypoints {{ id: {place} label: {_quoted(name)} }}\n" for place, name in label.keypoints
            )
            file.write(f"item {{\n  id: {label.id}\n  name: {_quoted(label.name)}\n{points}}}\n")
    return labels


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def boxes_of(root: ElementTree.Element, path: str, size: tuple[int, int], ids: dict[str, int]) -> list[LabelledBox]:
    """The objects of an annotation; `size` is the image's (width, height)."""
    boxes = []
    for number, item in enumerate(root.iter("object")):
        where = f"{path}: object {number}"
        name = text(item, "name", path)
        if name not in ids:
            raise UserError(f"{where}: class {name!r} is not in the label map, expected one of {', '.join(ids)}")
        corners = item.find("bndbox")
        if corners is None:
            raise UserError(f"{where}: has no <bndbox>")
        try:
            pixels = {side: float(text(corners, side, path)) for side in ("ymin", "xmin", "ymax", "xmax")}
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        ymin, ymax = pixels["ymin"] / size[1], pixels["ymax"] / size[1]
        xmin, xmax = pixels["xmin"] / size[0], pixels["xmax"] / size[0]
        if min(ymin, xmin) < -BOX_TOLERANCE or max(ymax, xmax) > 1 + BOX_TOLERANCE or ymin >= ymax or xmin >= xmax:
            raise UserError(f"{where}: box {pixels} in an image of {size[0]}x{size[1]}, expected min < max, all inside")
        sides = [min(max(side, 0.0), 1.0) for side in (ymin, xmin, ymax, xmax)]
        boxes.append(LabelledBox(*sides, ids[name], name, difficult=item.findtext("difficult", "0").strip() == "1"))
    return boxes


def find_image(images_dir: str, root: ElementTree.Element, path: str) -> str:
    """The image of an annotation: what it names, else a JPEG or PNG of its own name."""
    stem = os.path.splitext(os.path.basename(path))[0]
    names = [root.findtext("filename", "").strip(), *(stem + end for end in (".jpg", ".jpeg", ".png", ".JPG"))]
    for name in names:
        found = os.path.join(images_dir, name)
        if name and os.path.isfile(found):
            return found
    raise UserError(f"{path}: no image in {images_dir!r}, looked for {', '.join(name for name in names if name)}")


def read_image(path: str) -> tuple[bytes, str, tuple[int, int]]:
    """Bytes, format ("jpeg" or "png") and (width, height) of an image; other formats are converted to PNG."""
    with open(path, "rb") as file:
        encoded = file.read()
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            kind, size = (image.format or "").lower(), image.size
            if kind not in ("jpeg", "png"):
                converted = io.BytesIO()
                image.convert("RGB").save(converted, "PNG")
                encoded, kind = converted.getvalue(), "png"
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: can't be decoded ({error}); expected a whole JPEG or PNG") from error
    return encoded, kind, size


def convert(
    files: list[str], images_dir: str, label_map: LabelMap, output: str, num_shards: int, ignore_difficult: bool
) -> Counter[str]:
    """Writes the records and returns how many boxes each class has."""
    counts: Counter[str] = Counter()
    ids = label_map.ids()
    progress = Progress(len(files))
    with ShardedWriter(output, num_shards) as writer:
        for path in files:
            root = parse(path)
            image_path = find_image(images_dir, root, path)
            encoded, kind, size = read_image(image_path)
            boxes = [box for box in boxes_of(root, path, size, ids) if not (ignore_difficult and box.difficult)]
            counts.update(box.text for box in boxes)
            writer.write(make_example(encoded, kind, size[1], size[0], os.path.basename(image_path), boxes))
            progress.step()
    return counts


def convert_coco(
    data: coco_annotations.CocoData,
    images_dir: str,
    labels: LabelMap,
    output: str,
    num_shards: int,
    masks: bool,
    keypoints: bool,
) -> Counter[str]:
    """Writes the records and returns how many boxes each class has."""
    counts: Counter[str] = Counter()
    ids = labels.ids()
    progress = Progress(len(data.images))
    with ShardedWriter(output, num_shards) as writer:
        for image in data.images:
            path = os.path.join(images_dir, image.file_name)
            if not os.path.isfile(path):
                raise UserError(f"{data.path}: image {image.file_name!r} is not in {images_dir!r}")
            encoded, kind, size = read_image(path)
            boxes = list(coco_annotations.boxes_of(image, data, size, ids, masks, keypoints))
            counts.update(box.text for box in boxes)
            names = list(data.keypoints) if keypoints and boxes else []
            writer.write(make_example(encoded, kind, size[1], size[0], image.file_name, boxes, names))
            progress.step()
    return counts


class Progress:
    """A line every hundred images."""

    def __init__(self, total: int):
        self._total, self._done, self._start = total, 0, time.monotonic()

    def step(self) -> None:
        """One image more."""
        self._done += 1
        if self._done % 100 == 0 or self._done == self._total:
            rate = self._done / max(time.monotonic() - self._start, 1e-9)
            print(f"{self._done} of {self._total} images, {rate:.0f} per second", file=sys.stderr)


def run() -> None:
    """Converts what the flags say."""
    if (FLAGS.annotations_dir is None) == (FLAGS.coco_json is None):
        raise UserError("expected either --annotations_dir (PASCAL VOC) or --coco_json")
    coco_only = [name for name in ("masks", "keypoints", "coco_keypoints_json") if FLAGS[name].value]
    if FLAGS.coco_json is None and coco_only:
        raise UserError(f"--{coco_only[0]} goes with --coco_json; PASCAL VOC's boxes have none")
    if FLAGS.coco_keypoints_json and not FLAGS.keypoints:
        raise UserError("--coco_keypoints_json goes with --keypoints")
    directory = os.path.dirname(FLAGS.output_path) or "."
    os.makedirs(directory, exist_ok=True)
    map_path = FLAGS.label_map_path or os.path.join(directory, "label_map.pbtxt")
    known = load_label_map(map_path).check() if os.path.isfile(map_path) else None
    if FLAGS.coco_json is None:
        files = annotation_files(FLAGS.annotations_dir, FLAGS.image_set)
        labels = known or write_label_map(voc_labels(class_names(files), map_path))
        count = len(files)
        counts = convert(files, FLAGS.images_dir, labels, FLAGS.output_path, FLAGS.num_shards, FLAGS.ignore_difficult)
    else:
        data = coco_annotations.load(FLAGS.coco_json, FLAGS.coco_keypoints_json)
        if FLAGS.keypoints and not data.keypoints:
            raise UserError(f"{FLAGS.coco_json}: no category has keypoints; see --coco_keypoints_json")
        labels = known or write_label_map(coco_annotations.label_map(data, map_path, FLAGS.keypoints))
        count = len(data.images)
        options = (FLAGS.output_path, FLAGS.num_shards, FLAGS.masks, FLAGS.keypoints)
        counts = convert_coco(data, FLAGS.images_dir, labels, *options)
    print(f"{count} images -> {FLAGS.output_path} ({FLAGS.num_shards} shard(s)), label map {map_path}")
    for label in labels.labels:
        print(f"  {label.id:4d} {label.name}: {counts[label.name]} boxes")


def main(argv: list[str]) -> None:
    """Runs the command; what the user can fix ends it with one message."""
    del argv
    try:
        run()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
