"""What class_transfer and keep_classes are worth on the quickstart's classes.

    python tools/measure_class_transfer.py --study=transfer --work_dir=/tmp/classes
    python tools/measure_class_transfer.py --study=keep --work_dir=/tmp/classes

`transfer`: the quickstart, whose checkpoint knows two of its four classes, with a fresh class head and with the rows of
these two carried over: AP at step 0 and on the way. `keep`: records in which only the two new classes are labelled, in
pictures that show the old ones too; AP of old and new classes by what is done to keep the old ones.

Prints a table and writes `<study>.json`. AP is that at an IoU of 0.5, on all four classes of the quickstart's
evaluation pictures. Runs that are complete in the work_dir are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import make_quickstart
import numpy as np
from quickstart_scenes import Scene

from od_finetune import experiment, files, text_table

ROOT = make_quickstart.CONFIG.parents[1]
SOURCE_MAP = make_quickstart.DATA_DIR / "source" / "label_map.pbtxt"
OLD, NEW = ("star", "ring"), ("mug", "leaf")
AP = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/{}"

TRANSFER = f'train_config.class_transfer={{source_label_map: "{SOURCE_MAP}"}}'
FREEZE_ALL = "train_config.freeze_variables[0]=feature_extractor"


def _keep(text: str) -> str:
    return f"train_config.keep_classes={{{text}}}"


# what is done: overrides of the quickstart's config
STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "transfer": {
        "fresh head": (),
        "class_transfer": (TRANSFER,),
        "class_transfer, leaf from house + fish": (
            TRANSFER[:-1] + " new_class {name: 'leaf' init_from: 'house' init_from: 'fish'}}",
        ),
    },
    "keep": {
        "plain": (TRANSFER,),
        "rows frozen": (TRANSFER, _keep("")),
        "rows frozen, labelled: false": (TRANSFER, _keep("labelled: false")),
        "rows frozen, distilled": (TRANSFER, _keep("distillation_weight: 1")),
        "rows frozen, distilled, labelled: false": (TRANSFER, _keep("distillation_weight: 1 labelled: false")),
        "rows and feature extractor frozen": (TRANSFER, FREEZE_ALL, _keep("")),
        "distilled, labelled: false": (TRANSFER, _keep("freeze_rows: false distillation_weight: 1 labelled: false")),
    },
}


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


def measure(study: str, way: str, work_dir: Path, steps: int, every: int) -> dict[int, dict[str, float]]:
    """Runs one way; AP by class at each evaluated step."""
    model_dir = work_dir / study / way.replace(" ", "_").replace(",", "").replace(":", "")
    overrides = [
        "eval_config.eval_at_start=true",
        "eval_config.include_metrics_per_category=true",
        f"train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate.total_steps={steps}",
        f"train_config.checkpoint_every_n_steps={every}",
        *STUDIES[study][way],
    ]
    if study == "keep":
        record = work_dir / "new_only" / "train.record"
        if not record.exists():
            write_new_only(record)
        overrides.append(f"train_input_reader.tf_record_input_reader.input_path[0]={record}")
    options = experiment.Options(
        str(make_quickstart.CONFIG), str(model_dir), tuple(overrides), num_train_steps=steps, record_summaries=False
    )
    results = model_dir / "eval" / "results.jsonl"
    if not results.exists() or json.loads(results.read_text().splitlines()[-1])["step"] != steps:
        if code := experiment.train_and_evaluate(options):
            raise SystemExit(code)
    found = {}
    for line in results.read_text().splitlines():
        values = json.loads(line)
        found[values["step"]] = {name: values[AP.format(name)] for name in OLD + NEW}
    return found


def table(measured: dict[str, dict[int, dict[str, float]]]) -> str:
    """Mean AP of the old and of the new classes by way and step, as Markdown."""
    steps = sorted({step for values in measured.values() for step in values})
    header = ["", *(f"{kind}, step {step}" for kind in ("old", "new") for step in steps)]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for way, values in measured.items():
        cells = [f"{np.mean([values[step][name] for name in names]):.2f}" for names in (OLD, NEW) for step in steps]
        rows.append([way, *cells])
    padded = text_table.lines([[f"| {cell}" for cell in row] + ["|"] for row in rows])
    return "\n".join(padded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=tuple(STUDIES), required=True)
    parser.add_argument("--work_dir", type=Path, required=True, help="for runs, records and results")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--way", action="append", help="only this way of the study; may be repeated")
    flags = parser.parse_args()
    os.chdir(ROOT)  # the config's paths are relative
    work_dir = flags.work_dir.resolve()
    measured = {
        way: measure(flags.study, way, work_dir, flags.steps, flags.every)
        for way in flags.way or STUDIES[flags.study]
    }
    files.write_json(work_dir / f"{flags.study}.json", measured)
    print(table(measured))


if __name__ == "__main__":
    main()
