"""docs/models.md from results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_models_table.py"


def load():
    spec = importlib.util.spec_from_file_location("make_models_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_per_config_with_the_largest_error_and_what_failed():
    notes = [
        {"config": "tf2_b", "type": "kind_b", "parameters": 2_500_000},
        {"config": "tf1_a", "type": "kind_a", "parameters": 1_000_000, "restored": 3, "variables": 4},
        {"config": "tf1_a", "tensor": "pred/x", "error": 1e-4, "relative": True},
        {"config": "tf1_a", "tensor": "pred/y", "error": 3e-4, "relative": True},
        {"config": "tf1_a", "tensor": "anchors", "error": 0.5, "relative": False},
        {"config": "tf1_a", "failed": "test_trains", "why": "the loss rose"},
    ]
    module = load()
    page = module.document(module.summarise(map(json.dumps, notes)))
    rows = [line for line in page.splitlines() if line.startswith("| tf")]
    assert rows == [
        "| tf1_a | kind_a | 1.0 M | 0.0003 | – | 3 of 4 | – | – | – | – |",
        "| tf2_b | kind_b | 2.5 M | – | – | – | – | – | – | – |",
    ]
    assert "1 of 2 configs pass" in page and "- `tf1_a`, test_trains: the loss rose" in page
