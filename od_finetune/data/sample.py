"""One labelled image on its way from the record to the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

CLASSES = "classes"  # int32 [N], label ids from 1
WEIGHTS = "weights"  # float32 [N]
IS_CROWD = "is_crowd"  # bool [N]
DIFFICULT = "difficult"  # bool [N]
GROUP_OF = "group_of"  # bool [N]
AREA = "area"  # float32 [N], pixels of the original image, 0 where the record gives none

# Only where the input reader loads them; named as the fields of `Groundtruth`. `K` keypoints, `P` DensePose points.
MASKS = "masks"  # uint8 [N, H, W], 1 on the object
KEYPOINTS = "keypoints"  # float32 [N, K, 2], normalised y and x; NaN where not labelled
KEYPOINT_VISIBILITIES = "keypoint_visibilities"  # bool [N, K]
KEYPOINT_DEPTHS = "keypoint_depths"  # float32 [N, K]
KEYPOINT_DEPTH_WEIGHTS = "keypoint_depth_weights"  # float32 [N, K]
DENSE_POSE_NUM_POINTS = "dense_pose_num_points"  # int32 [N]
DENSE_POSE_PART_IDS = "dense_pose_part_ids"  # int32 [N, P], 0-based
DENSE_POSE_SURFACE_COORDS = "dense_pose_surface_coords"  # float32 [N, P, 4]: normalised y and x, v, u
TRACK_IDS = "track_ids"  # int32 [N]
PER_KEYPOINT = (KEYPOINTS, KEYPOINT_VISIBILITIES, KEYPOINT_DEPTHS, KEYPOINT_DEPTH_WEIGHTS)
DENSE_POSE = (DENSE_POSE_NUM_POINTS, DENSE_POSE_PART_IDS, DENSE_POSE_SURFACE_COORDS)
OPTIONAL = (MASKS, *PER_KEYPOINT, *DENSE_POSE, TRACK_IDS)


class Sample(NamedTuple):
    """What an augmentation step takes and gives.

    Whatever moves the image moves `boxes`, masks and points; whatever drops boxes drops the same rows of `boxes` and
    of every tensor of `objects`.
    """

    image: tf.Tensor  # uint8 or float32 [H, W, 3], 0..255
    boxes: tf.Tensor  # float32 [N, 4], normalised ymin, xmin, ymax, xmax
    objects: dict[str, tf.Tensor]  # by the names above, each [N, ...]

    def select(self, keep: tf.Tensor) -> Sample:
        """Only the boxes whose row of `keep` (bool `[N]`) is true, in their order."""
        rows = tf.where(keep)[:, 0]
        return self._replace(
            boxes=tf.gather(self.boxes, rows),
            objects={name: tf.gather(values, rows) for name, values in self.objects.items()},
        )


Step = Callable[[Sample, tf.Tensor], Sample]
"""An augmentation step with its options bound: (sample, seed int32 [2]) -> sample. Equal seeds, equal results."""
