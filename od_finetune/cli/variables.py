"""`od-finetune variables CONFIG|CHECKPOINT`: every variable, by all its names, and what becomes of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from od_finetune import names, text_table
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UserError
from od_finetune.planning import plans, variables

_NOTHING = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("path", metavar="CONFIG|CHECKPOINT", help="a pipeline.config, or a checkpoint of any format")
    parser.add_argument("--grep", metavar="RE", help="show what this pattern matches, as one of freeze_variables would")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
                        help="of a config: change a field first, e.g. train_config.freeze_variables=head; repeatable")
    parser.add_argument("--no-restore", dest="restore", action="store_false",
                        help="of a config: without looking at its fine_tune_checkpoint")
    parser.add_argument("--long", action="store_true", help="more columns: the other spellings, what decided")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--allow_unhonoured", action="store_true",
                        help="of a config: go on without fields that are not honoured")


def run(options: argparse.Namespace) -> int:
    """Prints; 1 where --grep matches nothing."""
    is_config = variables.looks_like_config(options.path)
    rows, said = _of_config(options) if is_config else _of_checkpoint(options)
    chosen = variables.matching(rows, options.grep) if options.grep is not None else rows
    if options.grep is not None and not chosen:
        near = names.nearest(options.grep, variables.spellings(rows)) or [row.name for row in rows[:3]]
        said = f"{options.path}: nothing matches {options.grep!r}. The nearest names are: {', '.join(near)}"
        print(said, file=sys.stderr)
        return _NOTHING
    if options.json:
        print(json.dumps({"path": options.path, **said, "variables": [row._asdict() for row in chosen]}, indent=1))
        return 0
    table = (_config_table if is_config else _checkpoint_table)(chosen, options.long)
    print("\n".join(text_table.lines(table, numbers={2})))
    print(_total(chosen, len(rows)))
    for line in filter(None, said.values()):
        print(line)
    return 0


def _of_config(options: argparse.Namespace) -> tuple[list[variables.Variable], dict[str, Any]]:
    prepared = plans.prepare(
        options.path, options.overrides, restore=options.restore, allow_unhonoured=options.allow_unhonoured
    )
    restore = prepared.restore
    parts = restore.plan.sources if restore.plan else ()
    said = "\n".join(f"Source [{i}]: {part.source.describe()}" for i, part in enumerate(parts))
    problem = restore.plan.problem if restore.plan else f"No sources: {restore.missing}"
    return variables.of_detector(prepared), {"source": said, "problem": problem}


def _of_checkpoint(options: argparse.Namespace) -> tuple[list[variables.Entry], dict[str, Any]]:
    for flag, given in (
        ("--set", options.overrides),
        ("--no-restore", not options.restore),
        ("--allow_unhonoured", options.allow_unhonoured),
    ):
        if given:
            raise UserError(f"{flag} is for a config, but {options.path} is none; leave it out")
    try:
        source = open_source(options.path)
    except UserError as error:
        if os.path.isfile(options.path):
            raise UserError(f"{error}\nNor is it a pipeline.config: it has no model {{ ... }}.") from None
        raise
    return variables.of_source(source), {"source": source.describe(), "notes": "\n".join(source.notes)}


def _config_table(rows: Sequence[variables.Variable], long: bool) -> list[list[str]]:
    header = ["name", "shape", "parameters", "stage", "state", "rate x", "restored", "source"]
    table = [header + (["part", "decided by", "other spellings"] if long else [])]
    for row in rows:
        source = "same name" if row.source == row.name else row.source
        rate = f"{row.multiplier:g}" if row.multiplier else "-"
        line = [row.name, _shape(row), f"{row.parameters:,}", row.stage, row.state, rate, row.restored, source]
        table.append(line + ([row.part, row.decided_by, "  ".join(row.aliases)] if long else []))
    return table


def _checkpoint_table(rows: Sequence[variables.Entry], long: bool) -> list[list[str]]:
    table = [["name", "shape", "parameters", "kind", "dtype"] + (["other spellings"] if long else [])]
    for row in rows:
        line = [row.name, _shape(row), f"{row.parameters:,}", "weight" if row.weight else "other", row.dtype]
        table.append(line + (["  ".join(row.aliases)] if long else []))
    return table


def _shape(row: Any) -> str:
    return str(list(row.shape)).replace(" ", "")


def _total(rows: Sequence[Any], every: int) -> str:
    of = f" of {every}" if len(rows) != every else ""
    parameters = sum(row.parameters for row in rows)
    if rows and isinstance(rows[0], variables.Entry):
        weights = sum(row.weight for row in rows)
        held = sum(row.parameters for row in rows if row.weight)
        return f"{len(rows)}{of} entries: {weights} weights with {held:,} parameters, {len(rows) - weights} others"
    trained = [row for row in rows if row.multiplier]
    count = sum(row.parameters for row in trained)
    return f"{len(rows)}{of} variables with {parameters:,} parameters; {len(trained)} with {count:,} train"
