"""What tests measured of the published configs, kept for `tools/make_models_table.py` where the environment names a
file for it: OD_FINETUNE_MODEL_RESULTS."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

FILE = "OD_FINETUNE_MODEL_RESULTS"


def note(config: str, **measured: Any) -> None:
    """Appends a line on a published config, named as its golden is: `tf1_ssd_mobilenet_v1_coco`."""
    if path := os.environ.get(FILE):
        line = json.dumps({"config": config, **measured}) + "\n"
        with open(path, "a", encoding="utf-8") as file:  # short lines: several processes append whole ones
            file.write(line)


def note_failure(item: pytest.Item, report: pytest.TestReport) -> None:
    """Notes that a test of one config has failed, and the last line of why."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    config = next((value for value in parameters.values() if str(value).startswith(("tf1_", "tf2_"))), None)
    if config and report.failed:
        why = (report.longreprtext.strip().splitlines() or [""])
        reason = next((line for line in why if line.startswith("E  ")), why[-1])
        note(config, failed=item.originalname, why=reason.removeprefix("E").strip()[:200])
