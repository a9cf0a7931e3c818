"""`od-finetune lint CONFIG`: says what is wrong with a config; exit code 1 if a run would refuse it."""

from __future__ import annotations

import argparse
import json

from od_finetune.config import lint, pipeline
from od_finetune.config.finding import ERROR, Finding
from od_finetune.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("config", help="path of a pipeline.config")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
                        help="change a field first, e.g. train_config.batch_size=4; repeatable")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    parser.add_argument("--quick", action="store_true",
                        help="without building the parts of a run, which takes seconds and finds more")  # fmt: skip
    parser.add_argument("--allow_unhonoured", action="store_true",
                        help="fields that are not honoured and can be left out are warnings, not errors")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Prints the findings; 1 if one of them is an error."""
    findings = _findings(options)
    if options.json:
        print(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        print(lint.report(findings, options.config))
    return int(any(finding.severity == ERROR for finding in findings))


def _findings(options: argparse.Namespace) -> list[Finding]:
    try:
        config = pipeline.load(options.config, options.overrides)
    except UserError as error:
        return [Finding(ERROR, "", str(error), line=getattr(error, "line", None))]
    deep = not options.quick
    return lint.lint(config, options.config, allow_unhonoured=options.allow_unhonoured, deep=deep)
