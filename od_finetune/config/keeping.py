"""train_config's keep_classes -> what training does for the outputs of the classes to keep."""

from __future__ import annotations

from od_finetune import fields
from od_finetune.config.class_transfer import KeptClasses
from od_finetune.config.detector import build_detector
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig
from od_finetune.training import checkpointing, distillation


def kept_outputs(
    detector: fields.Detector, kept: KeptClasses, config: TrainEvalPipelineConfig, model_dir: str
) -> distillation.KeptOutputs:
    """What training does for the outputs of kept classes; their teacher is the detector as it is, and in a run that
    goes on the one as it was when the run began."""
    teacher = None
    if kept.distillation_weight:
        if not checkpointing.candidates(model_dir):
            distillation.save_teacher(detector, model_dir)
        teacher = build_detector(config.model)
        teacher.build()
        distillation.load_teacher(teacher, model_dir)
    classes = [id_ - 1 for id_ in kept.ids.values()]
    return distillation.KeptOutputs(classes, teacher, kept.distillation_weight, kept.softmax, kept.labelled)
