"""A checkpoint as the OD API's TF1 half writes it: name based. The canonical names are its names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from od_finetune.fields import Detector

PREFIX = "model.ckpt"
STATE_FILE = "checkpoint"
FILES = (f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001", STATE_FILE)

_STEP = "global_step"


def write(detector: Detector, directory: Path, step: int = 0) -> None:
    """Writes `model.ckpt` and its state file into `directory`, as the zoo's archives have them."""
    save_tensors(directory / PREFIX, {**detector.named_variables(), _STEP: np.int64(step)})


def save_tensors(prefix: Path, tensors: Mapping[str, object]) -> None:
    """Writes a checkpoint of just these tensors by key, and a state file beside it."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.convert_to_tensor(value) for value in tensors.values()],
    )
    # By hand, since the path in it has to be relative: the directory is moved when it is complete.
    (prefix.parent / STATE_FILE).write_text(
        f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n', encoding="utf-8"
    )
