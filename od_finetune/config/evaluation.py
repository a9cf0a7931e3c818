"""EvalConfig -> metrics, and what pictures of detections show.

Acted on here: `metrics_set`, `include_metrics_per_category`, `all_metrics_per_category`, `super_categories`;
`min_score_threshold`, `max_num_boxes_to_visualize`, `skip_scores`, `skip_labels`, `visualize_groundtruth_boxes`,
`groundtruth_box_visualization_color`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import ImageColor

from od_finetune.data.label_map import LabelMap
from od_finetune.errors import UserError
from od_finetune.fields import Metric
from od_finetune.metrics.coco import CocoDetectionMetrics
from od_finetune.metrics.pascal_voc import PascalVocMetrics
from od_finetune.names import nearest
from od_finetune.protos import eval_pb2
from od_finetune.visualization import Style

DEFAULT = "coco_detection_metrics"


def _coco(config: eval_pb2.EvalConfig, names: Mapping[int, str]) -> Metric:
    return CocoDetectionMetrics(
        names,
        per_category=config.include_metrics_per_category,
        all_per_category=config.all_metrics_per_category,
        super_categories=_super_categories(config, names),
    )


TABLE: dict[str, Callable[[eval_pb2.EvalConfig, Mapping[int, str]], Metric]] = {
    "coco_detection_metrics": _coco,
    "pascal_voc_detection_metrics": lambda config, names: PascalVocMetrics(names),
    "weighted_pascal_voc_detection_metrics": lambda config, names: PascalVocMetrics(names, weighted=True),
}
"""Name in `metrics_set` -> its builder."""

ELSEWHERE = frozenset(
    {
        "coco_keypoint_metrics",
        "coco_mask_metrics",
        "coco_panoptic_metrics",
        "lvis_mask_metrics",
        "oid_V2_detection_metrics",
        "oid_challenge_detection_metrics",
        "oid_challenge_segmentation_metrics",
        "open_images_V2_detection_metrics",
        "open_images_detection_metrics",
        "pascal_voc_instance_segmentation_metrics",
        "precision_at_recall_detection_metrics",
        "weighted_pascal_voc_instance_segmentation_metrics",
    }
)
"""Names that the OD API has a metric for and this project has not."""


def build_metrics(eval_config: eval_pb2.EvalConfig, label_map: LabelMap) -> list[Metric]:
    """The metrics of `metrics_set` in its order, each once; COCO's when it is empty, as in the OD API.

    Raises:
      UserError: an unknown metric, or a super category of unknown categories.
    """
    names = label_map.names(use_display_name=True)
    metrics = []
    for name in dict.fromkeys(eval_config.metrics_set or [DEFAULT]):
        if name not in TABLE:
            raise UserError(_unknown("metrics_set", "metric", name, TABLE, name in ELSEWHERE))
        metrics.append(TABLE[name](eval_config, names))
    return metrics


def build_style(eval_config: eval_pb2.EvalConfig) -> Style:
    """What pictures of detections beside ground truth show.

    Raises:
      UserError: an unknown colour.
    """
    color = eval_config.groundtruth_box_visualization_color
    try:
        rgb = ImageColor.getrgb(color)[:3]
    except ValueError as error:
        text = _unknown("groundtruth_box_visualization_color", "colour", color, ImageColor.colormap)
        raise UserError(text) from error
    return Style(
        min_score=eval_config.min_score_threshold,
        max_boxes=eval_config.max_num_boxes_to_visualize,
        skip_scores=eval_config.skip_scores,
        skip_labels=eval_config.skip_labels,
        groundtruth_on_prediction=eval_config.visualize_groundtruth_boxes,
        groundtruth_color=rgb,
    )


def _super_categories(config: eval_pb2.EvalConfig, names: Mapping[int, str]) -> dict[str, Sequence[str]]:
    """Super category -> its categories, which the config lists in one string with commas."""
    groups = {}
    for group, text in sorted(config.super_categories.items()):
        groups[group] = [member.strip() for member in text.split(",") if member.strip()]
        for member in groups[group]:
            if member not in names.values():
                raise UserError(_unknown(f"super_categories[{group!r}]", "category", member, names.values()))
    return groups


def _unknown(field: str, kind: str, name: str, known: Any, elsewhere: bool = False) -> str:
    why = " is not supported here" if elsewhere else f" is no known {kind}"
    near = nearest(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near and not elsewhere else ""
    return f"eval_config.{field}: {name!r}{why}{hint} Expected one of: {', '.join(sorted(known))}"
