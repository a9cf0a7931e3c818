"""Class rows within a whole plan: types, several sources, other layouts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.arrays import HWIO, OIHW, ArraySource
from od_finetune.checkpoints.class_match import ClassStart
from od_finetune.checkpoints.class_rows import ClassTransfer
from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.errors import UserError
from od_finetune.fields import ClassLayout

CONV, WEIGHTS, BIASES = "FeatureExtractor/Net/Conv/weights", "Box/ClassPredictor/weights", "Box/ClassPredictor/biases"
SHAPES = {CONV: (3, 3, 3, 4), WEIGHTS: (1, 1, 4, 6), BIASES: (6,)}  # two anchors, two classes and background
THERE = {CONV: (3, 3, 3, 4), WEIGHTS: (1, 1, 4, 8), BIASES: (8,)}  # three classes
# The model's classes: "b", which is the checkpoint's third, and "new".
STARTS = (ClassStart("b", 1, "same name", ("b",), (3,)), ClassStart("new", 2, "starts anew"))
TRANSFER = ClassTransfer(STARTS, "source.pbtxt", {"x": 1, "y": 2, "b": 3})


def target() -> Target:
    return Target(
        shapes=SHAPES,
        tf2_names={},
        part=lambda name: "backbone" if name == CONV else "head",
        is_class_head=lambda name: name != CONV,
        num_classes=2,
        class_layout=lambda name: None if name == CONV else ClassLayout(2, 3, 0),
    )


def values(seed: int, shapes=THERE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def source(arrays: dict[str, np.ndarray], layout: str = HWIO) -> ArraySource:
    return ArraySource("file", "arrays", {n: a.shape for n, a in arrays.items()}, arrays.__getitem__, layout)


def restore(sources, transfer=TRANSFER, **request):
    model = {name: tf.Variable(tf.fill(shape, -1.0)) for name, shape in SHAPES.items()}
    asked = [(one, RestoreRequest("file", **request)) for one in sources]
    plan = RestorePlan.compute(target(), asked, transfer=transfer)
    plan.apply(model)
    return plan, {name: variable.numpy() for name, variable in model.items()}


def check(result: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    for name in (WEIGHTS, BIASES):
        here, there = result[name].reshape(-1, 2, 3), arrays[name].reshape(-1, 2, 4)
        np.testing.assert_array_equal(here[..., :2], there[..., [0, 3]])
        assert (here[..., 2] == -1).all()


@pytest.mark.parametrize("kind", ["detection", "full"])
def test_rows_by_name_are_as_good_as_restored(kind):
    arrays = values(1)
    plan, result = restore([source(arrays)], type=kind)
    check(result, arrays)
    np.testing.assert_array_equal(result[CONV], arrays[CONV])
    assert [row.status for row in plan.rows] == [Status.RESTORED, Status.TRANSPLANTED, Status.TRANSPLANTED]
    assert plan.problem is None and plan.sources[0].unused == ()
    text = plan.text().splitlines()
    assert "Class rows, by source.pbtxt, in 2 variables:" in text and "class head:" not in plan.text()
    assert "  start anew (1): new" in text and "  of the checkpoint, not used (2): x, y" in text
    content = json.loads(json.dumps(plan.to_json()))
    assert content["counts"]["rows transplanted"] == 2 and content["class_rows"]["variables"] == [WEIGHTS, BIASES]
    assert content["rows"][1]["transform"] == "2 of 3 rows by class"


def test_equal_shapes_are_put_together_by_name_too():
    arrays = values(1, SHAPES)
    moved = ClassTransfer((ClassStart("b", 1, "same name", ("b",), (2,)),), "source.pbtxt", {"a": 1, "b": 2})
    _, result = restore([source(arrays)], moved)
    np.testing.assert_array_equal(result[BIASES].reshape(2, 3)[:, :2], arrays[BIASES].reshape(2, 3)[:, [0, 2]])
    plan, result = restore([source(arrays)], None)
    np.testing.assert_array_equal(result[BIASES], arrays[BIASES])
    assert plan.to_json()["class_rows"] is None


def test_the_class_comes_last_whatever_the_layout_of_the_file():
    arrays = values(1)
    turned = {name: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array for name, array in arrays.items()}
    _, result = restore([source(turned, OIHW)])
    check(result, arrays)


def test_of_several_sources_the_last_that_has_the_head_gives_the_rows():
    first, second = values(1), values(2)
    backbone = {CONV: values(3)[CONV]}
    plan, result = restore([source(first), source(second), source(backbone)])
    check(result, second)
    np.testing.assert_array_equal(result[CONV], backbone[CONV])
    assert plan.rows[1].origin == 1


def test_nothing_is_assigned_by_a_plan_that_carries_nothing_over():
    model = {name: tf.Variable(tf.fill(shape, -1.0)) for name, shape in SHAPES.items()}
    request = RestoreRequest("file", "detection", "V2")
    plan = RestorePlan.compute(target(), [(source(values(1)), request)], transfer=TRANSFER)
    assert "leaves heads out" in plan.problem and plan.problem == plan.to_json()["problem"]
    with pytest.raises(UserError, match="no row of a class predictor can be carried over"):
        plan.apply(model)
    assert (model[CONV].numpy() == -1).all()


def test_another_checkpoints_label_map_is_an_error_before_anything_is_read():
    shapes = {name: (*shape[:-1], 6) if name != CONV else shape for name, shape in THERE.items()}
    unread = ArraySource("file", "arrays", shapes, lambda name: pytest.fail("read"))
    transfer = ClassTransfer(STARTS, "source.pbtxt", {"w": 4, **TRANSFER.source_ids})
    with pytest.raises(UserError, match="source.pbtxt has ids up to 4, but the checkpoint has 3 outputs"):
        RestorePlan.compute(target(), [(unread, RestoreRequest("file"))], transfer=transfer)
