"""Each row of the mobile families: trains on one batch, freezes, restores from a classification net's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from goldens import read_model, recorded_variables

from od_finetune import fields
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.models.detectors.ssd import SSD
from od_finetune.training import optimizers, probe, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer

CONFIGS = {
    "ssd_mobilenet_v3_large": "ssdlite_mobilenet_v3_large_320x320_coco",
    "ssd_mobilenet_v3_small": "ssdlite_mobilenet_v3_large_320x320_coco",
    "ssd_mobilenet_v3_large_minimalistic": "ssdlite_mobilenet_v3_large_320x320_coco",
    "ssd_mobilenet_v3_small_minimalistic": "ssdlite_mobilenet_v3_large_320x320_coco",
    "ssd_mobilenet_edgetpu": "ssdlite_mobilenet_edgetpu_320x320_coco",
    "ssd_mobiledet_cpu": "ssdlite_mobiledet_cpu_320x320_coco_sync_4x4",
    "ssd_mobiledet_dsp": "ssdlite_mobiledet_cpu_320x320_coco_sync_4x4",
    "ssd_mobiledet_edgetpu": "ssdlite_mobiledet_edgetpu_320x320_coco_sync_4x4",
    "ssd_mobiledet_gpu": "ssdlite_mobiledet_gpu_320x320_coco_sync_4x4",
    "embedded_ssd_mobilenet_v1": "embedded_ssd_mobilenet_v1_coco",
    "ssd_mobilenet_v1_ppn": "ssd_mobilenet_v1_ppn_shared_box_predictor_300x300_coco14_sync",
    "ssd_mobilenet_v2_mnasfpn": "ssd_mobilenet_v2_mnasfpn_shared_box_predictor_320x320_coco_sync",
}
SIDE, CLASSES = 128, 3


def tiny(configs: Path, kind: str) -> SSD:
    """The published config (or that of its sibling), narrow, of small images and few classes."""
    config = pipeline.load(configs / "tf1" / f"{CONFIGS[kind]}.config")
    ssd = config.model.ssd
    ssd.num_classes = CLASSES
    ssd.feature_extractor.type = kind
    ssd.feature_extractor.depth_multiplier = 0.25
    ssd.feature_extractor.min_depth = 8
    resizer = ssd.image_resizer.fixed_shape_resizer
    resizer.height = resizer.width = SIDE
    tf_keras.utils.set_random_seed(0)
    detector = build_detector(config.model)
    detector.build()
    return detector


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_row_trains_and_freezes(shared, kind):
    detector = tiny(shared / "reference" / "configs", kind)
    frozen = FreezePlan.compute(detector, FreezeRequest(freeze=("FeatureExtractor",)))
    assert {detector.part(name) for name in frozen.trainable} == {"head"}

    batch = probe.random_batch(2, (SIDE, SIDE), CLASSES, max_boxes=3)
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    optimizer = optimizers.Adam(schedules.constant(0.003))
    trainer = Trainer(detector, FreezePlan.compute(detector, FreezeRequest()), optimizer, dataset)
    totals = []
    for _ in range(10):  # a loss that is not finite is an error
        reported = trainer.train(tf.constant(4))
        totals.append(float(reported[fields.TOTAL_LOSS]))
        trainer.reset_means()
    assert totals[-1] < 0.8 * totals[0]
    for name, variable in detector.named_variables().items():
        assert np.all(np.isfinite(variable)), name


@pytest.mark.slow
def test_a_published_classification_net_restores_by_its_names(shared, tmp_path):
    """Slim's names, without `FeatureExtractor/`; the classifier's last stage is twice as wide as the detector's."""
    golden = shared / "reference" / "goldens" / f"tf1_{CONFIGS['ssd_mobilenet_v3_large']}"
    scope = "FeatureExtractor/MobilenetV3/"
    shapes = {name.removeprefix("FeatureExtractor/"): shape
              for name, _, shape in recorded_variables(golden)
              if name.startswith((f"{scope}Conv", f"{scope}expanded_conv"))}  # fmt: skip
    wide = re.compile(r"^MobilenetV3/(expanded_conv_(12/project|13|14)|Conv_1)/")
    values = {
        name: np.full([2 * size if size in (80, 120, 480) and wide.search(name) else size for size in shape], 0.5, "f")
        for name, shape in shapes.items()
    }
    values["MobilenetV3/Logits/Conv2d_1c_1x1/weights"] = np.zeros([1, 1, 1280, 1001], np.float32)
    path = str(tmp_path / "classifier.ckpt")
    tf.raw_ops.SaveV2(prefix=path, tensor_names=list(values), shape_and_slices=[""] * len(values),
                      tensors=list(values.values()))  # fmt: skip

    detector = build_detector(read_model(golden / "pipeline.config"))
    request = RestoreRequest(path, type="classification")
    plan = RestorePlan.compute(Target.of(detector), [(open_source(path), request)])
    restored = {row.name for row in plan.with_status(Status.RESTORED)}
    backbone = {name for name in detector.named_variables() if detector.part(name) == "backbone"}
    assert backbone - restored == {f"FeatureExtractor/{name}" for name in shapes if wide.search(name)}
    assert {row.name for row in plan.with_status(Status.SHAPE_DIFFERS)} == backbone - restored
    plan.apply(detector.named_variables())
    gate = detector.named_variables()[f"{scope}expanded_conv_3/squeeze_excite/Conv/biases"]
    np.testing.assert_array_equal(gate, np.full([24], 0.5, np.float32))
