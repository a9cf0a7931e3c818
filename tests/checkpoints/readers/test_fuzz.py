"""Damaged files of every format: a clear error or sound values, never anything else.

The everyday tests damage a few files of each format in this process; the slow ones damage many, in a process of their
own, whose end, time and memory are looked at.
"""

import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UserError

FORMATS = ["index", "data", "object_graph", "old", "graph", "saved_model", "h5", "keras", "tar", "tar.gz", "zip"]
PROCESSES = ("h5", "keras")  # read by a process of their own, which takes its time to start


def write_all(folder):
    """{format: (what to open, the file to damage)}."""
    rng = np.random.RandomState(0)
    values = {f"scope/layer_{i}/weights": rng.rand(3, 5).astype(np.float32) for i in range(40)}
    written = {}
    for name in ("index", "data"):
        prefix = folder / name / "m.ckpt"
        tf.raw_ops.SaveV2(
            prefix=str(prefix), tensor_names=list(values), shape_and_slices=[""] * 40, tensors=list(values.values())
        )
        written[name] = prefix, prefix.parent / ("m.ckpt.index" if name == "index" else "m.ckpt.data-00000-of-00001")
    module = tf.Module()
    module.layers = [tf.Variable(value, name=name) for name, value in values.items()]
    tf.train.Checkpoint(model=module).write(str(folder / "object_graph" / "ckpt"))
    written["object_graph"] = folder / "object_graph" / "ckpt", folder / "object_graph" / "ckpt.index"
    old = folder / "old.ckpt"
    tf.raw_ops.Save(filename=str(old), tensor_names=list(values), data=list(values.values()))
    saved = tf.compat.v1.saved_model.Builder(str(folder / "saved_model"))
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [1, 8, 8, 3], "x")
        for name, value in values.items():
            tf.matmul(images, tf.constant(value, name=name))
        tf.compat.v1.nn.fused_batch_norm(images, *(np.ones(3, np.float32),) * 4, is_training=False, name="norm")
        saved.add_meta_graph_and_variables(session, ["serve"])
        saved.save()
    (folder / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    model = tf_keras.Sequential([tf_keras.layers.Conv2D(2, 3, input_shape=(4, 4, 3)), tf_keras.layers.Dense(3)])
    model.save_weights(str(folder / "w.h5"))
    model.save(str(folder / "w.keras"))
    paths = [folder / "index" / "m.ckpt.index", folder / "index" / "m.ckpt.data-00000-of-00001"]
    for ending, mode in {"tar": "w:", "tar.gz": "w:gz"}.items():
        with tarfile.open(folder / f"z.{ending}", mode) as archive:
            for path in paths:
                archive.add(path, f"ssd/{path.name}")
    with zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"ssd/{path.name}")
    alone = {"old": old, "graph": folder / "g.pb", "h5": folder / "w.h5", "keras": folder / "w.keras"}
    alone |= {ending: folder / f"z.{ending}" for ending in ("tar", "tar.gz", "zip")}
    written |= {name: (path, path) for name, path in alone.items()}
    written["saved_model"] = folder / "saved_model", folder / "saved_model" / "saved_model.pb"
    return written


def damage(content, rng):
    """Bits flipped, bytes overwritten, cut short, a piece left out or doubled, the end kept or not."""
    content, at = bytearray(content), rng.randrange(len(content))
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 2, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content[at : at + 8] = bytes(rng.choice([0, 127, 128, 255, rng.randrange(256)]) for _ in range(8))
    elif kind == 2:
        content = content[:at]
    elif kind == 3:
        content = content[:at] + content[-rng.randrange(1, 64) :]
    elif kind == 4:
        del content[at : at + rng.randrange(1, 40)]
    else:
        content[at:at] = content[at : at + rng.randrange(1, 200)]
    return bytes(content)


def read_everything(path):
    """Whether it could be read; a UserError is fine."""
    try:
        source = open_source(path)
        for name in (*source.names(), *source.other_entries()):
            source.read(name)
        source.aliases(), source.describe()
    except UserError as error:
        assert len(str(error)) > 20
        return False
    return True


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    written = write_all(tmp_path_factory.mktemp("sound"))
    return {name: (path, damaged, damaged.read_bytes()) for name, (path, damaged) in written.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_sound_files_are_read(files, name):
    assert read_everything(files[name][0])


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(files, name):
    path, damaged, sound = files[name]

    @settings(
        max_examples=3 if name in PROCESSES else 40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def check(rng):
        damaged.write_bytes(damage(sound, rng))
        started = time.monotonic()
        read_everything(path)
        assert time.monotonic() - started < 60

    try:
        check()
    finally:
        damaged.write_bytes(sound)


_MANY = """
import importlib.util, pathlib, random, resource, sys, time
spec = importlib.util.spec_from_file_location("test_fuzz", sys.argv[1])
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)
name, count = sys.argv[3], int(sys.argv[4])
path, damaged = fuzz.write_all(pathlib.Path(sys.argv[2]))[name]
sound, rng = damaged.read_bytes(), random.Random(1)
fuzz.read_everything(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = slowest = 0
for _ in range(count):
    damaged.write_bytes(fuzz.damage(sound, rng))
    started = time.monotonic()
    read += fuzz.read_everything(path)
    slowest = max(slowest, time.monotonic() - started)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(f"{name}: {count} damaged files, {read} read, {count - read} refused, {grown >> 10} MiB, {slowest:.1f} s at most")
assert grown < 64 << 10 and slowest < 60, (grown, slowest)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files_in_a_process_of_its_own(tmp_path, name):
    command = [sys.executable, "-c", _MANY, __file__, str(tmp_path), name, "40" if name in PROCESSES else "1000"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
