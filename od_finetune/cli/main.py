"""The `od-finetune` command. Every subcommand is a module beside this one with
`add_arguments(parser)` and `run(options) -> exit code`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import od_finetune
from od_finetune.errors import UserError

# Name -> one line of help. A subcommand's module is imported only when it is called: some take seconds to load.
COMMANDS = {
    "lint": "check a pipeline.config",
    "export": "write a frozen graph and a SavedModel from a checkpoint",
    "detect": "run an exported detector on image files",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 fine, 1 the input is at fault, 2 the call is."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before a subcommand loads TensorFlow: its chatter hides ours
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="od-finetune", description=od_finetune.__doc__)
    parser.add_argument("--version", action="version", version=f"od-finetune {od_finetune.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    modules = {}
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == called:
            modules[name] = importlib.import_module(f"od_finetune.cli.{name.replace('-', '_')}")
            modules[name].add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return modules[options.command].run(options)
    except UserError as error:
        print(f"od-finetune {options.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
