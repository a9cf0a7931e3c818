"""Checkpoints of networks that were trained with simulated quantisation."""

from __future__ import annotations

import numpy as np

from od_finetune.checkpoints.arrays import HWIO, ArraySource
from od_finetune.checkpoints.demands import restored_fraction
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Target

SCOPE = "FeatureExtractor/MobilenetV1/MobilenetV1/Conv2d_0"


def test_weights_restore_and_recorded_ranges_are_left_over():
    shapes = {f"{SCOPE}/weights": (3, 3, 3, 8), f"{SCOPE}/BatchNorm/gamma": (8,)}
    ranges = {f"{SCOPE}/{kind}_quant/{end}" for kind in ("weights", "act") for end in ("min", "max")}
    values = {name: np.ones(shape, np.float32) for name, shape in {**shapes, **dict.fromkeys(ranges, ())}.items()}
    source = ArraySource(
        "model.ckpt", "arrays", {name: value.shape for name, value in values.items()}, values.__getitem__, HWIO
    )
    target = Target(shapes, {name: name for name in shapes}, lambda name: "backbone", lambda name: False)
    plan = RestorePlan.compute(target, [(source, RestoreRequest(source.path, "detection"))])
    assert restored_fraction(plan.rows) == 1.0
    assert set(plan.sources[0].unused) == ranges
