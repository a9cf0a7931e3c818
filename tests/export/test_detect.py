"""`od-finetune detect` on exported graphs."""

from __future__ import annotations

import json

import hotcoco
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from od_finetune.cli import main as cli
from od_finetune.export import bundle

LABELS = "item { id: 1 name: 'cat' display_name: 'Cat' } item { id: 2 name: 'dog' }"


@pytest.fixture(scope="module")
def exported(tiny_detector, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "out"
    bundle.export(tiny_detector, directory, "image_tensor", label_map=LABELS)
    return directory


@pytest.fixture
def photographs(encoded, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, content in zip(("a.png", "b.png"), encoded, strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("model", ["", "frozen_inference_graph.pb", "saved_model"])
def test_json_lines_hold_the_detections(model, exported, photographs, expected, capsys):
    arguments = ["detect", "--model", str(exported / model), "--min_score", "0.0", str(photographs)]
    assert cli.main(arguments) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["file"].endswith("a.png") and (second["height"], second["width"]) == (30, 40)
    count = int(expected["num_detections"][1])
    assert len(second["detections"]) == count > 0
    for i, found in enumerate(second["detections"]):
        box = [found["box"][side] for side in ("ymin", "xmin", "ymax", "xmax")]
        np.testing.assert_allclose(box, expected["detection_boxes"][1][i] * [30, 40, 30, 40], atol=0.01)
        assert found["score"] == pytest.approx(float(expected["detection_scores"][1][i]), abs=1e-4)
        assert found["name"] == {1: "Cat", 2: "dog"}[found["id"]]


def test_pictures_are_written_and_thresholds_hold(exported, photographs, expected, tmp_path):
    scores = expected["detection_scores"][0]
    limit = float(scores[0] + scores[1]) / 2
    assert scores[0] > limit > scores[1]
    assert cli.main(["detect", "--model", str(exported), "--min_score", str(limit), "--max_boxes", "2",
                     "--output_directory", str(tmp_path / "out"), str(photographs / "a.png"), str(photographs)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jpg", "a_2.jpg", "b.jpg", "detections.jsonl"]
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert len(json.loads(lines[0])["detections"]) == 1
    plain = Image.open(photographs / "a.png").resize(Image.open(tmp_path / "out" / "a.jpg").size)
    assert np.abs(np.asarray(plain, int) - np.asarray(Image.open(tmp_path / "out" / "a.jpg"), int)).max() > 100


def test_an_unreadable_image_is_reported_and_passed_over(exported, photographs, capsys):
    (photographs / "aa.jpg").write_bytes(b"no image")
    assert cli.main(["detect", "--model", str(exported), str(photographs)]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "aa.jpg: cannot be decoded" in captured.err


@pytest.mark.parametrize(("argument", "message"), [("missing.jpg", "no such file or folder"), (".", "no image in")])
def test_bad_paths(argument, message, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["detect", "--model", str(exported), argument]) == 2
    assert message in capsys.readouterr().err




@pytest.fixture(scope="module")
def with_masks(tiny_detector, tmp_path_factory):
    """The same detector, each of whose detections has its left half as mask and two corners as keypoints."""

    class Masked(type(tiny_detector)):
        def postprocess(self, predictions, true_shapes):
            found = super().postprocess(predictions, true_shapes)
            shape = tf.concat([tf.shape(found.scores), [1, 1]], 0)
            masks = tf.tile(tf.constant([[[[1.0, 1.0, 0.0, 0.0]]]]), shape) * tf.ones([1, 1, 4, 1])
            keypoints = tf.reshape(found.boxes, [-1, found.boxes.shape[1], 2, 2])
            return found._replace(masks=masks, keypoints=keypoints, keypoint_scores=keypoints[..., 0])

    detector = Masked()
    detector.build()
    directory = tmp_path_factory.mktemp("masked") / "out"
    bundle.export(detector, directory, "image_tensor", formats=("frozen_graph",))
    return directory


def test_masks_and_keypoints(with_masks, photographs, tmp_path):
    out = tmp_path / "out"
    arguments = ["--min_score", "0.0", "--output_directory", str(out), str(photographs / "b.png")]
    assert cli.main(["detect", "--model", str(with_masks), *arguments]) == 0
    (line,) = (out / "detections.jsonl").read_text().splitlines()
    for found in json.loads(line)["detections"]:
        box = [found["box"][side] for side in ("ymin", "xmin", "ymax", "xmax")]
        points = [[point["y"], point["x"]] for point in found["keypoints"]]
        np.testing.assert_allclose(np.ravel(points), box, atol=0.02)
        assert found["keypoints"][1]["score"] == pytest.approx(box[2] / 30, abs=1e-3)
        code = {"size": found["mask"]["size"], "counts": found["mask"]["counts"].encode()}
        rows, columns = np.nonzero(hotcoco.mask.decode(code))
        assert found["mask"]["size"] == [30, 40]
        np.testing.assert_allclose([rows.min(), rows.max()], [box[0], box[2]], atol=2)
        np.testing.assert_allclose([columns.min(), columns.max()], [box[1], (box[1] + box[3]) / 2], atol=2)
    assert (out / "b.jpg").exists()
