"""CenterNet's deep mask heads (DeepMAC) as a task, see `center_tasks`."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from od_finetune import fields
from od_finetune.boxes import center_deepmac
from od_finetune.boxes.center_grid import Grid
from od_finetune.models.detectors.center_tasks import Maps, Scene, Task, check_loaded, is_training
from od_finetune.models.heads.center import HeadSpec
from od_finetune.models.heads.mask_network import MaskNetwork
from od_finetune.models.keras_names import Numbering

INSTANCE, PIXEL = "INSTANCE_EMBEDDING", "PIXEL_EMBEDDING"
DEEP_MASK = "deep_mask_estimation"


@dataclasses.dataclass(frozen=True)
class DeepMasks(Task):
    """A mask per object, drawn by a network within the object's box: in training the labelled one.

    While training, the network also draws within the empty boxes that images are padded with. They are in no loss, but
    in what its batch norms learn from. So it is in the OD API, which cannot stack the boxes of a batch without padding.
    """

    targets: center_deepmac.DeepMasks
    embedding_size: int  # dim
    pixel_embedding_size: int  # pixel_embedding_dim
    network: MaskNetwork
    only_last: bool = False  # use_only_last_stage: learn from the network's last output alone

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        return HeadSpec(INSTANCE, self.embedding_size), HeadSpec(PIXEL, self.pixel_embedding_size)

    @property
    def modules(self) -> tuple[tf.Module, ...]:
        return (self.network,)

    def build(self) -> None:
        self.network.build()

    def losses(self, maps: Maps, groundtruth: fields.Groundtruth, grid: Grid) -> dict[str, tf.Tensor]:
        check_loaded("deepmac_mask_estimation", "load_instance_masks", groundtruth.masks)
        boxes, training = grid.place(groundtruth.boxes), is_training(maps)
        outputs = list(zip(maps[PIXEL], maps[INSTANCE], strict=True))
        logits = [self._draw(*both, boxes, grid, training) for both in (outputs[-1:] if self.only_last else outputs)]
        return {DEEP_MASK: self.targets.losses(logits, groundtruth, grid)}

    def decode(self, maps: dict[str, tf.Tensor], scene: Scene) -> Scene:
        logits = self._draw(maps[PIXEL], maps[INSTANCE], scene.boxes, scene.grid, training=False)
        return scene.knowing(masks=self.targets.decode(logits, scene.boxes, scene.grid))

    def _draw(self, pixels: tf.Tensor, instances: tf.Tensor, boxes: tf.Tensor, grid: Grid, training: bool) -> tf.Tensor:
        return self.network(*self.targets.head_inputs(pixels, instances, boxes, grid), training)

    def tf2_names(self, numbering: Numbering) -> dict[str, str]:
        return self.network.tf2_names(numbering)

    def tf2_objects(self) -> fields.ObjectTree:
        return {"_mask_net": self.network.tf2_objects(), "_deepmac_params": {}}
