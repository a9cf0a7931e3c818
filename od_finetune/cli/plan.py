"""`od-finetune plan CONFIG`: what would be restored and frozen, and what each depth of freezing costs."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from od_finetune import experiment, files
from od_finetune.planning import plans, probing, report
from od_finetune.planning.depth_costs import DepthCosts

logger = logging.getLogger(__name__)

COSTS, PICTURE = "costs.json", "costs.png"
_PROBED = "5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("config", help="path of a pipeline.config")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
                        help="change a field first, e.g. train_config.freeze_variables=head; repeatable")
    parser.add_argument("--probe", nargs="?", const=_PROBED, type=_count, metavar="N|all",
                        help="measure time and peak memory of a training step at so many depths, each in a process of "
                             f"its own (without a number {_PROBED}); write it behind CONFIG")
    parser.add_argument("--no-costs", dest="costs", action="store_false", help="the two plans only")
    parser.add_argument("--output_directory", metavar="DIR",
                        help=f"write {experiment.RESTORE_PLAN}, {experiment.FREEZE_PLAN}, {COSTS} and {PICTURE} there")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--allow_unhonoured", action="store_true",
                        help="go on without fields that are not honoured")


def run(options: argparse.Namespace) -> int:
    """Prints; 1 where a run would refuse what it restores."""
    prepared = plans.prepare(options.config, options.overrides, allow_unhonoured=options.allow_unhonoured)
    costs = _costs(options, prepared) if options.costs or options.probe else None
    if options.json:
        print(json.dumps(_json(prepared, costs), indent=1))
    else:
        print("\n\n".join(_text(prepared, costs)))
    if options.output_directory:
        _write(Path(options.output_directory), prepared, costs)
    return int(prepared.restore.refused)


def _count(value: str) -> int | None | str:
    if value == "all":
        return "all"
    if not value.isdecimal() or int(value) < 2:
        raise argparse.ArgumentTypeError(f"{value!r}: expected a number from 2 on, or 'all'; CONFIG comes before it")
    return int(value)


def _costs(options: argparse.Namespace, prepared: plans.Plans) -> DepthCosts:
    logger.info("Tracing a training step ...")
    costs = DepthCosts.compute(prepared)
    if options.probe:
        count = None if options.probe == "all" else options.probe
        costs = probing.measure(costs, prepared.config, count)
    return costs


def _text(prepared: plans.Plans, costs: DepthCosts | None) -> list[str]:
    restore = prepared.restore
    parts = [restore.plan.text() if restore.plan else f"Restore plan: none. {restore.missing}"]
    if restore.refused:
        parts.append(f"A run would stop here: {restore.plan.problem if restore.plan else restore.missing}")
    return [*parts, prepared.freeze.text(), *([report.text(costs)] if costs else [])]


def _json(prepared: plans.Plans, costs: DepthCosts | None) -> dict:
    return {
        "restore": prepared.restore.plan and prepared.restore.plan.to_json(),
        "restore_missing": prepared.restore.missing or None,
        "freeze": prepared.freeze.to_json(),
        "costs": costs and costs.to_json(),
    }


def _write(directory: Path, prepared: plans.Plans, costs: DepthCosts | None) -> None:
    if prepared.restore.plan:
        prepared.restore.plan.write(directory / experiment.RESTORE_PLAN)
    prepared.freeze.write(directory / experiment.FREEZE_PLAN)
    if costs:
        files.write_json(directory / COSTS, costs.to_json())
        files.write_bytes(directory / PICTURE, report.picture(costs))
    logger.info("Written to %s", directory)
