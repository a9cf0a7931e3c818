"""TABLE: where each kind of model keeps in the config what all kinds have, for those who ask about any model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message

from od_finetune.errors import UserError
from od_finetune.protos import box_predictor_pb2, losses_pb2, model_pb2
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig


class Kind(NamedTuple):
    """One kind of model; each function takes its message."""

    feature_extractor: Callable[[Message], Message]
    class_loss: Callable[[Message], losses_pb2.ClassificationLoss]
    default_class_loss: str = ""  # where `class_loss` names none
    box_predictor: Callable[[Message], box_predictor_pb2.BoxPredictor] | None = None
    dense: bool = True  # while training every place of the image has class predictions, whatever the ground truth


KINDS: dict[str, Kind] = {
    "ssd": Kind(
        feature_extractor=lambda ssd: ssd.feature_extractor,
        class_loss=lambda ssd: ssd.loss.classification_loss,
        box_predictor=lambda ssd: ssd.box_predictor,
    ),
    "faster_rcnn": Kind(
        feature_extractor=lambda faster_rcnn: faster_rcnn.feature_extractor,
        class_loss=lambda faster_rcnn: faster_rcnn.second_stage_classification_loss,
        default_class_loss="weighted_softmax",
        box_predictor=lambda faster_rcnn: faster_rcnn.second_stage_box_predictor,
        dense=False,
    ),
    "center_net": Kind(
        feature_extractor=lambda center_net: center_net.feature_extractor,
        class_loss=lambda center_net: center_net.object_center_params.classification_loss,
        dense=False,  # it has, but as heat maps in a list
    ),
}


class Model(NamedTuple):
    """The model of a config."""

    name: str  # a key of KINDS
    message: Message
    kind: Kind

    @property
    def path(self) -> str:
        """Of its message, e.g. `model.ssd`."""
        return f"model.{self.name}"

    @property
    def feature_extractor(self) -> Message:
        """Its feature_extractor message, at `<path>.feature_extractor`."""
        return self.kind.feature_extractor(self.message)

    @property
    def has_softmax(self) -> bool:
        """Whether its classes exclude each other."""
        name = self.kind.class_loss(self.message).WhichOneof("classification_loss") or self.kind.default_class_loss
        return "softmax" in name

    @property
    def predicts_probabilities(self) -> bool:
        """Whether class predictions leave the network as probabilities instead of logits."""
        predictor = self.kind.box_predictor and self.kind.box_predictor(self.message)
        return bool(predictor) and predictor.convolutional_box_predictor.apply_sigmoid_to_scores


def model_of(config: TrainEvalPipelineConfig) -> Model:
    """The model that a config describes.

    Raises:
      UserError: it describes none, or a kind that is not in KINDS.
    """
    name = config.model.WhichOneof("model")
    if name not in KINDS:
        raise UserError(f"model: found {name or 'nothing'}, expected {' or '.join(KINDS)}")
    return Model(name, getattr(config.model, name), KINDS[name])


def context_size(model: model_pb2.DetectionModel) -> tuple[int, int] | None:
    """What the `context_size` of the model's detector is."""
    context = model.faster_rcnn.context_config
    if not model.faster_rcnn.HasField("context_config") or not context.use_long_term_attention:
        return None
    return context.max_num_context_features, context.context_feature_length
