"""`od-finetune models`: the detectors that a config may name, with what was published of them."""

from __future__ import annotations

import argparse
import re

from od_finetune.errors import UserError
from od_finetune.text_table import lines
from od_finetune.zoo.published import TABLE, Published

_HEADER = ["type", "detector", "half", "input", "parameters", "published", "ms", "on", "checkpoint"]
_RIGHT = (4, 6)  # numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--grep", metavar="RE", default="", help="only types and checkpoints in which this is found")
    parser.add_argument("--sources", action="store_true",
                        help="whose classification networks restore into the backbone, instead of checkpoints")


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    from od_finetune.config.catalogue import kinds  # loads TensorFlow

    try:
        wanted = re.compile(options.grep, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"--grep {options.grep!r} is not a regular expression: {error}") from None
    published: dict[str, list[Published]] = {}
    for entry in TABLE:
        published.setdefault(entry.kind, []).append(entry)
    rows, types = [], set()
    for kind in kinds():
        start = [kind.type, kind.detector, kind.half]
        if options.sources:
            found = [[*start, ", ".join(kind.vocabularies)]]
        else:
            found = [start + _cells(entry) for entry in published.get(kind.type, [])] or [[*start, *[""] * 6]]
        kept = [row for row in found if wanted.search(kind.type) or wanted.search(row[-1])]
        rows += kept
        types |= {kind.type for _ in kept}
    header = [*_HEADER[:3], "backbone restores from"] if options.sources else _HEADER
    for line in lines([header, *rows], () if options.sources else _RIGHT):
        print(line)
    notes = " Scores are COCO mAP in percent unless said otherwise; they and the times are the zoos' own."
    print(f"{len(types)} feature_extractor types.{'' if options.sources else notes}")
    return 0


def _cells(entry: Published) -> list[str]:
    score = entry.score if entry.metric.startswith("COCO mAP") or not entry.score else f"{entry.score} {entry.metric}"
    millions = f"{entry.parameters / 1e6:.1f} M" if entry.parameters else ""
    return [entry.input, millions, score, entry.milliseconds, entry.device, f"zoo:{entry.archive}"]
