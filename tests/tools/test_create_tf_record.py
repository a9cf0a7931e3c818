"""The converter of PASCAL VOC and COCO, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from od_finetune.config.label_map import load_label_map
from od_finetune.data.decoder import Decoder
from od_finetune.data.object_extras import PNG_MASKS, ObjectExtras
from od_finetune.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import coco_annotations  # noqa: E402

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


@pytest.mark.slow
def test_bad_box_names_the_file_and_leaves_nothing(voc: Path) -> None:
    (voc / "1.xml").write_text(ANNOTATION.format(name="1.jpg", kind="cat", ymin=15))
    result = _run(voc)
    assert result.returncode == 1
    assert "1.xml: object 0: box" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (voc / "out" / "set.record").exists()


def _polygon(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three images, 40x20; a person with polygon and keypoints, a crowd and a dog with run-length code, and nothing."""
    for number in range(3):
        Image.new("RGB", (40, 20), (number * 50, 0, 0)).save(tmp_path / f"{number}.jpg")
    person = {"image_id": 5, "category_id": 1, "iscrowd": 0}
    counts = [20 * 10, 20 * 5, 20 * 25]  # columns 10 to 14
    code = {"size": [20, 40], "counts": counts}
    content = {
        "images": [{"id": number + 5, "file_name": f"{number}.jpg"} for number in range(3)],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose", "hand"]}, {"id": 3, "name": "dog"}],
        "annotations": [
            person | {"id": 1, "bbox": [4, 5, 16, 5], "area": 80, "segmentation": _polygon(4, 5, 20, 10),
                      "keypoints": [10, 5, 2, 0, 0, 0]},
            person | {"id": 2, "bbox": [10, 0, 5, 20], "area": 100, "segmentation": code, "iscrowd": 1},
            person | {"id": 3, "bbox": [10, 0, 0, 20], "area": 0, "segmentation": code},
            {"id": 4, "image_id": 6, "category_id": 3, "bbox": [10, 0, 5, 20], "area": 100, "segmentation": code},
        ],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path


def _run_coco(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(TOOL), f"--images_dir={folder}", f"--output_path={folder}/out/set.record", *flags]
    env = {"PYTHONPATH": str(TOOL.parents[1]), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_coco_with_masks_and_keypoints(coco: Path) -> None:
    result = _run_coco(coco, f"--coco_json={coco}/coco.json", "--masks", "--keypoints")
    assert result.returncode == 0, result.stderr
    assert "3 dog: 1 boxes" in result.stdout and "1 person: 2 boxes" in result.stdout
    labels = load_label_map(str(coco / "out" / "label_map.pbtxt")).check()
    assert labels.labels == ((1, "person", "person", ((0, "nose"), (1, "hand"))), (3, "dog", "dog", ()))
    extras = ObjectExtras(PNG_MASKS, 2, labels.keypoint_ids())
    decoder = Decoder(3, labels.ids(), labels.path, extras)
    first, second, third = (
        decoder(record, tf.constant("set:0")).sample
        for record in tf.data.TFRecordDataset(str(coco / "out" / "set.record"))
    )
    np.testing.assert_allclose(first.boxes, [[0.25, 0.1, 0.5, 0.5], [0, 0.25, 1, 0.375]])
    assert first.objects["is_crowd"].numpy().tolist() == [False, True]
    expected = np.zeros((2, 20, 40), np.uint8)
    expected[0, 5:10, 4:20] = expected[1, :, 10:15] = 1
    np.testing.assert_array_equal(first.objects["masks"], expected)
    np.testing.assert_allclose(first.objects["keypoints"][0], [[0.25, 0.25], [np.nan] * 2])
    assert first.objects["keypoint_visibilities"].numpy().tolist() == [[True, False], [False, False]]
    assert second.objects["classes"].numpy().tolist() == [3]
    np.testing.assert_array_equal(second.objects["masks"][0], expected[1])
    assert third.objects["masks"].shape == (0, 20, 40)


@pytest.mark.slow
def test_coco_that_is_not_as_the_flags_say(coco: Path) -> None:
    content = json.loads((coco / "coco.json").read_text())
    content["annotations"][0]["keypoints"] = [1, 2]
    del content["annotations"][3]["segmentation"]
    (coco / "bad.json").write_text(json.dumps(content))
    data = coco_annotations.load(str(coco / "bad.json"))
    ids = {"person": 1, "dog": 3}
    wrong = ((0, False, "has 2 numbers of keypoints, expected 6"), (1, True, "has no segmentation"))
    for image, masks, message in wrong:
        with pytest.raises(UserError, match=rf"bad.json: annotation \d of {image}.jpg: {message}"):
            list(coco_annotations.boxes_of(data.images[image], data, (40, 20), ids, masks, True))
    with pytest.raises(UserError, match=r"annotation 2 of 0.jpg: segmentation is of 40x20 pixels, the image of 40x30"):
        coco_annotations.mask_png(data.images[0].annotations[1], (40, 30), "annotation 2 of 0.jpg")
    content["annotations"][0]["category_id"] = 2
    (coco / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotation 1 is of image 5 and category 2, expected ids of"):
        coco_annotations.load(str(coco / "bad.json"))
    result = _run_coco(coco, "--masks", f"--annotations_dir={coco}")
    assert result.returncode == 1 and "--masks goes with --coco_json" in result.stderr


def test_coco_keypoints_of_another_file(coco: Path) -> None:
    content = json.loads((coco / "coco.json").read_text())
    points = {"images": [], "categories": content["categories"][:1], "annotations": content["annotations"][:1]}
    (coco / "points.json").write_text(json.dumps(points))
    del content["annotations"][0]["keypoints"], content["categories"][0]["keypoints"]
    (coco / "instances.json").write_text(json.dumps(content))
    data = coco_annotations.load(str(coco / "instances.json"), str(coco / "points.json"))
    assert data.keypoints == {"nose": 0, "hand": 1}
    box, _ = coco_annotations.boxes_of(data.images[0], data, (40, 20), {"person": 1}, False, True)
    assert box.keypoints == ((0.25, 0.25, 2), (0, 0, 0)) and box.mask is None
