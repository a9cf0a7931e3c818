"""The pictures of an evaluation, as eval_config wants them drawn."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from od_finetune import fields, files, visualization
from od_finetune.config import evaluation, label_map
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig


class Gallery:
    """Draws the evaluator's pictures and remembers those of the latest evaluation for one contact sheet."""

    def __init__(self, config: TrainEvalPipelineConfig) -> None:
        self._names = label_map.load_label_map(config.eval_input_reader[0].label_map_path).names(use_display_name=True)
        self._style = evaluation.build_style(config.eval_config)
        self._limit = max(1, config.eval_config.num_visualizations)
        self._pictures: list[np.ndarray] = []

    def __call__(self, batch: fields.Batch, detections: fields.Detections, index: int) -> np.ndarray:
        picture = visualization.draw_example(batch, detections, index, self._names, self._style)
        self._pictures = [*self._pictures, picture][-self._limit :]
        return picture

    def write(self, path: Path) -> None:
        if self._pictures:
            image = Image.fromarray(visualization.contact_sheet(self._pictures))
            stream = io.BytesIO()
            image.save(stream, "PNG")
            files.write_bytes(path, stream.getvalue())
