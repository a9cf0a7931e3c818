"""Compares the maintained COCO evaluators: seconds and results on the same synthetic detections.

    python tools/bench_coco_metrics.py --images=500,5000

Candidates: pycocotools (the reference), faster-coco-eval (C++), hotcoco (Rust). All three offer pycocotools'
interface, so one function drives them; what is timed is what an evaluation pays: arrays -> index -> matching ->
precision and recall tables. Rounds are interleaved, and the ratios are of medians of one run. Needs
`pip install pycocotools faster-coco-eval` besides the project.

One run on two busy cores, 100 detections per image, 80 classes (seconds, ratio, largest difference in the tables):

    images  pycocotools 2.0.11  faster-coco-eval 1.8.0   hotcoco 1.3.0
       500    11.05               1.14    9.7x  2e-16     0.10  114x  0
      5000   120.54              18.81    6.4x  2e-16     0.82  147x  0

hotcoco is the choice: evaluation costs nothing beside inference, the tables equal pycocotools' bit for bit, it needs
numpy only (plots and the rest are extras), takes columns of arrays instead of a dictionary per box, and one abi3 wheel
per platform (2.7 MB; Linux, macOS, Windows) serves Python 3.10 to 3.13 and later. It is young: tests/metrics holds it
to pycocotools, crowds, areas, ties and empty images included. pycocotools is kept up but rarely changes; should
hotcoco ever be left alone, both others take its place behind the same interface.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CANDIDATES = {
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval", "COCOeval"),
    "faster-coco-eval": ("faster_coco_eval.core.coco", "faster_coco_eval.core.faster_eval_api", "COCOeval_faster"),
    "hotcoco": ("hotcoco", "hotcoco", "COCOeval"),
}


def synthetic(images: int, classes: int, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """A ground-truth data set (COCO dictionary) and detections `[M, 7]`: image, x, y, w, h, score, category.

    Per image 0 to 14 objects of 8..300 pixels (3 % crowd); each is found with a jittered box, sometimes twice or
    with a wrong class, and false positives fill up to 100 detections.
    """
    rng = np.random.default_rng(seed)
    annotations, rows = [], []
    for image in range(1, images + 1):
        count = int(rng.integers(0, 15))
        sizes = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
        boxes = np.concatenate([rng.uniform(0, 1, (count, 2)) * (640 - sizes), sizes], axis=1)
        labels = rng.integers(1, classes + 1, count)
        for box, label in zip(boxes, labels, strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box.tolist(),
                 "area": float(box[2] * box[3] * rng.uniform(0.5, 1.0)), "iscrowd": int(rng.random() < 0.03)}
            )  # fmt: skip
        rows.append(_detections(rng, image, boxes, labels, classes))
    dataset = {
        "info": {},
        "images": [{"id": i, "width": 640, "height": 640} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
        "annotations": annotations,
    }
    return dataset, np.concatenate(rows)


def _detections(rng: np.random.Generator, image: int, boxes: np.ndarray, labels: np.ndarray, classes: int):
    found = np.repeat(np.arange(len(boxes)), rng.integers(0, 3, len(boxes)))
    hits = boxes[found] + rng.normal(0, 0.08, (len(found), 4)) * boxes[found][:, [2, 3, 2, 3]]
    hit_labels = np.where(rng.random(len(found)) < 0.1, rng.integers(1, classes + 1, len(found)), labels[found])
    missing = 100 - len(found)
    sizes = np.exp(rng.uniform(np.log(8), np.log(300), (missing, 2)))
    noise = np.concatenate([rng.uniform(0, 1, (missing, 2)) * (640 - sizes), sizes], axis=1)
    all_boxes = np.concatenate([hits, noise])
    all_boxes[:, 2:] = np.maximum(all_boxes[:, 2:], 1.0)
    all_labels = np.concatenate([hit_labels, rng.integers(1, classes + 1, missing)])
    scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(1, 6, missing)])
    return np.column_stack([np.full(100, image), all_boxes, scores, all_labels])


def evaluator(name: str) -> Callable[[dict[str, Any], np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The candidate behind one signature: (data set, detections) -> precision and recall tables."""
    coco_module, eval_module, eval_name = CANDIDATES[name]
    coco_class = importlib.import_module(coco_module).COCO
    eval_class = getattr(importlib.import_module(eval_module), eval_name)

    def evaluate(dataset: dict[str, Any], detections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with contextlib.redirect_stdout(io.StringIO()):
            groundtruth = coco_class()
            groundtruth.dataset = dataset
            groundtruth.createIndex()
            run = eval_class(groundtruth, groundtruth.loadRes(detections), "bbox")
            run.evaluate()
            run.accumulate()
        return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])

    return evaluate


def bench(images: int, classes: int, rounds: int) -> None:
    """Times each candidate `rounds` times, in turn, and prints seconds, ratio and difference from the reference."""
    dataset, detections = synthetic(images, classes)
    evaluators = {name: evaluator(name) for name in CANDIDATES}
    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    tables = {}
    for _ in range(rounds):
        for name, evaluate in evaluators.items():
            start = time.perf_counter()
            tables[name] = evaluate(dataset, detections)
            seconds[name].append(time.perf_counter() - start)
    reference, base = tables["pycocotools"], statistics.median(seconds["pycocotools"])
    print(f"{images} images, {len(dataset['annotations'])} objects, {len(detections)} detections, {classes} classes")
    for name, table in tables.items():
        difference = max(float(np.abs(a - b).max()) for a, b in zip(table, reference, strict=True))
        precision = table[0][:, :, :, 0, -1]
        mean = precision[precision > -1].mean()
        spent = statistics.median(seconds[name])
        print(f"  {name:18s} {spent:8.2f} s  {base / spent:6.1f}x  mAP {mean:.6f}  largest difference {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="500,5000", help="comma-separated numbers of images")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    for images in flags.images.split(","):
        bench(int(images), flags.classes, flags.rounds)


if __name__ == "__main__":
    main()
