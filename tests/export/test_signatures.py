from __future__ import annotations

import pytest
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.export import signatures
from od_finetune.fields import Detections


@pytest.mark.parametrize(("text", "shape"), [
    ("1,300,300,3", (1, 300, 300, 3)), ("-1, None,?,3", (None, None, None, 3)), ("[1,2,2,3]", (1, 2, 2, 3)), ("", None),
])
def test_parse_shape(text, shape):
    assert signatures.parse_shape(text) == shape


@pytest.mark.parametrize("text", ["300x300", "1,0,2,3", "1,,2"])
def test_parse_shape_refuses(text):
    with pytest.raises(UserError, match="is no size; give e.g. 1,300,300,3"):
        signatures.parse_shape(text)


def test_unknown_input_type_lists_the_choices():
    with pytest.raises(UserError, match="'jpeg' is unknown; choose one of image_tensor"):
        signatures.input_spec("jpeg")


@pytest.mark.parametrize(("input_type", "shape"), [("image_tensor", (1, 2, 3)), ("image_tensor", (1, 9, 9, 1)),
                                                   ("tf_example", (1, 300, 300, 3))])
def test_shape_must_fit_the_type(input_type, shape):
    with pytest.raises(UserError, match="does not fit input_type " + input_type):
        signatures.input_spec(input_type, shape)


def test_shape_narrows_the_placeholder():
    spec = signatures.input_spec("image_tensor", (1, None, 300, 3))
    assert spec == tf.TensorSpec([1, None, 300, 3], tf.uint8, name="image_tensor")


def test_outputs_are_float_and_classes_start_at_one():
    zeros = tf.zeros([1, 2])
    detections = Detections(
        boxes=tf.zeros([1, 2, 4]), scores=zeros, classes=tf.constant([[0, 4]]), num_detections=tf.constant([2]),
        multiclass_scores=None, anchor_indices=None, raw_boxes=tf.zeros([1, 2, 4]), raw_scores=zeros)
    outputs = signatures.named_outputs(detections)
    assert outputs["detection_classes"].numpy().tolist() == [[1.0, 5.0]]
    assert {value.dtype for value in outputs.values()} == {tf.float32}
    assert "detection_multiclass_scores" not in outputs and "detection_anchor_indices" not in outputs
    assert not {name for name in outputs if "mask" in name or "keypoint" in name}


def test_masks_and_keypoints_are_outputs_where_there_are_any():
    zeros = tf.zeros([1, 2])
    detections = Detections(
        boxes=tf.zeros([1, 2, 4]), scores=zeros, classes=tf.constant([[0, 4]]), num_detections=tf.constant([2]),
        multiclass_scores=None, anchor_indices=None, raw_boxes=tf.zeros([1, 2, 4]), raw_scores=zeros,
        masks=tf.ones([1, 2, 15, 15]), keypoints=tf.ones([1, 2, 17, 2]), keypoint_scores=tf.ones([1, 2, 17]))
    shapes = {name: value.shape.as_list() for name, value in signatures.named_outputs(detections).items()}
    assert shapes["detection_masks"] == [1, 2, 15, 15]
    assert shapes["detection_keypoints"] == [1, 2, 17, 2]
    assert shapes["detection_keypoint_scores"] == [1, 2, 17]
    assert "detection_surface_coords" not in shapes
