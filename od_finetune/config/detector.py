"""TABLE: which message of a model -> builder of the detector that it describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from od_finetune import fields
from od_finetune.config.center_net import build_center_net
from od_finetune.config.faster_rcnn import build_faster_rcnn
from od_finetune.config.single_stage import build_ssd
from od_finetune.errors import UserError
from od_finetune.protos import model_pb2

BUILDERS: dict[str, Callable[[Any], fields.Detector]] = {
    "ssd": build_ssd,
    "center_net": build_center_net,
    "faster_rcnn": build_faster_rcnn,
}


def build_detector(model: model_pb2.DetectionModel) -> fields.Detector:
    """The detector that a model message describes, its variables not yet created (`build` does that).

    Raises:
      UserError: what the message asks for does not exist or does not fit together; the message names the field.
    """
    kind = model.WhichOneof("model")
    if kind not in BUILDERS:
        raise UserError(f"model: found {kind or 'nothing'}, expected {' or '.join(BUILDERS)}")
    return BUILDERS[kind](getattr(model, kind))
