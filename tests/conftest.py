"""What all tests share. Set before anything imports TensorFlow: its C++ log reads the level once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared/` beside the checkout, with the reference data; tests that need it skip without it.

    They fail instead where the environment has OD_FINETUNE_REQUIRE_SHARED.
    """
    if not (SHARED / "reference").is_dir():
        missing = f"no reference data: {SHARED / 'reference'} does not exist"
        if os.environ.get("OD_FINETUNE_REQUIRE_SHARED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return SHARED
