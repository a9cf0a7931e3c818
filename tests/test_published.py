"""Every published config: its detector builds, its checkpoints restore, it trains, freezes and exports.

What is measured here goes into docs/models.md (`tools/make_models_table.py`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import goldens
import numpy as np
import published
import pytest
import results
import tensorflow as tf
import tf_keras

from od_finetune import fields
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.detector import build_detector
from od_finetune.export import runner, saved_model, signatures
from od_finetune.protos import model_pb2
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import Trainer
from od_finetune.zoo.published import PARAMETERS

CONFIGS = published.configs()
# One config for each feature extractor: the first of its name that adds nothing to the usual detector.
BY_TYPE = {}
for _name in sorted(CONFIGS, key=lambda name: ("context_rcnn" in name or "deepmac" in name, name)):
    BY_TYPE.setdefault(published.extractor_type(published.load(CONFIGS[_name]).model), _name)
# And one of each kind of head that none of these has: what is frozen while it trains. Of the context's, what proposes
# regions: these would be others at every step, with objects in them or not, and the loss with them.
HEADS = {
    "tf1_rfcn_resnet101_coco": (),
    "tf1_context_rcnn_resnet101_snapshot_serengeti": ("FirstStage", "Conv/"),
    "tf2_center_net_deepmac_512x512_voc_only_tpu-32": (),
}
# The same network in both halves of the OD API; its backbone's layers agree.
COUNTERPARTS = (
    ("ssd_mobilenet_v2_coco", "ssd_mobilenet_v2_320x320_coco17_tpu-8"),
    (
        "ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync",
        "ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8",
    ),
    ("ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync", "ssd_resnet50_v1_fpn_640x640_coco17_tpu-8"),
    ("faster_rcnn_resnet50_coco", "faster_rcnn_resnet50_v1_640x640_coco17_tpu-8"),
    ("faster_rcnn_resnet101_coco", "faster_rcnn_resnet101_v1_1024x1024_coco17_tpu-8"),
    ("faster_rcnn_inception_resnet_v2_atrous_coco", "mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8"),
)
EXTRACTORS = {"ssd": "FeatureExtractor", "faster_rcnn": "FirstStageFeatureExtractor", "center_net": "FeatureExtractor"}
STEPS = 20

pytestmark = [pytest.mark.slow, pytest.mark.by_turns]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Graphs of whole detectors are cycles of objects that Python counts as few and small; they are gigabytes."""
    yield
    gc.collect()


def test_reference_configs_are_there(shared):
    assert len(CONFIGS) >= 87 and len(BY_TYPE) >= 40


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_restores(name: str, shared, tmp_path: Path):
    config = published.load(CONFIGS[name])
    detector = build_detector(config.model)
    begun = time.perf_counter()
    variables = detector.named_variables()
    parameters = sum(int(np.prod(variable.shape)) for variable in variables.values())
    results.note(name, seconds=time.perf_counter() - begun, type=published.extractor_type(config.model),
                 parameters=parameters, classes=detector.num_classes)
    assert parameters > 0
    assert {count for archive, count in PARAMETERS.items() if published.is_config_of(name, archive)} <= {parameters}
    if not (shared / "reference" / "goldens" / name).is_dir():
        return
    goldens.save_golden(shared / "reference", name, tmp_path / "checkpoint" / "ckpt-0")
    request = RestoreRequest(str(tmp_path), "full", version="V2" if name.startswith("tf2") else "V1")
    plan = RestorePlan.compute(Target.of(detector), [(open_source(tmp_path), request)])
    restored = plan.with_status(Status.RESTORED)
    results.note(name, restored=len(restored), variables=len(plan.rows), unused=len(plan.sources[0].unused))
    assert len(restored) == len(plan.rows) and plan.sources[0].unused == ()


@pytest.mark.parametrize("tf1, tf2", [(f"tf1_{one}", f"tf2_{other}") for one, other in COUNTERPARTS])
def test_backbones_restore_across_the_halves(tf1: str, tf2: str, shared, tmp_path: Path):
    for here, there in ((tf1, tf2), (tf2, tf1)):
        detector = build_detector(published.load(CONFIGS[here]).model)
        folder = tmp_path / there
        goldens.save_golden(shared / "reference", there, folder / "ckpt-0")
        request = RestoreRequest(str(folder), "classification", version="V2")
        plan = RestorePlan.compute(Target.of(detector), [(open_source(folder), request)])
        backbone = [row for row in plan.rows if row.part == "backbone"]
        restored = [row for row in backbone if row.status is Status.RESTORED]
        results.note(here, across=len(restored), backbone=len(backbone))
        assert len(restored) == len(backbone) > 0


def trainer_of(detector: fields.Detector, model: model_pb2.DetectionModel, freeze: tuple[str, ...] = ()) -> Trainer:
    dataset = tf.data.Dataset.from_tensors(published.batch(model, detector.num_classes)).repeat()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=freeze))
    return Trainer(detector, plan, optimizers.Adam(schedules.constant(3e-4)), dataset)


def mean_loss(trainer: Trainer, steps: int) -> float:
    trainer.reset_means()
    return float(trainer.train(tf.constant(steps))[fields.TOTAL_LOSS])


@pytest.mark.parametrize("name", [*BY_TYPE.values(), *HEADS] if CONFIGS else [])
def test_trains_freezes_and_exports(name: str, tmp_path: Path):
    model = published.shrunk(published.load(CONFIGS[name]).model)
    tf_keras.utils.set_random_seed(0)
    detector = build_detector(model)
    detector.build()
    trainer = trainer_of(detector, model, HEADS.get(name, ()))
    first = mean_loss(trainer, 3)
    mean_loss(trainer, STEPS - 6)
    last = mean_loss(trainer, 3)
    results.note(name, first_loss=first, last_loss=last)
    assert np.isfinite(first) and last < first

    frozen = frozen_backward_operations(trainer_of(detector, model, (EXTRACTORS[model.WhichOneof("model")],)))
    results.note(name, frozen_backward=len(frozen))
    assert not frozen

    results.note(name, export_error=export_error(detector, published.small_side(model), tmp_path))


def frozen_backward_operations(trainer: Trainer) -> list[str]:
    """Names of the operations of a traced step that form a gradient within a frozen layer. They are named after the
    forward operations, and these after the canonical scope of their layer."""
    traced = trainer.create_train_loop_fn().get_concrete_function(iter(trainer.train_dataset), tf.constant(1))
    scopes = {name.rpartition("/")[0] for name in trainer.plan.frozen}
    trained = {name.rpartition("/")[0] for name in trainer.trained}
    scopes -= trained
    assert scopes and trained
    found, elsewhere = [], 0
    for function in traced.graph.as_graph_def().library.function:
        taken = {name.split(":")[0] for node in function.node_def for name in node.input}
        taken |= {name.split(":")[0] for name in function.ret.values()}
        backward = [n.name for n in function.node_def if n.name in taken and n.name.startswith("gradient_tape/")]
        found += [n for n in backward if any(f"/{scope}/" in n for scope in scopes)]
        elsewhere += sum(any(f"/{scope}/" in n for scope in trained) for n in backward)
    assert elsewhere  # they are named so indeed
    return found


def export_error(detector: fields.Detector, side: int, folder: Path) -> float:
    """Largest difference between the scores of a SavedModel and of the detector itself, on noise."""
    images = np.random.default_rng(2).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    inputs, shapes = detector.preprocess(tf.constant(images))
    own = detector.postprocess(detector.predict(inputs, shapes), shapes)
    outputs = runner.load(saved_model.export(detector, folder, signatures.IMAGE_TENSOR))(images)
    # Raw ones too: a detector of random weights may find nothing.
    np.testing.assert_allclose(outputs["raw_detection_scores"], own.raw_scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs["detection_scores"], own.scores, rtol=0, atol=1e-4)
    assert np.std(own.raw_scores) > 0
    count = int(own.num_detections[0])
    np.testing.assert_allclose(outputs["detection_boxes"][0, :count], own.boxes[0, :count], rtol=0, atol=1e-3)
    return float(np.abs(outputs["raw_detection_scores"] - own.raw_scores).max())
