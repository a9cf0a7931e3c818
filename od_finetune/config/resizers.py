"""image_resizer message -> resizer."""

from __future__ import annotations

from od_finetune.errors import UserError
from od_finetune.models import image_resizers
from od_finetune.models.normalization import Normalization
from od_finetune.protos import image_resizer_pb2


def build_resizer(
    proto: image_resizer_pb2.ImageResizer, field: str = "model.ssd.image_resizer"
) -> image_resizers.Resizer:
    """The image_resizer message's resizer; `field` is how an error names the message."""
    kind = proto.WhichOneof("image_resizer_oneof")
    if kind is None:
        raise UserError(
            f"{field}: found nothing, expected e.g. fixed_shape_resizer {{ height: 300 width: 300 }}"
        )
    message = getattr(proto, kind)
    if kind == "identity_resizer":
        return image_resizers.Identity()
    if kind == "pad_to_multiple_resizer":
        return image_resizers.PadToMultiple(message.multiple, message.convert_to_grayscale)
    method = image_resizer_pb2.ResizeType.Name(message.resize_method).lower()
    if kind == "fixed_shape_resizer":
        return image_resizers.FixedShape(message.height, message.width, method, message.convert_to_grayscale)
    if kind == "conditional_shape_resizer":
        return _conditional(message, method)
    return _keep_aspect_ratio(message, method)


def _conditional(
    proto: image_resizer_pb2.ConditionalShapeResizer, method: str
) -> image_resizers.ConditionalShape:
    if proto.condition == image_resizer_pb2.ConditionalShapeResizer.INVALID:
        raise UserError("conditional_shape_resizer.condition: found INVALID, expected GREATER or SMALLER")
    greater = proto.condition == image_resizer_pb2.ConditionalShapeResizer.GREATER
    return image_resizers.ConditionalShape(greater, proto.size_threshold, method, proto.convert_to_grayscale)


def _keep_aspect_ratio(
    proto: image_resizer_pb2.KeepAspectRatioResizer, method: str
) -> image_resizers.KeepAspectRatio:
    low, high = proto.min_dimension, proto.max_dimension
    if not 0 < low <= high:
        raise UserError(f"keep_aspect_ratio_resizer: found min_dimension {low} and max_dimension {high}, "
                        "expected 0 < min_dimension <= max_dimension")
    pad_value = tuple(proto.per_channel_pad_value) or (0.0, 0.0, 0.0)
    if len(pad_value) != 3:
        raise UserError(f"keep_aspect_ratio_resizer.per_channel_pad_value: found {len(pad_value)} values, expected 3")
    return image_resizers.KeepAspectRatio(low, high, method, proto.pad_to_max_dimension,
                                          proto.convert_to_grayscale, pad_value)


def padded_after(resizer: image_resizers.Resizer, normalize: Normalization) -> image_resizers.Resizer:
    """The same resizer for a detector that pads what is normalised already: its padding becomes the pixel value from
    which normalisation makes the value that is asked for (0 unless the config says otherwise)."""
    if isinstance(resizer, (image_resizers.KeepAspectRatio, image_resizers.PadToMultiple)):
        return resizer._replace(pad_value=normalize.inverse(resizer.pad_value))
    return resizer
