"""The `od-finetune` command. Every subcommand is a module beside this one with
`add_arguments(parser)` and `run(options) -> exit code`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

import od_finetune
from od_finetune.cli.common import CLOSED_PIPE, INTERRUPTED, log_to_stderr
from od_finetune.errors import UserError

# Name -> one line of help. A subcommand's module is imported only when it is called: some take seconds to load.
COMMANDS = {
    "lint": "check a pipeline.config",
    "variables": "list the variables of a pipeline.config or of a checkpoint",
    "plan": "show what a run would restore and freeze, and what freezing saves",
    "export": "write a frozen graph and a SavedModel from a checkpoint",
    "detect": "run an exported detector on image files",
    "models": "list the detectors that a pipeline.config may name",
    "zoo": "list and download published checkpoints",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 fine, 1 lint found errors, 2 the call or input is at
    fault, 3 less would be restored than the config demands, 130 interrupted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before a subcommand loads TensorFlow: its chatter hides ours
    arguments = list(sys.argv[1:] if argv is None else argv)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    options = build_parser([called] if called in COMMANDS else []).parse_args(arguments)
    try:
        with log_to_stderr():
            code = _module(options.command).run(options)
            sys.stdout.flush()
            return code
    except UserError as error:
        print(f"od-finetune {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as with `| head`
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def build_parser(commands: Iterable[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of the command line; the modules of `commands` are imported for their flags."""
    parser = argparse.ArgumentParser(prog="od-finetune", description=od_finetune.__doc__)
    parser.add_argument("--version", action="version", version=f"od-finetune {od_finetune.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name in commands:
            _module(name).add_arguments(subparser)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"od_finetune.cli.{command.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
