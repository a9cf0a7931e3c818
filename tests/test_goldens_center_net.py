"""CenterNets against recordings of the OD API. All at full size, so all slow."""

from __future__ import annotations

import json
from typing import Any

import goldens
import numpy as np
import published
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.center_extractors import TABLE
from od_finetune.config.detector import build_detector
from od_finetune.export import checkpoint_tf2

GOLDENS = (
    "tf2_centernet_hourglass104_1024x1024_coco17_tpu-32",
    "tf2_centernet_hourglass104_512x512_coco17_tpu-8",
    "tf2_centernet_hourglass104_512x512_kpts_coco17_tpu-32",
    "tf2_centernet_resnet50_v1_fpn_512x512_kpts_coco17_tpu-8",
    "tf2_centernet_resnet50_v2_512x512_kpts_coco17_tpu-8",
)
# One of each kind of extractor.
KINDS = tuple(GOLDENS[index] for index in (2, 3, 4))

pytestmark = [pytest.mark.slow, pytest.mark.by_turns]


def test_every_golden_of_these_extractors_is_listed(shared):
    summaries = (shared / "reference" / "goldens").glob("*/summary.json")
    expected = {path.parent.name for path in summaries if json.loads(path.read_text())["extractor"] in TABLE}
    assert set(GOLDENS) == expected


@pytest.mark.parametrize("folder", GOLDENS)
def test_golden(shared, folder):
    reference, golden = shared / "reference", shared / "reference" / "goldens" / folder
    detector = build_detector(published.load(golden / "pipeline.config").model)
    goldens.assert_same_variables(detector, golden)
    goldens.assign_golden_weights(detector, reference, folder)

    @tf.function(autograph=False)
    def predict(images: tf.Tensor) -> dict[str, Any]:
        return detector.predict(*detector.preprocess(images))

    predictions = predict(tf.constant(np.load(reference / "golden_image.npy")[np.newaxis]))
    recorded, summary = np.load(golden / "outputs.npz"), json.loads((golden / "summary.json").read_text())
    compared = set()
    for name, maps in predictions.items():
        for index, output in enumerate(maps if isinstance(maps, list) else []):
            compared.add(f"pred/{name}/{index}")
            goldens.assert_close(recorded, f"pred/{name}/{index}", output, 2e-3, relative=True)
    goldens.assert_close(recorded, "preprocessed_inputs", predictions["preprocessed_inputs"], 1e-5, relative=False)
    assert compared == {key for key in summary["keys"] if key.startswith("pred/")} - {"pred/preprocessed_inputs"}
    if summary["losses"]:  # none were recorded where keypoints are learnt
        # The OD API was given boxes relative to the whole, padded input.
        groundtruth = goldens.groundtruth(detector.num_classes)
        scale = np.array(predictions["preprocessed_inputs"].shape[1:3]) / predictions["true_shapes"][0, :2]
        groundtruth = groundtruth._replace(boxes=groundtruth.boxes * np.tile(scale, 2).astype(np.float32))
        goldens.assert_same_losses(golden, detector.losses(predictions, groundtruth))
    count = detector.postprocess(predictions, tf.constant([[1, 1, 3]])).num_detections
    assert 0 < count[0] <= 100


@pytest.mark.parametrize("folder", KINDS)
def test_checkpoints_have_the_recorded_objects_and_restore_by_them(shared, folder, tmp_path):
    golden = shared / "reference" / "goldens" / folder
    detector = build_detector(published.load(golden / "pipeline.config").model)
    values = goldens.save_golden(shared / "reference", folder, tmp_path / "theirs" / "ckpt-0")
    for version, kind, left_out in (("V1", "full", set()), ("V2", "detection", {"head"})):
        request = RestoreRequest(str(tmp_path / "theirs"), kind, version)
        plan = RestorePlan.compute(Target.of(detector), [(open_source(tmp_path / "theirs"), request)])
        assert {row.status for row in plan.rows if row.part not in left_out} == {Status.RESTORED}
        assert {row.part for row in plan.rows if row.status is Status.LEFT_OUT} == left_out
    rows = {row.name: row.source for row in plan.rows if row.part != "head"}
    tf2_names = detector.tf2_names()
    assert rows == {name: tf2_names[name] for name in rows} and set(rows.values()) <= values.keys()

    checkpoint_tf2.write(detector, tmp_path)
    written = tf.train.load_checkpoint(str(tmp_path / "checkpoint" / "ckpt-0"))
    ours = TrackableObjectGraph.FromString(written.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    theirs = tf.train.load_checkpoint(str(tmp_path / "theirs" / "ckpt-0")).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    theirs = TrackableObjectGraph.FromString(theirs)
    assert set(paths(ours)) == set(paths(theirs))
    assert paths(ours) == paths(theirs)


def paths(graph: TrackableObjectGraph) -> dict[str, tuple[str, str]]:
    """Key and full name of every variable, by each way that leads to it."""
    found, queue = {}, [("", 0)]
    while queue:
        path, number = queue.pop()
        for attribute in graph.nodes[number].attributes:
            found[path] = (attribute.checkpoint_key, attribute.full_name)
        queue += [(f"{path}/{child.local_name}", child.node_id) for child in graph.nodes[number].children]
    return found
