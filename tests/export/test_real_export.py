"""The COCO checkpoint's detections on real photographs, from both exports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.config import pipeline
from od_finetune.config.export import export_trained

PHOTOGRAPHS = ("golden_raccoon.npz", "golden_ducky.npz")
SAVED_MODEL_PROCESS = """
import sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load("out/saved_model")
for name in sys.argv[1:]:
    np.savez("found_" + name, **model(np.load(name)["image"]))
assert not [name for name in sys.modules if name.split(".")[0] in ("od_finetune", "tf_keras", "official")]
"""


@pytest.fixture(scope="module")
def exported(shared, tmp_path_factory):
    data = shared / "data" / "ssdlite_mobilenet_v2_coco"
    directory = tmp_path_factory.mktemp("coco")
    config = pipeline.load(data / "pipeline.config")
    report = export_trained(config, data / "model.ckpt", directory / "out", "image_tensor")
    assert report.files["frozen_inference_graph.pb"] < 25e6
    for name in PHOTOGRAPHS:
        golden = np.load(data / name)
        np.savez(directory / name, **golden)
    return directory


def assert_golden(outputs, golden):
    """Raw outputs of every anchor and the detections above 0.3 are the recorded ones."""
    scores = 1 / (1 + np.exp(-golden["class_logits"].astype(np.float64)))
    np.testing.assert_allclose(outputs["raw_detection_scores"], scores, atol=1e-4)
    count = len(golden["detection_scores"])
    kept = outputs["detection_scores"][0] > 0.3
    assert kept.sum() == count > 0
    np.testing.assert_allclose(outputs["detection_scores"][0][:count], golden["detection_scores"], atol=5e-5)
    np.testing.assert_allclose(outputs["detection_boxes"][0][:count], golden["detection_boxes"], atol=1e-4)
    np.testing.assert_array_equal(outputs["detection_classes"][0][:count], golden["detection_classes"])


@pytest.mark.slow
def test_frozen_graph_in_a_tf1_session(exported):
    graph_def = tf.compat.v1.GraphDef.FromString((exported / "out" / "frozen_inference_graph.pb").read_bytes())
    names = ("detection_boxes", "detection_scores", "detection_classes", "num_detections", "raw_detection_scores")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for name in PHOTOGRAPHS:
            golden = np.load(exported / name)
            values = session.run([f"{key}:0" for key in names], {"image_tensor:0": golden["image"]})
            assert_golden(dict(zip(names, values, strict=True)), golden)


@pytest.mark.slow
def test_saved_model_in_a_fresh_process(exported):
    subprocess.run([sys.executable, "-c", SAVED_MODEL_PROCESS, *PHOTOGRAPHS], check=True, cwd=exported, timeout=300)
    for name in PHOTOGRAPHS:
        assert_golden(np.load(exported / f"found_{name}"), np.load(exported / name))
