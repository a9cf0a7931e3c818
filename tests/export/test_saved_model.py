"""The SavedModel in a process that knows nothing of this package gives the detector's own detections."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.export import saved_model

TYPES = {"image_tensor": "images", "tf_example": "examples", "encoded_image_string_tensor": "encoded"}

# In each folder named: loads the model with TF2's loader and feeds it, called and as a signature; then with TF1's.
FRESH_PROCESS = """
import sys
import numpy as np
import tensorflow as tf
for folder in sys.argv[1:]:
    feed = np.load(folder + "/feed.npz", allow_pickle=True)["feed"]
    model = tf.saved_model.load(folder + "/saved_model")
    ways = {"call": model(tf.constant(feed)), "signature": model.signatures["serving_default"](input_tensor=feed)}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], folder + "/saved_model")
        signature = meta.signature_def["serving_default"]
        fetches = {key: info.name for key, info in signature.outputs.items()}
        ways["tf1"] = session.run(fetches, {signature.inputs["input_tensor"].name: feed})
    np.savez(folder + "/out.npz", **{way + "/" + key: v for way, found in ways.items() for key, v in found.items()})
assert not [name for name in sys.modules if name.split(".")[0] in ("od_finetune", "tf_keras", "official")]
"""


@pytest.mark.slow
def test_fresh_process_gives_the_detections(tiny_detector, feeds, expected, tmp_path):
    for input_type, feed in TYPES.items():
        saved_model.export(tiny_detector, tmp_path / input_type, input_type)
        feed = feeds[feed]
        feed = feed if isinstance(feed, np.ndarray) else np.array(feed, dtype=object)
        np.savez(tmp_path / input_type / "feed.npz", feed=feed)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", FRESH_PROCESS, *TYPES]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=180)
    for input_type in TYPES:
        actual = np.load(tmp_path / input_type / "out.npz")
        for way in ("call", "signature", "tf1"):
            for name, value in expected.items():
                assert actual[f"{way}/{name}"].dtype == np.float32
                np.testing.assert_allclose(actual[f"{way}/{name}"], value, atol=1e-4, err_msg=f"{input_type} {name}")


def test_variables_are_laid_out_as_a_checkpoint(tiny_detector, tmp_path):
    path = saved_model.export(tiny_detector, tmp_path, "image_tensor")
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    key = "model/BoxPredictor.SConv.Sweights/.ATTRIBUTES/VARIABLE_VALUE"
    weights = tiny_detector.named_variables()["BoxPredictor/Conv/weights"]
    np.testing.assert_array_equal(reader.get_tensor(key), weights.numpy())


def test_no_source_paths(tiny_detector, tmp_path):
    path = saved_model.export(tiny_detector, tmp_path, "image_tensor")
    assert os.path.dirname(saved_model.__file__).encode() not in (path / "saved_model.pb").read_bytes()
