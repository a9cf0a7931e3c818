"""Imports run one way: model_main, cli -> experiment -> config -> parts -> boxes, names -> fields, errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import od_finetune

PACKAGE = Path(od_finetune.__file__).parent
# What a folder or module of the package may import of the rest of the package. Listed once, from the bottom up.
BASE = {"fields", "errors", "files", "randomness"}
SHARED = BASE | {"boxes", "names", "object_keys", "text_table", "zoo"}
PARTS = ["training", "models", "data", "checkpoints", "metrics", "export", "visualization"]
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "fields": {"names"},
    "files": {"errors"},
    "randomness": set(),
    "boxes": BASE,
    "names": {"errors"},
    "object_keys": set(),
    "text_table": set(),
    "zoo": BASE,
    **{part: SHARED for part in PARTS},
    "config": SHARED | set(PARTS) | {"protos"},
    "experiment": SHARED | set(PARTS) | {"config", "protos"},
    "planning": SHARED | set(PARTS) | {"config", "experiment"},
    "cli": SHARED | set(PARTS) | {"config", "experiment", "planning"},
}


def unit(path: Path) -> str:
    """The folder or module, right below the package, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> Iterator[tuple[str, int]]:
    """(unit, line) of every import of the package in a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "od_finetune":
                # `from od_finetune import __version__` is of the package itself.
                known = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
                yield parts[1] if known else "__init__", node.lineno


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if unit(path) != "protos"]


def test_the_package_was_found():
    assert len(sources()) > 30


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = unit(path)
    assert own in ALLOWED, f"say in ALLOWED what {own} may import"
    allowed = ALLOWED[own] | {own, "__init__"}
    wrong = [f"line {line}: {other}" for other, line in imported_units(path) if other not in allowed]
    assert wrong == []


def test_only_the_config_package_imports_protos():
    """Type annotations of the flow may name a message; building from one happens in config only."""
    users = {unit(path) for path in sources() for other, _ in imported_units(path) if other == "protos"}
    assert users <= {"config", "experiment"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_keras_is_tf_keras(path):
    """tf.keras and keras are Keras 3 in this stack."""
    tree = ast.parse(path.read_text())
    wrong = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "keras" and getattr(node.value, "id", "") == "tf")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "keras" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "keras")
    ]
    assert wrong == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_go_through_the_modules_own_logger(path):
    """model_main.py shows what the logger `od_finetune` and those below it say, and nothing of the root logger."""
    text = path.read_text()
    said_to_root = re.findall(r"\blogging\.(?:debug|info|warning|error|exception|critical|log)\(", text)
    assert said_to_root == [], "write logger = logging.getLogger(__name__) and use that"
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = [getattr(node, "module", None) or alias.name for node in imports for alias in node.names]
    uses_absl = any(module.split(".")[0] == "absl" for module in modules)
    assert not uses_absl or unit(path) == "cli", "absl is for command lines"
