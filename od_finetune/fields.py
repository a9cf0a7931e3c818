"""Records that travel between the parts of od_finetune, and the protocols that detectors and metrics fulfil.

Boxes are float32 `[ymin, xmin, ymax, xmax]`, normalised to the image (0..1) unless a docstring says
otherwise. `B` is the batch, `N` the padded number of ground-truth boxes, `A` the number of anchors, `D` the
largest number of detections, `C` the number of classes without background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras

    from od_finetune.names import Vocabulary

BOX_ENCODINGS = "box_encodings"
CLASS_PREDICTIONS = "class_predictions_with_background"
FEATURE_MAPS = "feature_maps"
ANCHORS = "anchors"

CONTEXT_KEY = "image/context_features"  # of a record: floats, row by row
CONTEXT_LENGTH_KEY = "image/context_feature_length"  # of a row; may be absent

LOSSES = "Loss/"  # what the names of losses begin with
LOCALIZATION_LOSS = "Loss/localization_loss"
CLASSIFICATION_LOSS = "Loss/classification_loss"
REGULARIZATION_LOSS = "Loss/regularization_loss"
DISTILLATION_LOSS = "Loss/distillation_loss"
TOTAL_LOSS = "Loss/total_loss"


ObjectTree = dict[str, "ObjectTree | str"]
"""Objects of a TF2 checkpoint's object graph by the attribute that holds them. A string is a variable, by its canonical
name. One dict in two places is one object."""


class Groundtruth(NamedTuple):
    """Labelled objects of a batch of images, padded to one length (without `B` for a single image)."""

    boxes: tf.Tensor  # float32 [B, N, 4]; zeros where padded
    classes: tf.Tensor  # float32 [B, N, C]; one-hot (k-hot where merged)
    weights: tf.Tensor  # float32 [B, N]; 0 where padded
    num_boxes: tf.Tensor  # int32 [B]; how many of the N are real
    is_crowd: tf.Tensor  # bool [B, N]
    difficult: tf.Tensor  # bool [B, N]
    group_of: tf.Tensor  # bool [B, N]
    area: tf.Tensor  # float32 [B, N], in pixels of the original image; 0 where the record gives none
    # None where the input reader does not load them; `K` keypoints, `P` DensePose points, zeros where padded.
    masks: tf.Tensor | None = None  # uint8 [B, N, H, W], 1 on the object, in the frame of the images
    keypoints: tf.Tensor | None = None  # float32 [B, N, K, 2], normalised y and x as boxes are; NaN where not labelled
    keypoint_visibilities: tf.Tensor | None = None  # bool [B, N, K]
    keypoint_depths: tf.Tensor | None = None  # float32 [B, N, K]
    keypoint_depth_weights: tf.Tensor | None = None  # float32 [B, N, K]
    dense_pose_num_points: tf.Tensor | None = None  # int32 [B, N]
    dense_pose_part_ids: tf.Tensor | None = None  # int32 [B, N, P], 0-based
    dense_pose_surface_coords: tf.Tensor | None = None  # float32 [B, N, P, 4]: y, x normalised as boxes are, v, u
    track_ids: tf.Tensor | None = None  # int32 [B, N]
    temporal_offsets: tf.Tensor | None = None  # float32 [B, N, 2], to the centre a frame before, normalised
    track_match_flags: tf.Tensor | None = None  # float32 [B, N]; 1 where the object is in the frame before too


class ContextBank(NamedTuple):
    """Features of objects in other images of the same camera, for a detector that looks there."""

    features: tf.Tensor  # float32 [B, M, F]; anything where padded
    size: tf.Tensor  # int32 [B]; how many of the M are real


class Batch(NamedTuple):
    """What a dataset yields."""

    images: tf.Tensor  # float32 [B, H, W, 3], values 0..255, after the config's image_resizer (not normalised)
    true_shapes: tf.Tensor  # int32 [B, 3]: height, width, channels of the part of `images` that is no padding
    groundtruth: Groundtruth  # boxes are relative to that true part
    keys: tf.Tensor  # string [B]: "file:record number source_id", to name a record in an error
    source_ids: tf.Tensor  # string [B]: the record's image/source_id (or its filename)
    original_shapes: tf.Tensor  # int32 [B, 2]: height, width before any resizing
    context: ContextBank | None = None  # where the input reader loads it

    @property
    def side_inputs(self) -> dict[str, ContextBank]:
        """What `Detector.predict` takes by name beside the images; of most detectors nothing."""
        return {} if self.context is None else {"context": self.context}


class Stage(NamedTuple):
    """One step of a detector's network, with the variables that belong to it."""

    names: tuple[str, ...]  # its own, then others it is known by: `stage3` for the last step at an eighth of the input
    variables: tuple[str, ...]  # canonical, in the order of the forward pass


class ClassLayout(NamedTuple):
    """What the last axis of a class predictor's variable holds: `groups x slots x width` outputs, nested in that order.

    Of an SSD the groups are the anchors of a location, of an R-FCN the bins of its position-sensitive maps; a Faster
    R-CNN or CenterNet has one. The width is 1 for class scores and masks, 4 for boxes predicted per class.
    """

    groups: int
    slots: int  # one per class, and one for the background where there is one
    background: int | None = None  # the background's slot
    width: int = 1

    @property
    def size(self) -> int:
        """Length of the axis."""
        return self.groups * self.slots * self.width

    @property
    def num_classes(self) -> int:
        """Without background."""
        return self.slots - (self.background is not None)

    def slot(self, index: int) -> int:
        """The slot of a class, 0-based (label id minus 1)."""
        return index + (self.background is not None and index >= self.background)


class Detections(NamedTuple):
    """Final detections of a batch, best first, and the raw ones they were selected from."""

    boxes: tf.Tensor  # float32 [B, D, 4], relative to the true part of the image
    scores: tf.Tensor  # float32 [B, D]
    classes: tf.Tensor  # int32 [B, D], 0-based (label id minus 1)
    num_detections: tf.Tensor  # int32 [B]
    multiclass_scores: tf.Tensor  # float32 [B, D, C + 1] (with background) or [B, D, C]
    anchor_indices: tf.Tensor  # int32 [B, D]
    raw_boxes: tf.Tensor  # float32 [B, A, 4]
    raw_scores: tf.Tensor  # float32 [B, A, C + 1]
    # None where the detector has no such head
    masks: tf.Tensor | None = None  # float32 [B, D, h, w], probabilities within the box, whatever its size
    keypoints: tf.Tensor | None = None  # float32 [B, D, K, 2], y and x relative to the true part of the image
    keypoint_scores: tf.Tensor | None = None  # float32 [B, D, K]
    keypoint_depths: tf.Tensor | None = None  # float32 [B, D, K]
    surface_coords: tf.Tensor | None = None  # float32 [B, D, h, w, 2], DensePose v and u within the box
    embeddings: tf.Tensor | None = None  # float32 [B, D, E], of tracking
    temporal_offsets: tf.Tensor | None = None  # float32 [B, D, 2]


class Metric(Protocol):
    """Gathers images batch by batch and sums them up."""

    primary: str
    """Which of the results says best how good a detector is."""

    def reset(self) -> None:
        """Forgets all images."""

    def update(self, batch: Batch, detections: Detections) -> None:
        """Adds the images of a batch (eager values)."""

    def result(self) -> dict[str, float]:
        """Finite floats by metric name; -1 where there was nothing to measure."""


class Detector(Protocol):
    """What training, evaluation, restoring and export need of a detector. `training` is always an argument."""

    num_classes: int
    context_size: tuple[int, int] | None
    """Of the context bank that `predict` takes by the name `context`: rows at most, and their length; None: of none."""

    def resize(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[H, W, 3]` (0..255, any dtype) -> float32 `[h, w, 3]` and its true shape int32 `[3]`."""

    def normalize(self, images: tf.Tensor, true_shapes: tf.Tensor | None = None) -> tf.Tensor:
        """Resized images (0..255) -> what the network takes.

        Of a batch of images of different sizes, `true_shapes` int32 `[B, 3]` tells how far each goes: what fills it up
        to the batch's largest becomes 0, whatever it was.
        """

    def preprocess(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`[B, H, W, 3]` (0..255) -> resized and normalised `[B, h, w, 3]` and true shapes int32 `[B, 3]`."""

    def predict(self, inputs: tf.Tensor, true_shapes: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Normalised inputs -> raw predictions by name."""

    def losses(self, predictions: dict[str, tf.Tensor], groundtruth: Groundtruth) -> dict[str, tf.Tensor]:
        """Weighted scalar losses by name; their sum is what is minimised (without regularisation)."""

    def postprocess(self, predictions: dict[str, tf.Tensor], true_shapes: tf.Tensor) -> Detections:
        """Raw predictions -> final detections."""

    def build(self) -> None:
        """Creates all variables; idempotent."""

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable by canonical name, moving statistics included, in a fixed order."""

    def weighted_layers(self) -> dict[str, tf_keras.layers.Layer]:
        """Every layer that owns variables, by canonical scope (`<scope>/<leaf>` are its variables' names).

        A batch norm layer whose `trainable` is False runs in inference mode even while training. One that the model's
        config has so has the attribute `keeps_statistics`, True. A layer of which training changes nothing has the
        attribute `frozen`, True, which may be absent: a block of a backbone whose layers are all frozen is never
        dropped at random. Dropout in heads goes on.
        """

    def regularizers(self) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
        """Regulariser by canonical variable name, for the variables that have one."""

    def tf2_names(self) -> dict[str, str]:
        """Canonical name -> the full name the OD API's TF2 checkpoints store for the same variable."""

    def tf2_objects(self) -> ObjectTree:
        """The detector's node in the object graph of the OD API's TF2 checkpoints.

        Raises:
          UserError: the OD API's TF2 half has no such detector.
        """

    def vocabularies(self) -> tuple[Vocabulary, ...]:
        """Under which names published classification nets have the backbone."""

    def part(self, name: str) -> str:
        """`backbone`, `neck` or `head`: what a canonical variable name belongs to."""

    def stages(self) -> list[Stage]:
        """The steps of the network, from the input on, each with its `names` and canonical `variables`; every variable
        belongs to exactly one."""

    def is_class_head(self, name: str) -> bool:
        """Whether this variable's shape depends on the number of classes."""

    def class_layout(self, name: str) -> ClassLayout | None:
        """Where in a variable each class has its outputs; None for a variable that is the same for all classes."""
