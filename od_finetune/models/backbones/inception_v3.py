"""Inception V3 (Szegedy et al. 2015, arXiv:1512.00567) as TF-Slim publishes it, some of its names uneven."""

from __future__ import annotations

from od_finetune.models.backbones import spellings
from od_finetune.models.backbones.inception import Conv, Fork, Mixed, Pool, Step, conv_names

_POOL, _REDUCE, _PROJECT = Pool("AvgPool_0a_3x3", "AVG"), "Conv2d_0a_1x1", "Conv2d_0b_1x1"


def _mixed_5(name: str, pooled: int, names: tuple[str, str] = (_REDUCE, "Conv2d_0b_5x5")) -> Mixed:
    """Windows of 1, 5 and twice 3."""
    return Mixed(
        name,
        (
            (Conv(_REDUCE, 64),),
            (Conv(names[0], 48), Conv(names[1], 64, 5)),
            (Conv(_REDUCE, 64), Conv("Conv2d_0b_3x3", 96, 3), Conv("Conv2d_0c_3x3", 96, 3)),
            (_POOL, Conv(_PROJECT, pooled)),
        ),
    )


def _mixed_6(name: str, inner: int) -> Mixed:
    """Windows of 7, each as a row and a column."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        name,
        (
            (Conv(_REDUCE, 192),),
            (Conv(_REDUCE, inner), Conv("Conv2d_0b_1x7", inner, row), Conv("Conv2d_0c_7x1", 192, column)),
            (
                Conv(_REDUCE, inner),
                Conv("Conv2d_0b_7x1", inner, column),
                Conv("Conv2d_0c_1x7", inner, row),
                Conv("Conv2d_0d_7x1", inner, column),
                Conv("Conv2d_0e_1x7", 192, row),
            ),
            (_POOL, Conv(_PROJECT, 192)),
        ),
    )


def _mixed_7(name: str, column_name: str) -> Mixed:
    """Rows and columns of 3 side by side."""
    one = Fork((Conv("Conv2d_0b_1x3", 384, (1, 3)), Conv(column_name, 384, (3, 1))))
    two = Fork((Conv("Conv2d_0c_1x3", 384, (1, 3)), Conv("Conv2d_0d_3x1", 384, (3, 1))))
    return Mixed(
        name,
        (
            (Conv(_REDUCE, 320),),
            (Conv(_REDUCE, 384), one),
            (Conv(_REDUCE, 448), Conv("Conv2d_0b_3x3", 384, 3), two),
            (_POOL, Conv(_PROJECT, 192)),
        ),
    )


_SHRINK = (Pool("MaxPool_1a_3x3", "MAX", 2, "valid"),)
_MIXED_6A = Mixed(
    "Mixed_6a",
    (
        (Conv("Conv2d_1a_1x1", 384, 3, 2, "valid"),),
        (Conv(_REDUCE, 64), Conv("Conv2d_0b_3x3", 96, 3), Conv("Conv2d_1a_1x1", 96, 3, 2, "valid")),
        _SHRINK,
    ),
    stride=2,
)
_MIXED_7A = Mixed(
    "Mixed_7a",
    (
        (Conv(_REDUCE, 192), Conv("Conv2d_1a_3x3", 320, 3, 2, "valid")),
        (
            Conv(_REDUCE, 192),
            Conv("Conv2d_0b_1x7", 192, (1, 7)),
            Conv("Conv2d_0c_7x1", 192, (7, 1)),
            Conv("Conv2d_1a_3x3", 192, 3, 2, "valid"),
        ),
        _SHRINK,
    ),
    stride=2,
)

STEPS: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 32, 3, 2, "valid"),
    Conv("Conv2d_2a_3x3", 32, 3, 1, "valid"),
    Conv("Conv2d_2b_3x3", 64, 3),
    Pool("MaxPool_3a_3x3", "MAX", 2, "valid"),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 3, 1, "valid"),
    Pool("MaxPool_5a_3x3", "MAX", 2, "valid"),
    _mixed_5("Mixed_5b", 32),
    _mixed_5("Mixed_5c", 64, (_PROJECT, "Conv_1_0c_5x5")),
    _mixed_5("Mixed_5d", 64),
    _MIXED_6A,
    _mixed_6("Mixed_6b", 128),
    _mixed_6("Mixed_6c", 160),
    _mixed_6("Mixed_6d", 160),
    _mixed_6("Mixed_6e", 192),
    _MIXED_7A,
    _mixed_7("Mixed_7b", "Conv2d_0b_3x1"),
    _mixed_7("Mixed_7c", "Conv2d_0c_3x1"),
)


def _numbered(name: str, *ends: object) -> list[str]:
    return [f"{name}_{end}" for end in ends]


# PyTorch's names of a block's convolutions, in the order of its branches here.
_TORCH_5 = ["branch1x1", *_numbered("branch5x5", 1, 2), *_numbered("branch3x3dbl", 1, 2, 3), "branch_pool"]
_TORCH_6 = ["branch1x1", *_numbered("branch7x7", 1, 2, 3), *_numbered("branch7x7dbl", 1, 2, 3, 4, 5), "branch_pool"]
_TORCH_7 = [
    "branch1x1",
    *_numbered("branch3x3", 1, "2a", "2b"),
    *_numbered("branch3x3dbl", 1, 2, "3a", "3b"),
    "branch_pool",
]
_TORCH = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _TORCH_5),
    "Mixed_6a": ["branch3x3", *_numbered("branch3x3dbl", 1, 2, 3)],
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _TORCH_6),
    "Mixed_7a": [*_numbered("branch3x3", 1, 2), *_numbered("branch7x7x3", 1, 2, 3, 4)],
    **dict.fromkeys(("Mixed_7b", "Mixed_7c"), _TORCH_7),
}


def _torch_layers() -> list[spellings.Layer]:
    layers = []
    for step in STEPS:
        scopes = conv_names("InceptionV3", step)
        names = [f"{step.name}.{name}" for name in _TORCH[step.name]] if step.name in _TORCH else [step.name]
        if scopes:
            layers += [
                spellings.Layer(scope, f"{name}.conv", f"{name}.bn")
                for scope, name in zip(scopes, names, strict=True)
            ]
    return layers


VOCABULARIES = (spellings.vocabulary("torchvision and timm", _torch_layers(), spellings.TORCH, epsilon=1e-3),)
