"""Makes what the quickstart is embedded with; run again, it writes the same bytes.

    python tools/make_quickstart.py --part=data        # configs/quickstart_data: target task, TFRecords and label maps
    python tools/make_quickstart.py --part=checkpoint  # configs/quickstart_data/source: trained on the source task

JPEG bytes are those of one Pillow version; the drawings are the same with any. The checkpoint takes fifteen minutes
on two cores; several threads add up in varying order, so another run gives other weights of the same quality.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from quickstart_scenes import Scene, draw_scene

from od_finetune import experiment
from od_finetune.checkpoints.source import open_source
from od_finetune.data.writer import LabelledBox, ShardedWriter, make_example

TARGET_CLASSES = ("mug", "star", "leaf", "ring")
SOURCE_CLASSES = ("star", "ring", "house", "fish", "moon", "cross")
"""The source task shares star and ring with the target task."""

TARGET_SEED, SOURCE_SEED = 2, 1
SIDES = (128, 160)
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.config"
DATA_DIR = CONFIG.parent / "quickstart_data"


def scenes(seed: int, start: int, count: int, classes: Sequence[str]) -> Iterator[Scene]:
    """Scenes `start .. start + count - 1` of the endless series that `seed` stands for."""
    for index in range(start, start + count):
        rng = np.random.default_rng([seed, index])
        size = rng.integers(SIDES[0], SIDES[1] + 1, 2)
        yield draw_scene(rng, classes, (int(size[0]), int(size[1])))


def write_records(path: Path, series: Iterable[Scene], classes: Sequence[str], quality: int = 88) -> int:
    """Writes scenes as a TFRecord file of the OD API's tf.Examples with JPEG images; returns their number.

    Label ids are places in `classes`, from 1.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardedWriter(str(path)) as writer:
        for count, scene in enumerate(series, 1):
            writer.write(_example(scene, classes, f"{path.stem}_{count:04d}.jpg", quality))
    return writer.num_written


def write_label_map(path: Path, classes: Sequence[str]) -> None:
    """Writes a label map with ids from 1 in the order of `classes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    items = (f"item {{\n  id: {i}\n  name: '{name}'\n}}\n" for i, name in enumerate(classes, 1))
    path.write_text("".join(items), encoding="utf-8")


def write_task(directory: Path, classes: Sequence[str], seed: int, train: int, val: int) -> None:
    """Writes `train.record`, `val.record` and `label_map.pbtxt`; no scene is in both records."""
    write_label_map(directory / "label_map.pbtxt", classes)
    write_records(directory / "train.record", scenes(seed, 0, train, classes), classes)
    write_records(directory / "val.record", scenes(seed, train, val, classes), classes)


def write_target_data(directory: Path = DATA_DIR, train: int = 200, val: int = 60) -> None:
    """The task the quickstart fine-tunes for."""
    write_task(directory, TARGET_CLASSES, TARGET_SEED, train, val)


def write_source_label_map(directory: Path = DATA_DIR) -> None:
    """The classes of the quickstart's checkpoint, to carry their rows over by name."""
    write_label_map(directory / "source" / "label_map.pbtxt", SOURCE_CLASSES)


def write_source_data(directory: Path, train: int = 2000, val: int = 100) -> None:
    """The task the quickstart's checkpoint was trained for. Not kept in the repository."""
    write_task(directory, SOURCE_CLASSES, SOURCE_SEED, train, val)


def train_source(data: Path, model_dir: Path, steps: int = 4000) -> None:
    """Trains the quickstart's detector on the source task, from random weights, everything trainable."""
    rate = "learning_rate_base: 0.004 warmup_learning_rate: 0.0002 warmup_steps: 50"
    schedule = f"cosine_decay_learning_rate {{ {rate} total_steps: {steps} }}"
    readers = [
        f"{reader}.{field}={data / name}"
        for reader, record in (("train_input_reader", "train.record"), ("eval_input_reader[0]", "val.record"))
        for field, name in (("label_map_path", "label_map.pbtxt"), ("tf_record_input_reader.input_path[0]", record))
    ]
    options = experiment.Options(
        config_path=str(CONFIG),
        model_dir=str(model_dir),
        overrides=(
            f"model.ssd.num_classes={len(SOURCE_CLASSES)}",
            "train_config.fine_tune_checkpoint=",
            "train_config.freeze_variables=",
            "train_config.learning_rate_multiplier=",
            f"train_config.optimizer={{adam_optimizer {{ learning_rate {{ {schedule} }} }} use_moving_average: false}}",
            "train_config.checkpoint_every_n_steps=1000",
            *readers,
        ),
        num_train_steps=steps,
    )
    if code := experiment.train_and_evaluate(options):
        raise SystemExit(code)


def write_checkpoint(trained: Path, prefix: Path) -> None:
    """Writes the weights of a trained checkpoint as a TF1 checkpoint under canonical names, as a zoo's would be."""
    source = open_source(trained)
    names = sorted(source.names())
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(source.read(name)) for name in names],
    )


def make_checkpoint(directory: Path, train: int) -> None:
    """Source task, training and checkpoint, in a temporary directory until it is done."""
    with tempfile.TemporaryDirectory() as scratch:
        data, model_dir = Path(scratch, "data"), Path(scratch, "model")
        write_source_data(data, train)
        train_source(data, model_dir)
        write_checkpoint(model_dir / "best", directory / "source" / "model.ckpt")


def _example(scene: Scene, classes: Sequence[str], name: str, quality: int) -> tf.train.Example:
    encoded = io.BytesIO()
    Image.fromarray(scene.image).save(encoded, "JPEG", quality=quality, subsampling=0)
    height, width = scene.image.shape[:2]
    pairs = zip(scene.boxes.tolist(), scene.labels, strict=True)
    boxes = [LabelledBox(*box, label=int(label) + 1, text=classes[label]) for box, label in pairs]
    return make_example(encoded.getvalue(), "jpeg", height, width, name, boxes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("data", "checkpoint"), default="data")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="where data and checkpoint go")
    parser.add_argument("--source_images", type=int, default=2000, help="training images of the source task")
    flags = parser.parse_args()
    if flags.part == "data":
        write_target_data(flags.data_dir)
        write_source_label_map(flags.data_dir)
    else:
        make_checkpoint(flags.data_dir, flags.source_images)


if __name__ == "__main__":
    main()
