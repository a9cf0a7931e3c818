"""A config in which lint finds nothing, and picking from what it finds in others."""

from __future__ import annotations

from od_finetune.config.finding import Finding

CONFIG = """\
model {{
  ssd {{
    num_classes: 2
    image_resizer {{ fixed_shape_resizer {{ height: 64 width: 64 }} }}
    feature_extractor {{ type: "ssd_mobilenet_v1" num_layers: 2 }}
    box_coder {{ faster_rcnn_box_coder {{ }} }}
    matcher {{ argmax_matcher {{ }} }}
    similarity_calculator {{ iou_similarity {{ }} }}
    box_predictor {{ convolutional_box_predictor {{ }} }}
    anchor_generator {{ ssd_anchor_generator {{ num_layers: 2 aspect_ratios: 1.0 }} }}
    loss {{
      localization_loss {{ weighted_smooth_l1 {{ }} }}
      classification_loss {{ weighted_sigmoid {{ }} }}
    }}
  }}
}}
train_config {{
  batch_size: 2
  num_steps: 10
  optimizer {{
    momentum_optimizer {{ learning_rate {{ constant_learning_rate {{ }} }} }}
    use_moving_average: false
  }}
}}
train_input_reader {{
  label_map_path: "{folder}/labels.pbtxt"
  tf_record_input_reader {{ input_path: "{folder}/train-*.record" }}
}}
eval_config {{ metrics_set: "coco_detection_metrics" }}
eval_input_reader {{
  label_map_path: "{folder}/labels.pbtxt"
  tf_record_input_reader {{ input_path: "{folder}/train-0.record" }}
}}
"""
LABELS = "item { id: 1 name: 'cat' }\nitem { id: 2 name: 'dog' }\n"


def only(found: list[Finding], severity: str) -> list[Finding]:
    """The findings of one severity."""
    return [finding for finding in found if finding.severity == severity]
