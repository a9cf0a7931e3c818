"""Every row of the table: sound output, the same eagerly and as a graph, options checked; and chosen statistics."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune.config.augmentation import TABLE, build_augmentation
from od_finetune.data import augment_crop
from od_finetune.data import sample as s
from od_finetune.data.sample import Sample, Step
from od_finetune.errors import UserError
from od_finetune.protos import preprocessor_pb2

NEEDED = {
    "normalize_image": "original_minval: 0 original_maxval: 255 target_maxval: 255",
    "resize_image": "new_height: 9 new_width: 11",
    "random_resize_method": "target_height: 9 target_width: 11",
    "subtract_channel_mean": "means: [1, 2, 3]",
    "remap_labels": "original_labels: [1, 2] new_label: 3",
    "drop_label_probabilistically": "label: 1",
    "random_absolute_pad_image": "max_height_padding: 5 max_width_padding: 3",
    "random_scale_crop_and_pad_to_square": "output_size: 16",
    "random_patch_gaussian": "max_patch_size: 9",
    "random_downscale_to_target_pixels": "min_target_pixels: 50 max_target_pixels: 100",
}


def _steps(*texts: str) -> list[Step]:
    return build_augmentation([text_format.Parse(text, preprocessor_pb2.PreprocessingStep()) for text in texts], 3)


def _sample(height: int = 18, width: int = 24) -> Sample:
    image = np.random.default_rng(0).integers(0, 256, [height, width, 3], np.uint8)
    boxes = [[0.1, 0.1, 0.5, 0.4], [0.3, 0.5, 0.9, 0.95], [0.0, 0.0, 1.0, 1.0]]
    objects = {
        s.CLASSES: tf.constant([1, 2, 3]),
        s.WEIGHTS: tf.constant([0.5, 1.0, 1.0]),
        s.DIFFICULT: tf.constant([True, False, False]),
    }
    return Sample(tf.constant(image), tf.constant(boxes), objects)


def _with_masks_and_keypoints() -> Sample:
    """Boxes of whole pixels that the masks fill; the first keypoint is a box's centre, the second its corner."""
    sample = _sample(20, 30)
    masks = np.zeros([3, 20, 30], np.uint8)
    for mask, box in zip(masks, sample.boxes.numpy(), strict=True):
        top, left, bottom, right = np.rint(box * [20, 30, 20, 30]).astype(int)
        mask[top:bottom, left:right] = 1
    corners = np.array([_extent(mask) / [20, 30, 20, 30] for mask in masks], np.float32)
    points = np.stack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, :2]], axis=1)
    more = {
        s.MASKS: tf.constant(masks),
        s.KEYPOINTS: tf.constant(points),
        s.KEYPOINT_VISIBILITIES: tf.ones([3, 2], tf.bool),
    }
    return sample._replace(boxes=tf.constant(corners), objects=sample.objects | more)


def _extent(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])


def _seed(number: int) -> tf.Tensor:
    return tf.constant([7, number])


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_step_is_sound_and_the_same_as_a_graph(name: str) -> None:
    (step,) = _steps(f"{name} {{ {NEEDED.get(name, '')} }}")
    compiled = tf.function(step, reduce_retracing=True)
    for number in range(4):
        result = step(_sample(), _seed(number))
        assert result.image.shape.rank == 3 and result.image.shape[-1] == 3
        boxes, image = result.boxes.numpy(), result.image.numpy()
        assert np.isfinite(image).all() and np.isfinite(boxes).all()
        assert image.max() <= 255 and (image.min() >= 0 or name == "subtract_channel_mean")
        assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert {len(values) for values in result.objects.values()} == {len(boxes)}
        graph = compiled(_sample(), _seed(number))
        np.testing.assert_allclose(graph.image, result.image, atol=1e-2)
        for graph_value, value in zip(tf.nest.flatten(graph[1:]), tf.nest.flatten(result[1:]), strict=True):
            np.testing.assert_allclose(graph_value, value, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"random_jitter_boxes"}))
def test_every_step_moves_masks_and_keypoints_with_the_boxes(name: str) -> None:
    (step,) = _steps(f"{name} {{ {NEEDED.get(name, '')} }}")
    for number in range(3):
        result = step(_with_masks_and_keypoints(), _seed(number))
        masks, points = result.objects[s.MASKS].numpy(), result.objects[s.KEYPOINTS].numpy()
        height, width = result.image.shape[:2]
        assert masks.shape == (len(result.boxes), height, width) and masks.dtype == np.uint8
        np.testing.assert_array_equal(np.isfinite(points).all(-1), result.objects[s.KEYPOINT_VISIBILITIES])
        for mask, box, (centre, corner) in zip(masks, result.boxes.numpy(), points, strict=True):
            pixels = box * [height, width, height, width]
            np.testing.assert_allclose(_extent(mask), pixels, atol=1.51)  # crops and scales cut pixels
            for point in (centre, corner):
                assert np.isnan(point).all() or ((point >= box[:2] - 1e-4) & (point <= box[2:] + 1e-4)).all()
            if "crop" not in name:  # nothing is cut off
                np.testing.assert_allclose(centre, (box[:2] + box[2:]) / 2, atol=1e-4)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_step_takes_images_without_boxes(name: str) -> None:
    (step,) = _steps(f"{name} {{ {NEEDED.get(name, '')} }}")
    empty = _sample().select(tf.constant([False] * 3))
    result = step(empty, _seed(0))
    assert result.boxes.shape == (0, 4)


def _many(step: Step, count: int = 400) -> list[Sample]:
    compiled = tf.function(step)
    return [compiled(_sample(), _seed(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "probability"),
    [("random_horizontal_flip", 0.5), ("random_vertical_flip", 0.2), ("random_rotation90", 0.8)],
)
def test_flips_happen_with_their_probability(name: str, probability: float) -> None:
    (step,) = _steps(f"{name} {{ probability: {probability} }}")
    before = _sample().boxes.numpy()
    share = np.mean([not np.allclose(result.boxes, before) for result in _many(step)])
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 400)


def test_brightness_is_uniform_over_its_range() -> None:
    (step,) = _steps("random_adjust_brightness { max_delta: 0.1 }")
    gray = _sample()._replace(image=tf.fill([1, 1, 3], 128.0))
    deltas = np.array([step(gray, _seed(number)).image.numpy()[0, 0, 0] - 128.0 for number in range(300)]) / 255.0
    assert np.abs(deltas).max() <= 0.1 + 1e-6
    assert abs(deltas.mean()) < 4 * 0.1 / np.sqrt(3 * 300)
    assert abs(deltas.std() - 0.1 / np.sqrt(3)) < 0.006


def test_crop_keeps_the_original_with_random_coef() -> None:
    (step,) = _steps("random_crop_image { min_object_covered: 0 random_coef: 0.3 max_area: 0.5 }")
    kept = np.mean([result.image.shape == (18, 24, 3) for result in _many(step)])
    assert abs(kept - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_crop_obeys_area_and_covers_an_object() -> None:
    options = "min_object_covered: 1 max_area: 0.6 min_aspect_ratio: 0.5 max_aspect_ratio: 2"
    (step,) = _steps(f"random_crop_image {{ {options} }}")
    for result in _many(step, 50):
        height, width, _ = result.image.shape
        if (height, width) != (18, 24):  # else no window was found in 100 draws
            assert height * width <= 0.6 * 18 * 24 * 1.15  # whole pixels
            assert result.boxes.shape[0] >= 1


def test_ssd_crop_with_and_without_own_operations() -> None:
    (default,) = _steps("ssd_random_crop {}")
    assert default.keywords["crops"] == augment_crop.SSD_CROPS
    assert [crop.min_object_covered for crop in augment_crop.SSD_CROPS] == [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    operation = "min_object_covered: 0.5 min_aspect_ratio: 1 max_aspect_ratio: {} min_area: 0.2 max_area: 0.9"
    operations = " ".join(f"operations {{ {operation.format(ratio)} }}" for ratio in (1, 2))
    (own,) = _steps(f"ssd_random_crop {{ {operations} }}")
    first, second = own.keywords["crops"]
    assert (first.aspect_ratio, second.aspect_ratio) == ((1, 1), (1, 2))
    assert (first.overlap_thresh, first.clip_boxes) == (0, True)
    assert {result.boxes.shape[1] for result in _many(own, 5)} == {4}


def test_fixed_aspect_ratio_crops() -> None:
    (step,) = _steps("ssd_random_crop_fixed_aspect_ratio { aspect_ratio: 0.5 }")
    for result in _many(step, 30):
        height, width, _ = result.image.shape
        assert abs(width - 0.5 * height) <= 1.0


def test_pad_to_fixed_aspect_ratio() -> None:
    (step,) = _steps("ssd_random_crop_pad_fixed_aspect_ratio { aspect_ratio: 1.0 }")
    for result in _many(step, 30):
        assert abs(result.image.shape[0] - result.image.shape[1]) <= 1


def test_remap_and_drop() -> None:
    remap, drop = _steps(
        "remap_labels { original_labels: [1, 2] new_label: 3 }", "drop_label_probabilistically { label: 2 }"
    )
    assert remap(_sample(), _seed(0)).objects[s.CLASSES].numpy().tolist() == [3, 3, 3]
    assert drop(_sample(), _seed(0)).objects[s.CLASSES].numpy().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("random_horizontal_flip {}", "is not set"),
        ("random_vertical_flip { keypoint_flip_permutation: [0, 1] }", r"is \[0, 1\]"),
        ("random_rotation90 { keypoint_rot_permutation: [0, 1, 1] }", r"is \[0, 1, 1\]"),
    ],
)
def test_permutations_fit_the_number_of_keypoints(text: str, found: str) -> None:
    options = [text_format.Parse(text, preprocessor_pb2.PreprocessingStep())]
    assert len(build_augmentation(options, 3)) == 1
    expected = rf"options\[0\]\.random_\w+: keypoint_\w+ {found}, expected each number of 0 to 2 once"
    with pytest.raises(UserError, match=expected):
        build_augmentation(options, 3, num_keypoints=3)


def test_flip_changes_the_places_of_keypoints() -> None:
    (step,) = _steps("random_horizontal_flip { probability: 1 keypoint_flip_permutation: [1, 0] }")
    sample = _with_masks_and_keypoints()
    expected = sample.objects[s.KEYPOINTS].numpy()[:, ::-1] * [1, -1] + [0, 1]
    np.testing.assert_allclose(step(sample, _seed(0)).objects[s.KEYPOINTS], expected, atol=1e-6)


def test_square_output_size() -> None:
    (step,) = _steps("random_scale_crop_and_pad_to_square { output_size: 20 }")
    assert {result.image.shape for result in _many(step, 10)} == {(20, 20, 3)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("autoaugment_image {}", "autoaugment_image is not available, expected one of adjust_gamma, "),
        ("", "names no step"),
        ("random_distort_color { color_ordering: 2 }", "random_distort_color: color_ordering is 2, expected 0 or 1"),
        ("random_horizontal_flip { probability: 1.5 }", "probability is 1.5, expected 0 to 1"),
        ("random_adjust_contrast { min_delta: 2 }", "min_delta 2.0 exceeds max_delta 1.25"),
        ("random_crop_image { min_area: 0 }", "min_area is 0.0 and max_area 1.0, expected 0 < "),
        ("ssd_random_crop { operations { min_area: 0.1 max_area: 1 } }", "min_aspect_ratio is 0.0"),
        ("random_pad_image { min_image_height: 3 }", "only min_image_height given"),
        ("random_pad_image { pad_color: [1, 2] }", "pad_color has 2 values, expected 3"),
        ("subtract_channel_mean {}", "means has 0 values, expected 3"),
        ("resize_image { new_height: 3 }", "new_width is 0, expected more than 0"),
        ("normalize_image {}", "original_minval equals original_maxval"),
        ("remap_labels { original_labels: 1 new_label: 4 }", "new_label is 4, expected 1 to num_classes"),
    ],
)
def test_bad_options(text: str, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        _steps("random_vertical_flip {}", text)
    assert "data_augmentation_options[1]" in str(raised.value)
    assert expected in str(raised.value)
