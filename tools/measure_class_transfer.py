"""What class_transfer and keep_classes are worth, in numbers.

    python tools/measure_class_transfer.py --study=transfer --work_dir=runs/classes
    python tools/measure_class_transfer.py --study=keep --work_dir=runs/classes
    python tools/measure_class_transfer.py --study=raccoon --work_dir=runs/classes --steps=50 --every=25

- `transfer`: the quickstart, whose checkpoint knows two of its four classes, with a fresh class head and with the rows
  of these two carried over.
- `keep`: the quickstart's training pictures, in which only the two new classes are labelled though the old ones are
  there too, by what is done to keep the old ones.
- `raccoon`: from the COCO checkpoint to one class that COCO does not have, with a fresh row and with one from the mean
  of related classes. Needs what configs/raccoon_ssdlite_mobilenet_v2.config needs, in --data_dir.

Prints a table and writes `<study>.json`: AP at an IoU of 0.5 by step and class, on the config's evaluation pictures.
Runs that are complete in the work_dir are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import make_quickstart
import numpy as np
from quickstart_scenes import Scene

from od_finetune import experiment, files, text_table

ROOT = make_quickstart.CONFIG.parents[1]
NEW = ("mug", "leaf")
QUICKSTART_CLASSES = {"old": ("star", "ring"), "new": NEW}
AP = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/{}"
SCHEDULE = "train_config.optimizer.{}.learning_rate.cosine_decay_learning_rate.total_steps={}"


class Study(NamedTuple):
    """Several ways of the same run."""

    config: Path
    optimizer: str
    classes: dict[str, tuple[str, ...]]  # columns of the table
    ways: dict[str, tuple[str, ...]]  # overrides of the config
    common: tuple[str, ...] = ()


def _transfer(source_label_map: Path | str, text: str = "") -> str:
    return f'train_config.class_transfer={{source_label_map: "{source_label_map}" {text}}}'


def _keep(text: str = "") -> str:
    return f"train_config.keep_classes={{{text}}}"


def transfer_study() -> Study:
    source = make_quickstart.DATA_DIR / "source" / "label_map.pbtxt"
    leaf = "new_class {name: 'leaf' init_from: 'house' init_from: 'fish'}"
    ways = {
        "fresh head": (),
        "class_transfer": (_transfer(source),),
        "class_transfer, leaf from house + fish": (_transfer(source, leaf),),
    }
    return Study(make_quickstart.CONFIG, "adam_optimizer", QUICKSTART_CLASSES, ways)


def keep_study(work_dir: Path) -> Study:
    record = work_dir / "new_only" / "train.record"
    if not record.exists():
        write_new_only(record)
    ways = {
        "plain": (),
        "rows frozen": (_keep(),),
        "rows frozen, labelled: false": (_keep("labelled: false"),),
        "rows frozen, distilled": (_keep("distillation_weight: 1"),),
        "rows frozen, distilled, labelled: false": (_keep("distillation_weight: 1 labelled: false"),),
        "rows and feature extractor frozen": ("train_config.freeze_variables[0]=feature_extractor", _keep()),
        "distilled, labelled: false": (_keep("freeze_rows: false distillation_weight: 1 labelled: false"),),
    }
    source = make_quickstart.DATA_DIR / "source" / "label_map.pbtxt"
    common = (_transfer(source), f"train_input_reader.tf_record_input_reader.input_path[0]={record}")
    return Study(make_quickstart.CONFIG, "adam_optimizer", QUICKSTART_CLASSES, ways, common)


def raccoon_study(data_dir: Path) -> Study:
    coco = data_dir / "ssdlite_mobilenet_v2_coco"
    (label_map,) = coco.glob("*label_map.pbtxt")
    parents = "new_class {name: 'raccoon' init_from: 'cat' init_from: 'dog' init_from: 'bear'}"
    readers = [
        f"{reader}.{field}={data_dir / 'raccoon' / file}"
        for reader, record in (("train_input_reader", "train.record"), ("eval_input_reader[0]", "test.record"))
        for field, file in (("label_map_path", "label_map.pbtxt"), ("tf_record_input_reader.input_path[0]", record))
    ]
    common = (f"train_config.fine_tune_checkpoint={coco / 'model.ckpt'}", *readers)
    frozen = "train_config.freeze_variables=feature_extractor"
    ways = {"fresh row": (frozen,), "row from cat + dog + bear": (frozen, _transfer(label_map, parents))}
    config = ROOT / "configs" / "raccoon_ssdlite_mobilenet_v2.config"
    return Study(config, "momentum_optimizer", {"raccoon": ("raccoon",)}, ways, common)


def only_labelled(series: Iterator[Scene], classes: Sequence[int]) -> Iterator[Scene]:
    """The scenes that show one of these classes (indices), without the labels of the others."""
    for scene in series:
        shown = np.isin(scene.labels, list(classes))
        if shown.any():
            yield Scene(scene.image, scene.boxes[shown], scene.labels[shown])


def write_new_only(path: Path, count: int = 200) -> int:
    """The training scenes of the quickstart with labels of the new classes alone; returns the number of pictures."""
    classes = make_quickstart.TARGET_CLASSES
    series = make_quickstart.scenes(make_quickstart.TARGET_SEED, 0, count, classes)
    labelled = only_labelled(series, [classes.index(name) for name in NEW])
    return make_quickstart.write_records(path, labelled, classes)


def measure(study: Study, way: str, model_dir: Path, steps: int, every: int) -> dict[int, dict[str, float]]:
    """Runs one way; AP by class at each evaluated step."""
    overrides = (
        "eval_config.eval_at_start=true",
        "eval_config.metrics_set=pascal_voc_detection_metrics",
        SCHEDULE.format(study.optimizer, steps),
        f"train_config.checkpoint_every_n_steps={every}",
        *study.common,
        *study.ways[way],
    )
    options = experiment.Options(
        str(study.config), str(model_dir), overrides, num_train_steps=steps, record_summaries=False
    )
    if last_step(model_dir) != steps:
        if code := experiment.train_and_evaluate(options):
            raise SystemExit(code)
    names = [name for group in study.classes.values() for name in group]
    return {step: {name: values[AP.format(name)] for name in names} for step, values in results(model_dir).items()}


def results(model_dir: Path) -> dict[int, dict[str, float]]:
    """All results of a run by step."""
    path = model_dir / "eval" / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {values.pop("step"): values for values in map(json.loads, lines)}


def last_step(model_dir: Path) -> int:
    """The last evaluated step, -1 without any."""
    return max(results(model_dir), default=-1)


def table(measured: dict[str, dict[int, dict[str, float]]], classes: dict[str, tuple[str, ...]]) -> str:
    """Mean AP of each group of classes by way and step, as Markdown."""
    steps = sorted({step for values in measured.values() for step in values})
    header = ["", *(f"{group}, step {step}" for group in classes for step in steps)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for way, values in measured.items():
        cells = [f"{np.mean([values[step][n] for n in names]):.2f}" for names in classes.values() for step in steps]
        rows.append([way, *cells])
    return "\n".join(text_table.lines([[f"| {cell}" for cell in row] + ["|"] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("transfer", "keep", "raccoon"), required=True)
    parser.add_argument("--work_dir", type=Path, required=True, help="for runs, records and results")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data", help="of the study `raccoon`")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=75, help="steps between evaluations")
    parser.add_argument("--way", action="append", help="only this way of the study; may be repeated")
    flags = parser.parse_args()
    work_dir, data_dir = flags.work_dir.resolve(), flags.data_dir.resolve()
    os.chdir(ROOT)  # the configs' paths are relative
    if flags.study == "transfer":
        study = transfer_study()
    else:
        study = keep_study(work_dir) if flags.study == "keep" else raccoon_study(data_dir)
    measured = {}
    for way in flags.way or study.ways:
        model_dir = work_dir / flags.study / "".join(c for c in way.replace(" ", "_") if c not in ",:+")
        measured[way] = measure(study, way, model_dir, flags.steps, flags.every)
    files.write_json(work_dir / f"{flags.study}.json", measured)
    print(table(measured, study.classes))


if __name__ == "__main__":
    main()
