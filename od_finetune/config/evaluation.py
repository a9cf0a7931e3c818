"""EvalConfig -> metrics, and what pictures of detections show.

Acted on here: `metrics_set`, `parameterized_metric`, `include_metrics_per_category`, `all_metrics_per_category`,
`super_categories`; `min_score_threshold`, `max_num_boxes_to_visualize`, `skip_scores`, `skip_labels`,
`visualize_groundtruth_boxes`, `groundtruth_box_visualization_color`, `keypoint_edge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import ImageColor

from od_finetune.data.label_map import Label, LabelMap
from od_finetune.errors import UserError
from od_finetune.fields import Metric
from od_finetune.metrics.coco import CocoDetectionMetrics
from od_finetune.metrics.coco_keypoints import COCO_SIGMAS, CocoKeypointMetrics
from od_finetune.metrics.coco_masks import CocoMaskMetrics
from od_finetune.metrics.pascal_voc import PascalVocMetrics
from od_finetune.names import nearest
from od_finetune.protos import eval_pb2
from od_finetune.visualization import Style

DEFAULT = "coco_detection_metrics"
MASKS = "coco_mask_metrics"
KEYPOINTS = "coco_keypoint_metrics"
"""One metric for each class that has keypoints; `parameterized_metric` chooses classes and tolerances."""

Builder = Callable[[eval_pb2.EvalConfig, Mapping[int, str]], Metric]


def _coco(kind: type[CocoDetectionMetrics] | type[CocoMaskMetrics]) -> Builder:
    def build(config: eval_pb2.EvalConfig, names: Mapping[int, str]) -> Metric:
        return kind(
            names,
            per_category=config.include_metrics_per_category,
            all_per_category=config.all_metrics_per_category,
            super_categories=_super_categories(config, names),
        )

    return build


TABLE: dict[str, Builder] = {
    "coco_detection_metrics": _coco(CocoDetectionMetrics),
    MASKS: _coco(CocoMaskMetrics),
    "pascal_voc_detection_metrics": lambda config, names: PascalVocMetrics(names),
    "weighted_pascal_voc_detection_metrics": lambda config, names: PascalVocMetrics(names, weighted=True),
}
"""Name in `metrics_set` -> its builder."""

ELSEWHERE = frozenset(
    {
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
    """The metrics of `metrics_set` in its order, each once, COCO's when it is empty, as in the OD API; then those of
    `parameterized_metric`.

    Raises:
      UserError: an unknown metric, class or keypoint, or a super category of unknown categories.
    """
    names = label_map.names(use_display_name=True)
    metrics: list[Metric] = []
    for name in dict.fromkeys(eval_config.metrics_set or [DEFAULT]):
        if name == KEYPOINTS:
            metrics += _keypoints_of_all_classes(label_map)
        elif name not in TABLE:
            known = [*TABLE, KEYPOINTS]
            raise UserError(_unknown("metrics_set", "metric", name, known, name in ELSEWHERE))
        else:
            metrics.append(TABLE[name](eval_config, names))
    for index, parameterized in enumerate(eval_config.parameterized_metric):
        if not parameterized.HasField(KEYPOINTS):
            raise UserError(f"eval_config.parameterized_metric[{index}]: is empty, expected {KEYPOINTS}")
        field = f"parameterized_metric[{index}].{KEYPOINTS}"
        metrics.append(_keypoints(parameterized.coco_keypoint_metrics, label_map, field))
    return metrics


def _keypoints_of_all_classes(label_map: LabelMap) -> list[Metric]:
    labels = [label for label in label_map.labels if label.keypoints]
    if not labels:
        why = f"needs a class with keypoints, and {_no_keypoints(label_map)}"
        raise UserError(f"eval_config.metrics_set: {KEYPOINTS} {why}")
    return [CocoKeypointMetrics(label.id, label.display_name, _places(label), COCO_SIGMAS) for label in labels]


def _keypoints(config: eval_pb2.CocoKeypointMetrics, label_map: LabelMap, field: str) -> Metric:
    found = [label for label in label_map.labels if config.class_label in (label.display_name, label.name)]
    if not found:
        names = label_map.names(use_display_name=True).values()
        raise UserError(_unknown(f"{field}.class_label", "class", config.class_label, names))
    label, places = found[0], _places(found[0])
    if not places:
        raise UserError(f"eval_config.{field}.class_label: {_no_keypoints(label_map)} for {config.class_label!r}")
    for name, sigma in sorted(config.keypoint_label_to_sigmas.items()):
        if name not in places:
            raise UserError(_unknown(f"{field}.keypoint_label_to_sigmas", "keypoint", name, places))
        if not sigma > 0:
            raise UserError(f"eval_config.{field}.keypoint_label_to_sigmas[{name!r}] is {sigma}, expected more than 0")
    return CocoKeypointMetrics(label.id, label.display_name, places, config.keypoint_label_to_sigmas)


def _places(label: Label) -> dict[str, int]:
    return {name: place for place, name in label.keypoints}


def _no_keypoints(label_map: LabelMap) -> str:
    return f"{label_map.path} has no keypoints {{ id: 0 label: 'nose' }} ..."


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
        keypoint_edges=tuple((edge.start, edge.end) for edge in eval_config.keypoint_edge),
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
