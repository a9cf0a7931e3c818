from __future__ import annotations

import csv
import gzip
import json
import re

import numpy as np
import pytest

from od_finetune.checkpoints import class_rows
from od_finetune.checkpoints.class_match import ClassNames, ClassStart, match
from od_finetune.checkpoints.class_rows import ClassTransfer
from od_finetune.checkpoints.records import Inputs, Row, Status
from od_finetune.data.label_map import Label
from od_finetune.errors import UserError
from od_finetune.fields import ClassLayout

SOURCE = ("star", "ring", "house", "fish", "moon", "cross")
TARGET = ("mug", "star", "leaf", "ring")


def transfer(source=SOURCE, target=TARGET, **kw) -> ClassTransfer:
    there, here = (
        ClassNames([Label(i, name, name) for i, name in enumerate(classes, 1)], f"{path}.pbtxt")
        for path, classes in (("source", source), ("target", target))
    )
    return ClassTransfer(match(there, here, **kw), there.path, {name: i for i, name in enumerate(source, 1)})


def values(layout: ClassLayout, leading: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*leading, layout.size)).astype(np.float32)


def put(planned, start: np.ndarray, value: np.ndarray) -> np.ndarray:
    return planned(value, Inputs(lambda name: pytest.fail("reads something else"), lambda: start))


def plan_row(planned=None, status=Status.TRANSPLANTED, shape=(6,), source_shape=(7,)) -> Row:
    return Row("head", "head", shape, status, "head", source_shape, "same name", True, 0, (planned,) if planned else ())


def rows(value: np.ndarray, layout: ClassLayout, slot: int) -> np.ndarray:
    """The outputs of a slot, found by counting: group by group, slot by slot."""
    places = [
        (group * layout.slots + slot) * layout.width + i for group in range(layout.groups) for i in range(layout.width)
    ]
    return value[..., places]


# name: groups, background, width, shape of the rest; the families' class predictors
LAYOUTS = {
    "SSD, own head per map, weights": (3, 0, 1, (1, 1, 8)),
    "SSD, own head per map, biases": (3, 0, 1, ()),
    "shared head without background": (9, None, 1, (1, 1, 8)),
    "Faster R-CNN class": (1, 0, 1, (8,)),
    "Faster R-CNN boxes per class": (1, None, 4, (8,)),
    "R-FCN": (9, 0, 1, (1, 1, 8)),
    "CenterNet": (1, None, 1, (1, 1, 8)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_go_where_their_class_is(kind):
    groups, background, width, leading = LAYOUTS[kind]
    extra = background is not None
    here, there = ClassLayout(groups, 4 + extra, background, width), ClassLayout(groups, 6 + extra, background, width)
    start, value = values(here, leading, 1), values(there, leading, 2)
    before = start.copy()
    planned = transfer(new=[("leaf", ("house", "moon"))]).plan("head", here, start.shape, value.shape)
    assert planned.source == there
    result = put(planned, start, value)
    assert result.shape == start.shape and result.dtype == np.float32
    np.testing.assert_array_equal(start, before)
    np.testing.assert_array_equal(rows(result, here, here.slot(0)), rows(start, here, here.slot(0)))  # mug: anew
    np.testing.assert_array_equal(rows(result, here, here.slot(1)), rows(value, there, there.slot(0)))  # star
    np.testing.assert_array_equal(rows(result, here, here.slot(3)), rows(value, there, there.slot(1)))  # ring
    parents = (rows(value, there, there.slot(2)) + rows(value, there, there.slot(4))) / 2
    np.testing.assert_allclose(rows(result, here, here.slot(2)), parents, rtol=1e-5, atol=1e-6)
    if extra:
        np.testing.assert_array_equal(rows(result, here, 0), rows(value, there, 0))


def test_the_same_classes_in_another_order_are_not_taken_for_the_same_rows():
    layout = ClassLayout(1, 3, 0)
    value = values(layout, (4,), 1)
    planned = transfer(("a", "b"), ("b", "a")).plan("head", layout, (4, 3), (4, 3))
    result = put(planned, np.zeros((4, 3), np.float32), value)
    np.testing.assert_array_equal(result, value[:, [0, 2, 1]])


@pytest.mark.parametrize(
    "here, outputs, background, said",
    [
        (ClassLayout(1, 5, 0), 6, None, "starts anew"),  # the checkpoint has none
        (ClassLayout(1, 4), 7, 0, "left out"),  # the model has none
        (ClassLayout(1, 5, 0), 7, 0, "carried over"),
        (ClassLayout(1, 4), 6, None, "none"),
    ],
)
def test_a_background_on_one_side_only(here, outputs, background, said):
    planned = transfer().plan("head", here, (here.size,), (outputs,))
    assert planned.source == ClassLayout(1, outputs, background)
    start, value = np.full(here.size, -1.0, np.float32), np.arange(outputs, dtype=np.float32)
    result = put(planned, start, value)
    first = 1 if background == 0 else 0
    assert rows(result, here, here.slot(1))[0] == first  # star, the first class
    if here.background is not None:
        assert result[0] == (0 if background == 0 else -1)
    assert class_rows.background([plan_row(planned)]) == said
    lines = class_rows.lines([plan_row(planned)], transfer())
    assert (f"  background: {said}" in lines) == (said != "none")


def test_classes_without_a_label_take_up_outputs():
    """Open Images: a label map of 545 for 546 classes."""
    planned = transfer().plan("head", ClassLayout(2, 5, 0), (10,), (2 * 9,))
    assert planned.source == ClassLayout(2, 9, 0)
    boxes = transfer().plan("boxes", ClassLayout(1, 4, None, 4), (16,), (7 * 4,))
    assert boxes.source == ClassLayout(1, 7, None, 4)


def test_a_label_map_of_another_checkpoint_is_refused():
    with pytest.raises(UserError, match="source.pbtxt has ids up to 6, but the checkpoint has 5 outputs per anchor"):
        transfer().plan("head", ClassLayout(3, 5, 0), (15,), (15,))


@pytest.mark.parametrize("shape", [(2, 14), (3, 13), (3, 14, 1), (14,)])
def test_shapes_that_differ_in_more_than_the_classes_do_not_fit(shape):
    assert transfer().plan("head", ClassLayout(2, 5, 0), (3, 10), shape) is None


def test_report_says_which_class_got_what():
    moved = transfer(target=("mug", "star", "leaf", "ring", "x"), rename=[("cross", "x")], new=[("leaf", ("house",))])
    planned = moved.plan("head", ClassLayout(1, 6, 0), (6,), (7,))
    assert str(planned) == "5 of 6 rows by class"
    assert class_rows.lines([plan_row(planned)], moved) == [
        "Class rows, by source.pbtxt, in 1 variables:",
        "  background: carried over",
        "  carried over under the same name (2): star, ring",
        "  renamed (1): cross -> x",
        "  mean (1): leaf from house",
        "  start anew (1): mug",
        "  of the checkpoint, not used (2): fish, moon",
    ]
    content = json.loads(json.dumps(class_rows.to_json([plan_row(planned)], moved)))
    assert content["classes"][4] == {
        "name": "x", "id": 5, "how": "renamed", "sources": ["cross"], "source_ids": [6]
    }  # fmt: skip
    assert content["unused"] == ["fish", "moon"] and content["variables"] == ["head"]


def test_report_points_out_another_spelling():
    moved = ClassTransfer((ClassStart("Star", 1, "starts anew"),), "s.pbtxt", {"star": 1}, {"Star": "star"})
    assert "rename { from: 'star' to: 'Star' }" in class_rows.lines([], moved)[-1]


@pytest.mark.parametrize(
    "status, said",
    [
        (Status.LEFT_OUT, "leaves heads out.*'detection' with fine_tune_checkpoint_version: V1"),
        (Status.SHAPE_DIFFERS, r"shapes differ in more than the number of classes: head is \[7\] in the ch.*\[6\]"),
        (Status.NOT_IN_CHECKPOINT, "the checkpoint has no class predictor"),
    ],
)
def test_a_plan_that_carries_nothing_over_is_refused(status, said):
    assert re.search(said, class_rows.problem([plan_row(status=status)], transfer()))
    planned = transfer().plan("head", ClassLayout(1, 5, 0), (5,), (7,))
    assert class_rows.problem([plan_row(planned), plan_row(status=status)], transfer()) is None
    assert class_rows.problem([plan_row(status=status)], None) is None


# golden, how its class variables are spelled, groups of each, background, width, classes
GOLDENS = [
    ("tf1_ssd_mobilenet_v1_coco", r"BoxPredictor_0/ClassPredictor/(weights|biases)", 3, 0, 1),
    ("tf1_ssd_mobilenet_v1_coco", r"BoxPredictor_[1-5]/ClassPredictor/(weights|biases)", 6, 0, 1),
    ("tf1_ssdlite_mobilenet_v2_coco", r"BoxPredictor_[1-5]/ClassPredictor/(weights|biases)", 6, 0, 1),
    ("tf1_ssd_mobilenet_v2_fpnlite_quantized_shared_box_predictor_256x256_depthmultiplier_75_coco14_sync",
     r"WeightSharedConvolutionalBoxPredictor/ClassPredictor/(pointwise_weights|biases)", 6, 0, 1),
    ("tf1_ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync",
     r"WeightSharedConvolutionalBoxPredictor/ClassPredictor/(weights|biases)", 6, 0, 1),
    ("tf2_ssd_efficientdet_d0_512x512_coco17_tpu-8", r".*ClassHead/ClassPredictor/(pointwise_kernel|bias)", 9, None, 1),
    ("tf2_ssd_resnet50_v1_fpn_640x640_coco17_tpu-8", r".*ClassHead/ClassPredictor/(kernel|bias)", 6, 0, 1),
    ("tf1_faster_rcnn_resnet101_coco", r"SecondStageBoxPredictor/ClassPredictor/(weights|biases)", 1, 0, 1),
    ("tf1_faster_rcnn_resnet101_coco", r"SecondStageBoxPredictor/BoxEncodingPredictor/(weights|biases)", 1, None, 4),
    ("tf1_mask_rcnn_inception_v2_coco", r"SecondStageBoxPredictor/Conv_1/(weights|biases)", 1, None, 1),
    ("tf1_rfcn_resnet101_coco", r"SecondStageBoxPredictor/class_predictions/(weights|biases)", 9, 0, 1),
    ("tf1_rfcn_resnet101_coco", r"SecondStageBoxPredictor/refined_locations/(weights|biases)", 9, None, 4),
    ("tf2_faster_rcnn_resnet50_v1_fpn_640x640_coco17_tpu-8", r".*/ClassPredictor_dense/(kernel|bias)", 1, 0, 1),
    ("tf2_faster_rcnn_resnet50_v1_fpn_640x640_coco17_tpu-8", r".*/BoxEncodingPredictor_dense/.*", 1, None, 4),
    ("tf2_mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8", r".*/MaskPredictor_last_conv2d/.*", 1, None, 1),
    ("tf2_centernet_hourglass104_512x512_coco17_tpu-8", r".*object_center/1/layer_with_weights-1/.*", 1, None, 1),
]  # fmt: skip


@pytest.mark.parametrize("golden, pattern, groups, background, width", GOLDENS)
def test_class_predictors_of_published_models(shared, golden, pattern, groups, background, width):
    """From COCO's 90 ids to two classes, on recorded names and shapes."""
    with gzip.open(shared / "reference" / "goldens" / golden / "variables.tsv.gz", "rt") as file:
        found = {
            row["key"]: tuple(int(size) for size in row["shape"].split("x"))
            for row in csv.DictReader(file, delimiter="\t")
            if re.fullmatch(pattern, row["full_name"]) or re.fullmatch(pattern, row["key"])
        }
    assert len(found) >= 2 and len(found) % 2 == 0
    coco = {f"class {i}": i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)}
    starts = (ClassStart("new", 1, "starts anew"), ClassStart("last", 2, "same name", ("class 90",), (90,)))
    moved = ClassTransfer(starts, "coco.pbtxt", coco)
    here = ClassLayout(groups, 2 + (background is not None), background, width)
    for name, shape in found.items():
        start = np.full((*shape[:-1], here.size), -1.0, np.float32)
        planned = moved.plan(name, here, start.shape, shape)
        assert planned.source == ClassLayout(groups, 90 + (background is not None), background, width), name
        value = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
        result = put(planned, start, value)
        last = rows(value, planned.source, planned.source.slots - 1)
        np.testing.assert_array_equal(rows(result, here, here.slots - 1), last)
        assert (rows(result, here, here.slot(0)) == -1).all()
