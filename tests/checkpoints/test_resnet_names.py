"""ResNets of other frameworks' classification nets: their names, and what the plan says of them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.checkpoints.arrays import OIHW, ArraySource
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.models import layers
from od_finetune.models.backbones import resnet_v1, resnet_v1_names


@functools.cache
def target(num_layers: int) -> Target:
    module = resnet_v1.ResnetV1(
        f"FeatureExtractor/resnet_v1_{num_layers}", resnet_v1.DEFAULTS, ("block4",), num_layers=num_layers
    )
    with tf.__internal__.FuncGraph("build").as_default():
        module(tf.compat.v1.placeholder(tf.float32, [1, 64, 64, 3]))
    return Target(
        {name: tuple(variable.shape) for name, variable in layers.named_variables(module).items()},
        {},
        lambda name: "backbone",
        lambda name: False,
        vocabularies=resnet_v1_names.vocabularies(num_layers),
    )


def torch_shapes(counts: tuple[int, ...], leaves: tuple[str, str, str, str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state_dict, written down as its module tree is."""
    found: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        found[f"{conv}.weight"] = shape
        found.update({f"{norm}.{leaf}": shape[:1] for leaf in leaves})

    add("conv1", "bn1", 64, 3, 7, 7)
    inputs = 64
    for block, count in enumerate(counts):
        width = 64 << block
        for unit in range(count):
            at = f"layer{block + 1}.{unit}"
            add(f"{at}.conv1", f"{at}.bn1", width, inputs, 1, 1)
            add(f"{at}.conv2", f"{at}.bn2", width, width, 3, 3)
            add(f"{at}.conv3", f"{at}.bn3", 4 * width, width, 1, 1)
            if unit == 0:
                add(f"{at}.downsample.0", f"{at}.downsample.1", 4 * width, inputs, 1, 1)
            inputs = 4 * width
    return found


@pytest.mark.parametrize(("name", "leaves"), [
    ("torchvision and timm", ("weight", "bias", "running_mean", "running_var")),
    ("GluonCV V1b", ("gamma", "beta", "running_mean", "running_var")),
])  # fmt: skip
@pytest.mark.slow
def test_torch_and_gluon_names(name: str, leaves: tuple[str, str, str, str]):
    shapes = torch_shapes((3, 4, 6, 3), leaves)
    source = ArraySource("net.bin", "arrays", shapes, lambda key: np.zeros(shapes[key], np.float32), OIHW)
    plan = RestorePlan.compute(target(50), [(source, RestoreRequest("net.bin", "classification"))])
    assert {row.status for row in plan.rows} == {Status.RESTORED}
    # Both have the same names for the rest.
    assert {row.rule for row in plan.rows if row.name.endswith(("gamma", "beta"))} == {name}
    assert plan.sources[0].unused == ()
    told = [notice for notice in plan.sources[0].notices if "3x3 convolution" in notice]
    assert len(told) == 1


@pytest.mark.slow
def test_tf_vision_names(tmp_path: Path):
    from official.vision.modeling import backbones

    net = backbones.ResNet(50, tf_keras.layers.InputSpec(shape=[None, 64, 64, 3]))
    prefix = tf.train.Checkpoint(backbone=net).write(str(tmp_path / "ckpt-1"))
    plan = RestorePlan.compute(target(50), [(open_source(prefix), RestoreRequest(prefix, "classification"))])
    assert {row.status for row in plan.rows} == {Status.RESTORED}
    assert {re.sub(" as object path", "", row.rule) for row in plan.rows} == {"TF-Vision"}
