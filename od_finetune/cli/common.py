"""What the command lines share: where log lines go, and the exit code of a call that makes no sense."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags
from absl import logging as absl_logging

BAD_INPUT = 2
"""Exit code where the call or what it names is at fault."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells report it."""
CLOSED_PIPE = 141
"""Exit code where nobody reads the output any more, as shells report it."""


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Within it, od_finetune's log comes as plain lines, and of TensorFlow's and orbit's chatter the errors only."""
    logger, verbosity = logging.getLogger("od_finetune"), absl_logging.get_verbosity()
    before = logger.level, logger.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        absl_logging.set_verbosity(verbosity)


def run_script(main: Callable[[list[str]], object]) -> None:
    """`app.run` for a script with absl flags, but a wrong call exits with BAD_INPUT, as argparse does it.

    Ctrl-C outside of a training exits with INTERRUPTED and without a traceback.
    """

    def guarded(argv: list[str]) -> object:
        try:
            return main(argv)
        except app.UsageError as error:
            error.exitcode = BAD_INPUT
            raise
        except KeyboardInterrupt:  # a running training takes the signal itself, saves and returns
            print("Interrupted before there was anything to save.", file=sys.stderr)
            sys.exit(INTERRUPTED)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        print(f"{error}\nPass --helpshort or --helpfull to see help on flags.", file=sys.stderr)
        sys.exit(BAD_INPUT)
