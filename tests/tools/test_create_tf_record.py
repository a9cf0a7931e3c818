"""The PASCAL VOC converter, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "create_tf_record.py"

ANNOTATION = """<annotation><filename>{name}</filename><object><name>{kind}</name><difficult>1</difficult>
<bndbox><xmin>4</xmin><ymin>{ymin}</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for number, kind in enumerate(["dog", "cat", "dog"]):
        Image.new("RGB", (40, 20), (number * 50, 0, 0)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.xml").write_text(ANNOTATION.format(name=f"{number}.jpg", kind=kind, ymin=5))
    return tmp_path


def _run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), f"--annotations_dir={folder}", f"--images_dir={folder}"]
    command += [f"--output_path={folder}/out/set.record", *flags]
    env = {"PYTHONPATH": str(TOOL.parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_converts_a_folder(voc: Path) -> None:
    result = _run(voc, "--num_shards=2")
    assert result.returncode == 0, result.stderr
    assert "2 dog: 2 boxes" in result.stdout
    out = voc / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "label_map.pbtxt",
        "set.record-00000-of-00002",
        "set.record-00001-of-00002",
    ]
    assert (
        out.joinpath("label_map.pbtxt").read_text().split()
        == "item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }".split()
    )
    record = next(iter(tf.data.TFRecordDataset(str(out / "set.record-00001-of-00002")))).numpy()
    feature = tf.train.Example.FromString(record).features.feature
    assert feature["image/encoded"].bytes_list.value[0] == (voc / "1.jpg").read_bytes()
    assert feature["image/object/class/text"].bytes_list.value[:] == [b"cat"]
    assert feature["image/object/class/label"].int64_list.value[:] == [1]
    assert feature["image/object/bbox/ymin"].float_list.value[:] == [0.25]
    assert feature["image/object/bbox/xmax"].float_list.value[:] == [0.5]
    assert feature["image/object/difficult"].int64_list.value[:] == [1]


def test_bad_box_names_the_file_and_leaves_nothing(voc: Path) -> None:
    (voc / "1.xml").write_text(ANNOTATION.format(name="1.jpg", kind="cat", ymin=15))
    result = _run(voc)
    assert result.returncode == 1
    assert "1.xml: object 0: box" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (voc / "out" / "set.record").exists()
