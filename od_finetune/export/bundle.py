"""A complete export: graphs, checkpoint, config and label map in one directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.export import checkpoint_tf1, frozen_graph, saved_model
from od_finetune.export.signatures import trace
from od_finetune.fields import Detector

CHECKPOINT_DIRECTORY = "checkpoint"
PIPELINE_FILE = "pipeline.config"
LABEL_MAP_FILE = "label_map.pbtxt"
FORMATS = ("frozen_graph", "saved_model")

_OWN_ENTRIES = {
    frozen_graph.FILE_NAME,
    saved_model.DIRECTORY_NAME,
    CHECKPOINT_DIRECTORY,  # also the name of the state file beside a TF1 checkpoint
    *checkpoint_tf1.FILES,
    PIPELINE_FILE,
    LABEL_MAP_FILE,
}


class Report(NamedTuple):
    """What an export wrote."""

    directory: Path
    files: dict[str, int]  # entry of the directory -> bytes, a folder counted with all it holds
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]

    def text(self) -> str:
        """The report as lines to print."""
        lines = [f"Exported to {self.directory}:"]
        lines += [f"  {name:<30}{size / 1e6:9.2f} MB" for name, size in self.files.items()]
        for title, specs in (("Inputs", self.inputs), ("Outputs", self.outputs)):
            lines.append(f"{title}:")
            lines += [f"  {name + ':0':<36}{spec.dtype.name:<9}{_shape(spec.shape)}" for name, spec in specs.items()]
        return "\n".join(lines)


def check_directory(directory: str | Path, overwrite: bool = False) -> None:
    """Refuses a directory that an export may not write to; call it before the work that leads up to the export.

    Raises:
      UserError: `directory` is a file, or holds something and `overwrite` is false, or holds what no export wrote.
    """
    path = Path(directory)
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"output directory {path} is a file; name a new directory")
    entries = sorted(entry.name for entry in path.iterdir())
    if entries and not overwrite:
        raise UserError(f"output directory {path} is not empty (it holds {', '.join(entries[:5])}); name a new "
                        "directory, or pass --overwrite to replace the export in it")
    foreign = [name for name in entries if name not in _OWN_ENTRIES]
    if foreign:
        raise UserError(f"output directory {path} holds {', '.join(foreign[:5])}, which no export wrote; overwriting "
                        "replaces the whole directory, so name another one")


@contextlib.contextmanager
def replacing(directory: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A new directory to fill, which takes the place of `directory` when the block ends without an error.

    Raises:
      UserError: as `check_directory`.
    """
    check_directory(directory, overwrite)
    target = Path(directory).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, since a rename is atomic within one file system only.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export(
    detector: Detector,
    directory: str | Path,
    input_type: str,
    input_shape: tuple[int | None, ...] | None = None,
    *,
    pipeline_config: str | None = None,
    label_map: str | None = None,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
) -> Report:
    """Writes everything for a detector that has its weights.

    Args:
      detector: with the weights to export.
      directory: to write; it must be new or empty, or hold an earlier export if `overwrite`.
      input_type: a key of `signatures.INPUT_TYPES`.
      input_shape: the placeholder's shape, None where any size goes.
      pipeline_config: text of the config to write beside the graphs.
      label_map: text of the label map to write beside the graphs.
      formats: which of `FORMATS` to write.
      overwrite: whether to replace an earlier export.

    Raises:
      UserError: for an unknown `input_type` or format, an `input_shape` that does not fit, or as `check_directory`.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise UserError(f"export format {', '.join(sorted(unknown))} is unknown; choose from {', '.join(FORMATS)}")
    with replacing(directory, overwrite) as folder:
        function = trace(detector, input_type, input_shape)
        if "frozen_graph" in formats:
            frozen_graph.write(function, folder)
        if "saved_model" in formats:
            saved_model.export(detector, folder, input_type, input_shape)
        _write_checkpoint(detector, folder / CHECKPOINT_DIRECTORY)
        for name, text in ((PIPELINE_FILE, pipeline_config), (LABEL_MAP_FILE, label_map)):
            if text is not None:
                (folder / name).write_text(text, encoding="utf-8")
        files = {entry.name: _size(entry) for entry in sorted(folder.iterdir())}
    captured = len(function.captured_inputs)  # the variables, last
    placeholders = function.graph.inputs[: len(function.graph.inputs) - captured]
    outputs = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in function.structured_outputs.items()}
    inputs = {each.op.name: tf.TensorSpec(each.shape, each.dtype) for each in placeholders}
    return Report(Path(directory), files, inputs, outputs)


def _write_checkpoint(detector: Detector, directory: Path) -> None:
    """`directory/ckpt-0` with keys `model/<canonical name>`, as training writes them, and its state file."""
    tf.train.Checkpoint(model=dict(detector.named_variables())).write(str(directory / "ckpt-0"))
    # Written by hand so that the path in it is relative and outlives the move to the final directory.
    (directory / "checkpoint").write_text(
        'model_checkpoint_path: "ckpt-0"\nall_model_checkpoint_paths: "ckpt-0"\n', encoding="utf-8")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(os.path.getsize(file) for file in path.rglob("*") if file.is_file())


def _shape(shape: tf.TensorShape) -> str:
    return str(shape.as_list()).replace("None", "?") if shape.rank is not None else "any"
