"""What tests measured of the published configs, kept for `tools/make_models_table.py` where the environment names a
file for it: OD_FINETUNE_MODEL_RESULTS."""

from __future__ import annotations

import json
import os
from typing import Any

FILE = "OD_FINETUNE_MODEL_RESULTS"


def note(config: str, **measured: Any) -> None:
    """Appends a line on a published config, named as its golden is: `tf1_ssd_mobilenet_v1_coco`."""
    if path := os.environ.get(FILE):
        line = json.dumps({"config": config, **measured}) + "\n"
        with open(path, "a", encoding="utf-8") as file:  # short lines: several processes append whole ones
            file.write(line)
