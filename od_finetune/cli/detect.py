"""`od-finetune detect`: runs an exported detector on image files; writes pictures and JSON lines."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import hotcoco
import numpy as np
import tensorflow as tf
from PIL import Image

from od_finetune import visualization
from od_finetune.boxes.paste import paste
from od_finetune.cli.common import BAD_INPUT
from od_finetune.config.label_map import load_label_map
from od_finetune.errors import UserError
from od_finetune.export import runner
from od_finetune.export.bundle import LABEL_MAP_FILE

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
JSON_FILE = "detections.jsonl"
_JPEG_QUALITY = 92


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--model", required=True,
                        help="what `od-finetune export` wrote: its directory, the frozen graph or the SavedModel")
    parser.add_argument("--output_directory", default=None,
                        help=f"for pictures with boxes and {JSON_FILE} (default: JSON lines on stdout only)")
    parser.add_argument("--label_map", default=None, help=f"names of classes (default: the export's {LABEL_MAP_FILE})")
    parser.add_argument("--min_score", type=float, default=0.5, help="leave out what is below (default: %(default)s)")
    parser.add_argument("--max_boxes", type=int, default=20, help="at most this many per image (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Detects in every image. A file that cannot be read is reported and passed over, and the exit code is 2."""
    files = image_files(options.images)
    names = _label_names(options)
    detector = runner.load(options.model)
    if detector.context_shape is not None:
        print("Warning: this detector looks at features of objects in other images (context_features), of which none "
              "are given here; it detects as if there were no others.", file=sys.stderr)
    if options.output_directory is None:
        return _detect_all(detector, files, names, options, sys.stdout, None)
    directory = Path(options.output_directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / JSON_FILE, "w", encoding="utf-8") as lines:
        return _detect_all(detector, files, names, options, lines, directory)


def image_files(paths: Sequence[str]) -> list[Path]:
    """The files that `paths` mean: a folder stands for the images in it, sorted by name.

    Raises:
      UserError: a path does not exist, or a folder holds no image.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path}: no image in this folder; expected files ending in {', '.join(SUFFIXES)}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return files


def as_record(file: Path, size: tuple[int, int], found: runner.Found, names: dict[int, str]) -> dict:
    """One line of JSON: boxes and keypoints are in pixels of the file's image, `size` its height and width; masks are
    COCO's run-length code."""
    height, width = size
    scale = np.array([height, width, height, width])
    detections = []
    for i, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.classes, strict=True)):
        detection = {
            "box": dict(zip(("ymin", "xmin", "ymax", "xmax"), np.round(box * scale, 2).tolist(), strict=True)),
            "score": round(float(score), 5),
            "id": int(label),
            "name": names.get(int(label), ""),
        }
        if found.masks is not None:
            code = hotcoco.mask.encode(paste(found.masks[i], box, size))
            detection["mask"] = {"size": list(size), "counts": code["counts"].decode("ascii")}
        if found.keypoints is not None:
            detection["keypoints"] = _keypoints(found, i, size)
        detections.append(detection)
    return {"file": str(file), "height": height, "width": width, "detections": detections}


def _keypoints(found: runner.Found, i: int, size: tuple[int, int]) -> list[dict]:
    """In their order; of a detector that scores them, each with its score."""
    points = [
        {"y": round(float(y) * size[0], 2), "x": round(float(x) * size[1], 2)} for y, x in found.keypoints[i].tolist()
    ]
    if found.keypoint_scores is not None:
        for point, score in zip(points, found.keypoint_scores[i].tolist(), strict=True):
            point["score"] = round(score, 5)
    return points


def _label_names(options: argparse.Namespace) -> dict[int, str]:
    if options.label_map is not None:
        return load_label_map(options.label_map).names(use_display_name=True)
    beside = (Path(options.model) / LABEL_MAP_FILE, Path(options.model).parent / LABEL_MAP_FILE)
    path = next((path for path in beside if path.is_file()), None)
    return load_label_map(str(path)).names(use_display_name=True) if path else {}


def _detect_all(
    detector: runner.ExportedDetector,
    files: Sequence[Path],
    names: dict[int, str],
    options: argparse.Namespace,
    lines: TextIO,
    directory: Path | None,
) -> int:
    failures = 0
    pictures = _picture_names(files)
    for file, picture in zip(files, pictures, strict=True):
        try:
            image, found = _detect(detector, file)
        except UserError as error:
            print(error, file=sys.stderr)
            failures += 1
            continue
        keep = np.flatnonzero(found.scores >= options.min_score)[: options.max_boxes]
        found = found.select(keep)
        print(json.dumps(as_record(file, image.shape[:2], found, names)), file=lines, flush=True)
        if directory is not None:
            _draw(image, found, names, options.min_score).save(directory / picture, quality=_JPEG_QUALITY)
    return BAD_INPUT if failures else 0


def _detect(detector: runner.ExportedDetector, file: Path) -> tuple[np.ndarray, runner.Found]:
    encoded = file.read_bytes()
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            image = np.asarray(picture.convert("RGB"))
        return image, detector.detect(encoded)
    except (OSError, tf.errors.InvalidArgumentError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be decoded ({reason}); expected a JPEG, PNG, GIF or BMP image") from error


def _picture_names(files: Sequence[Path]) -> Iterator[str]:
    """A name per picture, told apart by a number where two folders hold files of one name."""
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        taken.add(name)
        yield name


def _draw(image: np.ndarray, found: runner.Found, names: dict[int, str], min_score: float) -> Image.Image:
    objects = visualization.Objects(
        found.boxes,
        found.classes - 1,
        found.scores,
        masks=found.masks,
        keypoints=found.keypoints,
        keypoint_scores=found.keypoint_scores,
    )
    style = visualization.Style(min_score=min_score, max_boxes=len(found.scores))
    return Image.fromarray(visualization.draw_objects(visualization.fit(image), objects, names, style))
