"""Pictures of detections beside ground truth."""

from __future__ import annotations

import numpy as np
import pytest

from od_finetune import fields, visualization
from od_finetune.visualization import (
    Objects,
    Style,
    class_color,
    contact_sheet,
    draw_batch,
    draw_boxes,
    draw_objects,
    side_by_side,
)

NAMES = {1: "cat", 2: "dog"}
GREY = np.full((200, 300, 3), 128, np.uint8)
BOX = np.array([[0.25, 0.2, 0.75, 0.6]])


def _changed(picture: np.ndarray) -> np.ndarray:
    return np.any(picture != 128, axis=-1)


def test_box_is_drawn_where_it_is_and_the_input_stays():
    image = GREY.copy()
    drawn = draw_boxes(image, BOX, [""], [(255, 0, 0)])
    np.testing.assert_array_equal(image, GREY)
    red = np.all(drawn == (255, 0, 0), axis=-1)
    rows, columns = np.where(red.any(1))[0], np.where(red.any(0))[0]
    assert (rows[0], rows[-1]) == (50, 149)  # 0.25 and 0.75 of 199, rounded
    assert (columns[0], columns[-1]) == (60, 179)
    assert not _changed(drawn)[70:130, 80:160].any()


def test_label_adds_a_plate_in_the_box_colour():
    plain = draw_boxes(GREY, BOX, [""], [(255, 0, 0)])
    labelled = draw_boxes(GREY, BOX, ["cat 90%"], [(255, 0, 0)])
    where = np.argwhere(np.any(plain != labelled, axis=-1))
    assert len(where) > 200
    assert where[:, 0].max() <= 53  # above the box
    assert where[:, 1].min() >= 58


def test_labels_of_equal_boxes_do_not_hide_each_other():
    boxes = np.repeat(BOX, 3, axis=0)
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = draw_boxes(GREY, boxes, ["cat", "dog", "owl"], colors)
    plates = [np.all(drawn == color, axis=-1).sum() for color in colors]
    assert min(plates) > 150


@pytest.mark.parametrize("box", [[-1, -1, 2, 2], [0.9, 0.9, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2],
                                 [np.nan, 0, 1, np.inf], [0, 0, 0.01, 0.01]])  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1), (16, 240), (96, 96)])
def test_any_box_on_any_image_is_drawn_without_error(box, shape):
    image = np.zeros((*shape, 3), np.uint8)
    drawn = draw_boxes(image, np.array([box], np.float32), ["a rather long label 100%"], [(255, 255, 255)])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8


def _panels(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left and right without captions."""
    width = (picture.shape[1] - 6) // 2
    bar = picture.shape[0] - width * GREY.shape[0] // GREY.shape[1]
    return picture[bar:, :width], picture[bar:, -width:]


def test_prediction_left_and_ground_truth_right():
    truth = Objects(BOX, np.array([0]))
    found = Objects(BOX, np.array([1]), np.array([0.9]))
    left, right = _panels(side_by_side(GREY, truth, found, NAMES))
    assert np.all(left == class_color(1), axis=-1).any()
    assert not np.all(left == class_color(0), axis=-1).any()
    assert np.all(right == class_color(0), axis=-1).any()


def test_min_score_and_max_boxes_choose_the_best():
    boxes = np.array([[0.0, 0.0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6], [0.7, 0.7, 1.0, 1.0]])
    found = Objects(boxes, np.array([0, 0, 0]), np.array([0.6, 0.9, 0.4]))
    nothing = Objects(np.zeros((0, 4)), np.zeros(0, int))

    def marks(style: Style) -> list[bool]:
        left, _ = _panels(side_by_side(GREY, nothing, found, NAMES, style))
        height, width = left.shape[:2]
        return [
            bool(_changed(left)[int(t * height) + 4 : int(b * height) - 4, int(v * width) : int(r * width)].any())
            for t, v, b, r in boxes
        ]

    bare = Style(skip_labels=True, skip_scores=True)
    assert marks(bare) == [True, True, False]
    assert marks(bare._replace(min_score=0.0)) == [True, True, True]
    assert marks(bare._replace(max_boxes=1)) == [False, True, False]


def test_labels_and_scores_can_be_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(visualization, "draw_boxes", lambda image, boxes, labels, colors: seen.append(labels) or image)
    found = Objects(BOX, np.array([1]), np.array([0.987]))
    for style in (Style(), Style(skip_scores=True), Style(skip_labels=True), Style(skip_labels=True, skip_scores=True)):
        draw_objects(GREY, found, NAMES, style)
    draw_objects(GREY, Objects(BOX, np.array([6]), None, ["crowd"]), NAMES)
    assert seen == [["dog 99%"], ["dog"], ["99%"], [""], ["id 7 (crowd)"]]


def test_ground_truth_on_the_prediction_in_its_colour():
    truth, nothing = Objects(BOX, np.array([0])), Objects(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    style = Style(groundtruth_on_prediction=True, groundtruth_color=(1, 2, 3))
    left, _ = _panels(side_by_side(GREY, truth, nothing, NAMES, style))
    assert np.all(left == (1, 2, 3), axis=-1).any()
    assert not _changed(_panels(side_by_side(GREY, truth, nothing, NAMES))[0]).any()


@pytest.mark.parametrize(("shape", "longest"), [((96, 64), 420), ((500, 480), 500), ((3000, 900), 1024)])
def test_small_images_grow_and_large_ones_shrink(shape, longest):
    image = np.zeros((*shape, 3), np.uint8)
    fitted = visualization.fit(image)
    assert max(fitted.shape) == longest
    assert fitted.shape[0] / fitted.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.02)


def test_classes_have_distinct_colours():
    colors = np.array([class_color(i) for i in range(12)], float)
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(12)
    assert distance.min() > 40


def test_contact_sheet_holds_every_image():
    images = [np.full((20 + i, 30, 3), 100 + i, np.uint8) for i in range(5)]
    sheet = contact_sheet(images, columns=2, gap=4)
    assert sheet.shape == (3 * 28 + 4, 2 * 34 + 4, 3)
    for i in range(5):
        assert (sheet[..., 0] == 100 + i).sum() == (20 + i) * 30
    assert contact_sheet(images[:1]).shape[0] == 20 + 20
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def _batch() -> tuple[fields.Batch, fields.Detections]:
    """One object in the first of two images, one detection in the second; white padding."""
    size, n, d = 2, 3, 4
    classes = np.zeros((size, n, 2), np.float32)
    classes[:, 0, 0] = 1
    flags = np.zeros((size, n), bool)
    truth = fields.Groundtruth(
        np.tile(np.float32(BOX), (size, n, 1)), classes, np.ones((size, n), np.float32), np.int32([1, 0]), flags,
        flags, flags, np.zeros((size, n), np.float32),
    )  # fmt: skip
    images = np.full((size, 200, 400, 3), 255, np.float32)
    images[:, :, :300] = 128
    batch = fields.Batch(
        images, np.int32([[200, 300, 3], [100, 300, 3]]), truth, np.array([b"", b""]), np.array([b"one", b"two"]),
        np.int32([[50, 75], [50, 75]]),
    )  # fmt: skip
    found = fields.Detections(
        np.tile(np.float32(BOX), (size, d, 1)), np.full((size, d), 0.9, np.float32), np.ones((size, d), np.int32),
        np.int32([0, 1]), None, None, None, None,
    )  # fmt: skip
    return batch, found


def test_batch_without_padding_and_with_titles():
    batch, found = _batch()
    first, second = draw_batch(batch, found, NAMES)
    left, right = _panels(first)
    assert not _changed(left).any()  # no detection, and the white padding is cut off
    assert np.all(right == class_color(0), axis=-1).any()
    assert not np.all(second == class_color(0), axis=-1).any()
    assert np.all(second == class_color(1), axis=-1).any()
    assert second.shape[0] < first.shape[0]
    assert len(draw_batch(batch, found, NAMES, limit=1)) == 1


def test_masks_tint_what_they_cover():
    gray = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((1, 4, 4), np.float32)
    masks[:, :, :2] = 1.0  # the left half
    objects = Objects(np.array([[0.25, 0.25, 0.75, 0.75]]), np.array([3]), np.array([0.9]), masks=masks)
    style = Style(skip_labels=True, skip_scores=True)
    plain = draw_objects(gray, objects._replace(masks=None), {}, style)
    drawn = draw_objects(gray, objects, {}, style)
    changed = (drawn != plain).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[30, 28] and not changed[30, 52]
    assert rows.min() >= 15 and rows.max() <= 45 and columns.min() >= 20 and columns.max() < 42
    tint = np.rint(100 + 0.45 * (np.array(class_color(3)) - 100))
    assert np.abs(drawn[30, 28] - tint).max() <= 1


def test_keypoints_and_edges():
    gray = np.full((101, 101, 3), 100, np.uint8)
    points = np.array([[[0.2, 0.2], [0.2, 0.8], [np.nan, np.nan], [0.8, 0.5]]])
    scores = np.array([[0.9, 0.9, 0.9, 0.1]])
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    objects = Objects(box, np.array([0]), np.array([0.9]), keypoints=points, keypoint_scores=scores)
    style = Style(skip_labels=True, skip_scores=True, keypoint_edges=((0, 1), (1, 2), (0, 3), (1, 9)))
    color = list(class_color(0))
    drawn = draw_objects(gray, objects, {}, style)
    assert drawn[20, 20].tolist() == drawn[20, 80].tolist() == drawn[20, 50].tolist() == color
    assert drawn[80, 50].tolist() == [100] * 3  # its score is below the style's
    assert draw_objects(gray, objects._replace(keypoint_scores=None), {}, style)[80, 50].tolist() == color


def test_batch_with_masks_and_keypoints():
    batch, detections = _batch()
    count, n = batch.groundtruth.boxes.shape[:2]
    size = batch.images.shape[1:3]
    truth = batch.groundtruth._replace(
        masks=np.ones((count, n, *size), np.uint8), keypoints=np.full((count, n, 2, 2), 0.5, np.float32)
    )
    d = detections.boxes.shape[1]
    found = detections._replace(
        masks=np.ones((count, d, 3, 3), np.float32), keypoints=np.full((count, d, 2, 2), 0.5, np.float32),
        keypoint_scores=np.ones((count, d, 2), np.float32),
    )  # fmt: skip
    plain = draw_batch(batch, detections, NAMES)
    full = draw_batch(batch._replace(groundtruth=truth), found, NAMES)
    changed = [(one != other).any(axis=-1) for one, other in zip(full, plain, strict=True)]
    left, right = _panels(changed[0])
    assert right.any() and not left.any()
    left, right = _panels(changed[1])
    assert left.any() and not right.any()
