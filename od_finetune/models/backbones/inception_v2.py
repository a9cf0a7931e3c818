"""Inception V2, the batch-normalised Inception (Ioffe & Szegedy 2015, arXiv:1502.03167) as TF-Slim publishes it: its
first convolution is separable."""

from __future__ import annotations

from od_finetune.models.backbones.inception import Conv, Mixed, Pool, Separable, Step


def _reduced(filters: int) -> Conv:
    return Conv("Conv2d_0a_1x1", filters, stddev=0.09)


def _mixed(name: str, plain: int, one: tuple[int, int], two: tuple[int, int], pooled: int, kind: str = "AVG") -> Mixed:
    """A 1x1; a 3x3; two 3x3 of the same filters, each behind a narrower 1x1; a pooling with a 1x1 behind."""
    pool = Pool(f"{kind.capitalize()}Pool_0a_3x3", kind)
    return Mixed(
        name,
        (
            (Conv("Conv2d_0a_1x1", plain),),
            (_reduced(one[0]), Conv("Conv2d_0b_3x3", one[1], 3)),
            (_reduced(two[0]), Conv("Conv2d_0b_3x3", two[1], 3), Conv("Conv2d_0c_3x3", two[1], 3)),
            (pool, Conv("Conv2d_0b_1x1", pooled, stddev=0.1)),
        ),
    )


def _halving(name: str, one: tuple[int, int], two: tuple[int, int]) -> Mixed:
    """To half the resolution."""
    return Mixed(
        name,
        (
            (_reduced(one[0]), Conv("Conv2d_1a_3x3", one[1], 3, 2)),
            (_reduced(two[0]), Conv("Conv2d_0b_3x3", two[1], 3), Conv("Conv2d_1a_3x3", two[1], 3, 2)),
            (Pool("MaxPool_1a_3x3", "MAX", 2),),
        ),
        stride=2,
    )


# From the image on.
FIRST: tuple[Step, ...] = (
    Separable("Conv2d_1a_7x7", 64, 7, 2, multiplier=8, stddev=1.0),
    Pool("MaxPool_2a_3x3", "MAX", 2),
    Conv("Conv2d_2b_1x1", 64, stddev=0.1),
    Conv("Conv2d_2c_3x3", 192, 3),
    Pool("MaxPool_3a_3x3", "MAX", 2),
    _mixed("Mixed_3b", 64, (64, 64), (64, 96), 32),
    _mixed("Mixed_3c", 64, (64, 96), (64, 96), 64),
    _halving("Mixed_4a", (128, 160), (64, 96)),
    _mixed("Mixed_4b", 224, (64, 96), (96, 128), 128),
    _mixed("Mixed_4c", 192, (96, 128), (96, 128), 128),
    _mixed("Mixed_4d", 160, (128, 160), (128, 160), 96),
    _mixed("Mixed_4e", 96, (128, 192), (160, 192), 96),
)
# What a Faster R-CNN runs on each proposal.
LAST: tuple[Step, ...] = (
    _halving("Mixed_5a", (128, 192), (192, 256)),
    _mixed("Mixed_5b", 352, (192, 320), (160, 224), 128),
    _mixed("Mixed_5c", 352, (192, 320), (192, 224), 128, "MAX"),
)
STEPS = (*FIRST, *LAST)
