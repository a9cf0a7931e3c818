"""The names in the tables of the other config modules, without importing those.

The tables hold functions and classes that need TensorFlow, which takes seconds to load; `od-finetune lint` wants only
the names. So the table is read from the module's source: a dict literal with literal keys, assigned at the top level.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from od_finetune.errors import UserError


@functools.cache
def table_keys(module: str, table: str) -> tuple[str, ...]:
    """The string keys of the dict literal `table` in `od_finetune/config/<module>.py`.

    Raises:
      UserError: the module has no such literal, so that nobody checks against an empty table.
    """
    path = Path(__file__).with_name(f"{module}.py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if table in names and isinstance(getattr(node, "value", None), ast.Dict):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            if len(keys) == len(node.value.keys):
                return tuple(keys)
    raise UserError(f"{path}: no top-level dict literal {table} with literal keys")


def augmentation_steps() -> tuple[str, ...]:
    """Names of the data_augmentation_options that exist."""
    return table_keys("augmentation", "TABLE")


def extractor_types() -> tuple[str, ...]:
    """Names a feature_extractor may have as its type."""
    return table_keys("extractors", "TABLE")


def metrics_sets() -> tuple[str, ...]:
    """Names eval_config.metrics_set may hold."""
    return table_keys("evaluation", "TABLE")
