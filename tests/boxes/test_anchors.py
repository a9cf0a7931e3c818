from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.boxes.anchors import AnchorSpec, FlexibleGridAnchors, GridAnchors, MultiscaleAnchors, SsdAnchors
from od_finetune.errors import UserError


def sizes(boxes):
    boxes = np.asarray(boxes)
    return np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1)


def centers(boxes):
    boxes = np.asarray(boxes)
    return np.stack([boxes[:, 2] + boxes[:, 0], boxes[:, 3] + boxes[:, 1]], 1) / 2


def test_ssd_lowest_layer_has_three_anchors_and_others_interpolate():
    generator = SsdAnchors.from_scales(2, 0.2, 0.8, [1.0, 4.0])
    assert generator.num_anchors_per_location() == [3, 3]
    anchors = generator([(1, 2), (1, 1)], (300, 300)).numpy()
    root = np.sqrt(2)
    lowest = [[0.1, 0.1], [0.2 / root, 0.2 * root], [0.2 * root, 0.2 / root]]
    between = np.sqrt(0.8 * 1.0)
    expected = [*lowest, *lowest, [0.8, 0.8], [0.4, 1.6], [between, between]]
    np.testing.assert_allclose(sizes(anchors), expected, rtol=1e-5)
    np.testing.assert_allclose(centers(anchors), [[0.5, 0.25]] * 3 + [[0.5, 0.75]] * 3 + [[0.5, 0.5]] * 3, atol=1e-6)


def test_ssd_explicit_scales_and_no_interpolation():
    generator = SsdAnchors.from_scales(2, 0.2, 0.9, [1.0], scales=[0.3, 0.6], interpolated_scale_aspect_ratio=0.0,
                                       reduce_boxes_in_lowest_layer=False)
    assert generator.num_anchors_per_location() == [1, 1]
    np.testing.assert_allclose(sizes(generator([(1, 1), (1, 1)], (10, 10))), [[0.3, 0.3], [0.6, 0.6]], rtol=1e-6)


def test_ssd_scales_follow_the_shorter_side_and_strides_are_pixels():
    generator = SsdAnchors([[AnchorSpec(0.5, 1.0)]], (1.0, 0.5), strides=[(10, 20)], offsets=[(5, 10)])
    anchors = generator([(2, 2)], (100, 200))
    np.testing.assert_allclose(sizes(anchors), [[0.5, 0.125]] * 4, rtol=1e-6)
    np.testing.assert_allclose(centers(anchors), [[0.05, 0.05], [0.05, 0.15], [0.15, 0.05], [0.15, 0.15]], rtol=1e-5)


def test_grid_anchors_run_over_ratios_then_scales():
    generator = GridAnchors([1.0, 2.0], [1.0, 4.0], (8, 8), (16, 16), (0, 0), normalize=False)
    anchors = generator([(1, 2)], (32, 32))
    np.testing.assert_allclose(sizes(anchors)[:4], [[8, 8], [16, 16], [4, 16], [8, 32]])
    np.testing.assert_allclose(centers(anchors)[4:], [[0, 16]] * 4, atol=1e-5)
    scaled = GridAnchors([1.0, 2.0], [1.0, 4.0], (8, 8))([(1, 2)], (32, 64))
    np.testing.assert_allclose(scaled, anchors / np.array([32, 64, 32, 64], np.float32))


@pytest.mark.parametrize(("side", "offset"), [(16, 4.0), (20, 0.0)])
def test_multiscale_offset_is_half_a_stride_where_the_stride_divides_the_image(side, offset):
    generator = MultiscaleAnchors(3, 3, 2.0, [1.0], 2, normalize=False)
    anchors = generator([(2, 2)], (side, side))
    np.testing.assert_allclose(centers(anchors)[0], [offset, offset], atol=1e-5)
    np.testing.assert_allclose(sizes(anchors)[:2, 0], [16, 16 * np.sqrt(2)], rtol=1e-6)


def test_shapes_known_only_at_run_time():
    generator = SsdAnchors.from_scales(1, 0.2, 0.9, [1.0])

    @tf.function(input_signature=[tf.TensorSpec([2], tf.int32), tf.TensorSpec([2], tf.int32)])
    def dynamic(feature_shape, image_shape):
        return generator([tf.unstack(feature_shape)], tuple(tf.unstack(image_shape)))

    np.testing.assert_allclose(dynamic([2, 3], [100, 200]), generator([(2, 3)], (100, 200)), atol=1e-6)


def test_flexible_grid_pairs_sizes_with_ratios():
    generator = FlexibleGridAnchors([[AnchorSpec(8.0, 1.0), AnchorSpec(8.0, 4.0)]], [(4.0, 4.0)], [(2.0, 2.0)])
    assert generator.num_anchors_per_location() == [2]
    np.testing.assert_allclose(sizes(generator([(1, 1)], (16, 16))), [[0.5, 0.5], [0.25, 1.0]])


def test_wrong_number_of_feature_maps():
    with pytest.raises(UserError, match="configured for 2 feature maps.*yields 1"):
        SsdAnchors.from_scales(2, 0.2, 0.9, [1.0])([(1, 1)], (10, 10))
