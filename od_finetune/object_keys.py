"""Keys of this project's checkpoints: `<branch>/<escaped canonical name>/.ATTRIBUTES/VARIABLE_VALUE`.

Training writes them (through `tf.train.Checkpoint`) and resumes by them, restoring and export read them. The
branches: `model` (every variable), `moving_average` (shadows of trained variables), `optimizer`, `step`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MODEL = "model"
MOVING_AVERAGE = "moving_average"
OPTIMIZER = "optimizer"
STEP = "step"

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/"  # an optimiser's slots hang below the variable they belong to

_ESCAPED = re.compile(r"\.(.)")


def escape(name: str) -> str:
    """A name as TensorFlow writes it as one segment of an object path."""
    return name.replace(".", "..").replace("/", ".S")


def unescape(path: str) -> str:
    """The reverse of `escape`; slashes stay, so a whole object path may be given."""
    return _ESCAPED.sub(lambda match: "/" if match[1] == "S" else match[1], path)


def slot_key(name: str, slot: str) -> str:
    """The key of an optimiser's slot of a canonical name."""
    return f"{MODEL}/{escape(name)}{SLOT}{OPTIMIZER}/{slot}{VALUE}"


def named(keys: Iterable[str], branch: str) -> dict[str, str]:
    """Key by canonical name of the variables that a checkpoint holds under `branch`; slots are none of them."""
    return {
        unescape(key[len(branch) + 1 : -len(VALUE)]): key
        for key in keys
        if key.startswith(f"{branch}/") and key.endswith(VALUE) and SLOT not in key
    }
