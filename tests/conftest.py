"""What all tests share. Set before anything imports TensorFlow: its C++ log reads the level once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared/` beside the checkout, with the reference data; tests that need it skip without it."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference data: {SHARED / 'reference'} does not exist")
    return SHARED
