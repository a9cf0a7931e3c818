"""`data_augmentation_options`: which message becomes which step. A new step is one function and one row of TABLE."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from od_finetune.data import augment_color, augment_crop, augment_labels, augment_spatial
from od_finetune.data.augment_crop import Crop, Pad
from od_finetune.data.sample import Step
from od_finetune.errors import UserError
from od_finetune.protos import preprocessor_pb2


def build_augmentation(options: Any, num_classes: int | None = None, num_keypoints: int = 0) -> list[Step]:
    """The steps of `train_config.data_augmentation_options`, in order, for a model of `num_classes`.

    `num_keypoints`: how many each object has in the records that are read; 0 where none are loaded.

    Raises:
      UserError: a step that does not exist here, an option with an impossible value; names both.
    """
    steps = []
    for number, message in enumerate(options):
        where = f"data_augmentation_options[{number}]"
        name = message.WhichOneof("preprocessing_step")
        if name is None:
            raise UserError(f"{where}: names no step, expected one of {', '.join(sorted(TABLE))}")
        if name not in TABLE:
            raise UserError(f"{where}: {name} is not available, expected one of {', '.join(sorted(TABLE))}")
        try:
            steps.append(TABLE[name](getattr(message, name)))
            if name == "remap_labels" and not 1 <= message.remap_labels.new_label <= (num_classes or 2**31):
                new = message.remap_labels.new_label
                raise UserError(f"new_label is {new}, expected 1 to num_classes ({num_classes})")
            if name in _PERMUTATIONS and num_keypoints:
                _check_permutation(getattr(message, name), _PERMUTATIONS[name], name in _MIRRORS, num_keypoints)
        except UserError as error:
            raise UserError(f"{where}.{name}: {error}") from None
    return steps


_MIRRORS = ("random_horizontal_flip", "random_vertical_flip")
_PERMUTATIONS = {name: "keypoint_flip_permutation" for name in _MIRRORS}
_PERMUTATIONS["random_rotation90"] = "keypoint_rot_permutation"


def _check_permutation(message: Message, field: str, needed: bool, count: int) -> None:
    """A mirrored left eye is a right one, so mirrors need to know which keypoints change places."""
    values = list(getattr(message, field))
    if not values and not needed:
        return
    if sorted(values) != list(range(count)):
        found = f"is {values}" if values else "is not set"
        raise UserError(
            f"{field} {found}, expected each number of 0 to {count - 1} once, since num_keypoints of the input reader "
            f"is {count}: at each place the keypoint that comes there (the numbers in order leave all as they are)"
        )


def _plain(function: Callable) -> Callable[[Message], Step]:
    """A builder that hands every field on under its own name."""

    def build(message: Message) -> Step:
        names = [field.name for field in message.DESCRIPTOR.fields]
        arguments = {name: _value(message, name) for name in names}
        _check_ranges(arguments)
        return functools.partial(function, **arguments)

    return build


def _value(message: Message, name: str) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if name == "pad_color":
        return _color(value)
    return value if isinstance(value, (bool, int, float, str)) else tuple(value) if field else value


def _color(values: Any) -> tuple[float, ...] | None:
    if len(values) not in (0, 3):
        raise UserError(f"pad_color has {len(values)} values, expected 3 (red, green, blue) or none (the image's mean)")
    return tuple(values) or None


def _check_ranges(arguments: dict[str, Any]) -> None:
    """Each min_... (or ..._min, minval) must not exceed its max counterpart; probabilities lie within 0..1."""
    for name, value in arguments.items():
        other = name.replace("max", "min")
        if other != name and other in arguments and arguments[other] > value:
            raise UserError(f"{other} {arguments[other]} exceeds {name} {value}")
        if ("probability" in name or name == "random_coef") and not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}, expected 0 to 1")


def _crop(message: Message, **fixed: Any) -> Crop:
    """From a message with the fields of RandomCropImage or an SSD operation."""
    fields = message.DESCRIPTOR.fields_by_name
    if "min_aspect_ratio" in fields:
        fixed["aspect_ratio"] = _range(message, "aspect_ratio")
    for name in ("min_object_covered", "overlap_thresh", "random_coef"):
        value = getattr(message, name)
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{name} is {value}, expected 0 to 1")
        fixed[name] = value
    area = _range(message, "area")
    if area[1] > 1.0:
        raise UserError(f"max_area is {area[1]}, expected a share of the image, at most 1")
    return Crop(area=area, clip_boxes=message.clip_boxes, **fixed)


def _range(message: Message, name: str) -> tuple[float, float]:
    low, high = getattr(message, f"min_{name}"), getattr(message, f"max_{name}")
    if not 0.0 < low <= high:
        raise UserError(f"min_{name} is {low} and max_{name} {high}, expected 0 < min_{name} <= max_{name}")
    return low, high


def _ratios(message: Message) -> dict[str, tuple[float, float]]:
    """min/max_padded_size_ratio where given."""
    found = {}
    for name in ("min_padded_size_ratio", "max_padded_size_ratio"):
        values = tuple(getattr(message, name))
        if len(values) not in (0, 2):
            raise UserError(f"{name} has {len(values)} values, expected 2 (height, width) or none")
        if values:
            found[name] = values
    return found


def _pad(message: Message, color: tuple[float, ...] | None) -> Pad:
    ratios = _ratios(message)
    default = Pad()
    return Pad(
        ratios.get("min_padded_size_ratio", default.min_ratio),
        ratios.get("max_padded_size_ratio", default.max_ratio),
        color,
    )


def _crop_image(message: Message) -> Step:
    return functools.partial(augment_crop.random_crop_image, crop=_crop(message))


def _crop_pad_image(message: Message) -> Step:
    pad = _pad(message, _color(message.pad_color))
    return functools.partial(augment_crop.random_crop_pad_image, crop=_crop(message), pad=pad)


def _ssd_crop(message: Message) -> Step:
    crops = tuple(_crop(operation) for operation in message.operations) or augment_crop.SSD_CROPS
    return functools.partial(augment_crop.ssd_random_crop, crops=crops)


def _ssd_crop_pad(message: Message) -> Step:
    pairs = tuple((_crop(operation), _pad(operation, _operation_color(operation))) for operation in message.operations)
    return functools.partial(augment_crop.ssd_random_crop_pad, crop_pads=pairs or augment_crop.SSD_CROP_PADS)


def _operation_color(operation: Message) -> tuple[float, ...] | None:
    names = ("pad_color_r", "pad_color_g", "pad_color_b")
    given = [name for name in names if operation.HasField(name)]
    if given and len(given) < len(names):
        raise UserError(f"only {', '.join(given)} given, expected all of {', '.join(names)} or none")
    return tuple(getattr(operation, name) for name in names) if given else None


def _ssd_crop_fixed(message: Message) -> Step:
    ratio = _positive(message, "aspect_ratio")
    crops = tuple(_crop(operation, aspect_ratio=(ratio, ratio)) for operation in message.operations)
    function = augment_crop.ssd_random_crop_fixed_aspect_ratio
    return functools.partial(function, crops=crops or augment_crop.SSD_CROPS, aspect_ratio=ratio)


def _ssd_crop_pad_fixed(message: Message) -> Step:
    crops = tuple(_crop(operation) for operation in message.operations) or augment_crop.SSD_CROPS
    ratio = _positive(message, "aspect_ratio")
    function = augment_crop.ssd_random_crop_pad_fixed_aspect_ratio
    return functools.partial(function, crops=crops, aspect_ratio=ratio, **_ratios(message))


def _crop_to_aspect_ratio(message: Message) -> Step:
    _positive(message, "aspect_ratio")
    return _plain(augment_crop.random_crop_to_aspect_ratio)(message)


def _positive(message: Message, name: str) -> Any:
    value = getattr(message, name)
    if value <= 0:
        raise UserError(f"{name} is {value}, expected more than 0")
    return value


def _pad_image(message: Message) -> Step:
    arguments: dict[str, Any] = {"pad_color": _color(message.pad_color)}
    for end in ("min", "max"):
        names = [f"{end}_image_height", f"{end}_image_width"]
        given = [name for name in names if message.HasField(name)]
        if len(given) == 1:
            raise UserError(f"only {given[0]} given, expected {names[0]} and {names[1]} or neither")
        if given:
            arguments[f"{end}_size"] = tuple(getattr(message, name) for name in names)
    return functools.partial(augment_spatial.random_pad_image, **arguments)


def _sized(function: Callable, height: str, width: str) -> Callable[[Message], Step]:
    def build(message: Message) -> Step:
        arguments = {height: _positive(message, height), width: _positive(message, width)}
        if "method" in message.DESCRIPTOR.fields_by_name:
            name = preprocessor_pb2.ResizeImage.Method.Name(message.method)
            arguments["method"] = {"NEAREST_NEIGHBOR": "nearest"}.get(name, name.lower())
        return functools.partial(function, **arguments)

    return build


def _distort_color(message: Message) -> Step:
    if message.color_ordering not in (0, 1):
        raise UserError(f"color_ordering is {message.color_ordering}, expected 0 or 1")
    return functools.partial(augment_color.random_distort_color, color_ordering=message.color_ordering)


def _adjust_hue(message: Message) -> Step:
    if not 0.0 <= message.max_delta <= 0.5:
        raise UserError(f"max_delta is {message.max_delta:g}, expected 0 to 0.5 (of a full circle)")
    return _plain(augment_color.random_adjust_hue)(message)


def _normalize_image(message: Message) -> Step:
    if message.original_maxval == message.original_minval:
        raise UserError("original_minval equals original_maxval, expected a range such as 0 and 255")
    return _plain(augment_color.normalize_image)(message)


def _subtract_channel_mean(message: Message) -> Step:
    if len(message.means) != 3:
        raise UserError(f"means has {len(message.means)} values, expected 3 (red, green, blue)")
    return _plain(augment_color.subtract_channel_mean)(message)


def _jitter_boxes(message: Message) -> Step:
    mode = preprocessor_pb2.RandomJitterBoxes.JitterMode.Name(message.jitter_mode)
    return functools.partial(augment_labels.random_jitter_boxes, ratio=message.ratio, jitter_mode=mode)


TABLE: dict[str, Callable[[Message], Step]] = {
    "normalize_image": _normalize_image,
    "random_horizontal_flip": _plain(augment_spatial.random_horizontal_flip),
    "random_pixel_value_scale": _plain(augment_color.random_pixel_value_scale),
    "random_image_scale": _plain(augment_spatial.random_image_scale),
    "random_rgb_to_gray": _plain(augment_color.random_rgb_to_gray),
    "random_adjust_brightness": _plain(augment_color.random_adjust_brightness),
    "random_adjust_contrast": _plain(augment_color.random_adjust_contrast),
    "random_adjust_hue": _adjust_hue,
    "random_adjust_saturation": _plain(augment_color.random_adjust_saturation),
    "random_distort_color": _distort_color,
    "random_jitter_boxes": _jitter_boxes,
    "random_crop_image": _crop_image,
    "random_pad_image": _pad_image,
    "random_crop_pad_image": _crop_pad_image,
    "random_crop_to_aspect_ratio": _crop_to_aspect_ratio,
    "random_black_patches": _plain(augment_color.random_black_patches),
    "random_resize_method": _sized(augment_spatial.random_resize_method, "target_height", "target_width"),
    "resize_image": _sized(augment_spatial.resize_image, "new_height", "new_width"),
    "subtract_channel_mean": _subtract_channel_mean,
    "ssd_random_crop": _ssd_crop,
    "ssd_random_crop_pad": _ssd_crop_pad,
    "ssd_random_crop_fixed_aspect_ratio": _ssd_crop_fixed,
    "ssd_random_crop_pad_fixed_aspect_ratio": _ssd_crop_pad_fixed,
    "random_vertical_flip": _plain(augment_spatial.random_vertical_flip),
    "random_rotation90": _plain(augment_spatial.random_rotation90),
    "rgb_to_gray": _plain(augment_color.rgb_to_gray),
    "random_absolute_pad_image": _plain(augment_spatial.random_absolute_pad_image),
    "random_self_concat_image": _plain(augment_spatial.random_self_concat_image),
    "drop_label_probabilistically": _plain(augment_labels.drop_label_probabilistically),
    "remap_labels": _plain(augment_labels.remap_labels),
    "random_jpeg_quality": _plain(augment_color.random_jpeg_quality),
    "random_downscale_to_target_pixels": _plain(augment_spatial.random_downscale_to_target_pixels),
    "random_patch_gaussian": _plain(augment_color.random_patch_gaussian),
    "random_square_crop_by_scale": _plain(augment_crop.random_square_crop_by_scale),
    "random_scale_crop_and_pad_to_square": _plain(augment_crop.random_scale_crop_and_pad_to_square),
    "adjust_gamma": _plain(augment_color.adjust_gamma),
}
