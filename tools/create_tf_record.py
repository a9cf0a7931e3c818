"""Writes a PASCAL VOC folder (images and one XML per image) as TFRecords with a label map.

    python tools/create_tf_record.py --annotations_dir=voc/Annotations --images_dir=voc/JPEGImages \
        --output_path=data/train.record [--image_set=voc/ImageSets/Main/train.txt] [--num_shards=4]

The label map is read from --label_map_path if that file exists, else written there, with ids from 1 in the
alphabetical order of the class names found. JPEG and PNG images are stored as they are.
"""

from __future__ import annotations

import io
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter

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
    flags.DEFINE_string("annotations_dir", None, "Folder of the XML files.", required=True)
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


def write_label_map(names: list[str], path: str) -> LabelMap:
    """Writes and returns a map of `names` to ids from 1."""
    labels = tuple(Label(number, name, name) for number, name in enumerate(names, 1))
    with open(path, "w", encoding="utf-8") as file:
        for label in labels:
            quoted = label.name.replace("\\", "\\\\").replace("'", "\\'")
            file.write(f"item {{\n  id: {label.id}\n  name: '{quoted}'\n}}\n")
    return LabelMap(labels, path)


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
    start = time.monotonic()
    with ShardedWriter(output, num_shards) as writer:
        for number, path in enumerate(files, 1):
            root = parse(path)
            image_path = find_image(images_dir, root, path)
            encoded, kind, size = read_image(image_path)
            boxes = [box for box in boxes_of(root, path, size, ids) if not (ignore_difficult and box.difficult)]
            counts.update(box.text for box in boxes)
            writer.write(make_example(encoded, kind, size[1], size[0], os.path.basename(image_path), boxes))
            if number % 100 == 0 or number == len(files):
                rate = number / max(time.monotonic() - start, 1e-9)
                print(f"{number} of {len(files)} images, {rate:.0f} per second", file=sys.stderr)
    return counts


def run() -> None:
    """Converts what the flags say."""
    files = annotation_files(FLAGS.annotations_dir, FLAGS.image_set)
    directory = os.path.dirname(FLAGS.output_path) or "."
    os.makedirs(directory, exist_ok=True)
    map_path = FLAGS.label_map_path or os.path.join(directory, "label_map.pbtxt")
    if os.path.isfile(map_path):
        label_map = load_label_map(map_path).check()
    else:
        label_map = write_label_map(class_names(files), map_path)
    counts = convert(files, FLAGS.images_dir, label_map, FLAGS.output_path, FLAGS.num_shards, FLAGS.ignore_difficult)
    print(f"{len(files)} images -> {FLAGS.output_path} ({FLAGS.num_shards} shard(s)), label map {map_path}")
    for label in label_map.labels:
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
