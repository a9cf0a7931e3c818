"""Tiny checkpoints as other programs write them."""

from __future__ import annotations

import functools

import goldens
import pytest


@pytest.fixture
def save_tensors():
    """`save_tensors(prefix, {key: array})` writes a checkpoint with just these keys, as TF1's Saver does."""
    return goldens.save_tensors


@pytest.fixture(scope="session")
def save_golden(shared):
    """`save_golden(golden name, prefix)`: see `goldens.save_golden`."""
    return functools.partial(goldens.save_golden, shared / "reference")
