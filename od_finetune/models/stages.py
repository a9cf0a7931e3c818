"""The steps of a network by name, from the input on: by them people say how deep to freeze."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from od_finetune.fields import Stage
from od_finetune.models import layers


class Block(NamedTuple):
    """One step of a backbone."""

    name: str  # e.g. `layer_7`
    stride: int  # of this step alone
    module: object  # the tf.Module, or a list of them, that does it
    aliases: tuple[str, ...] = ()  # further names, e.g. `block2` for the last of several units


def backbone_stages(blocks: Iterable[Block]) -> list[Stage]:
    """A stage per block. The last block at a resolution of 1 / 2^k is also known as `stage<k>`, as in Gluon and
    torchvision's ResNets; the very last also as `backbone`."""
    blocks = list(blocks)
    halvings = []
    for block in blocks:
        halvings.append((halvings[-1] if halvings else 0) + (block.stride > 1))
    stages = []
    for index, block in enumerate(blocks):
        names = [block.name, *block.aliases]
        if index + 1 == len(blocks) or halvings[index + 1] > halvings[index]:
            names.append(f"stage{halvings[index]}")
        if index + 1 == len(blocks):
            names.append("backbone")
        stages.append(Stage(tuple(dict.fromkeys(names)), _variables(block.module)))
    return stages


def block_stages(blocks: Iterable[Block]) -> list[Stage]:
    """A stage per block, under its own names: of what comes after the backbone's first stage."""
    return [Stage((block.name, *block.aliases), _variables(block.module)) for block in blocks]


def part_stage(name: str, module: tf.Module) -> list[Stage]:
    """The one stage that a neck or a head is; none where it has no variables."""
    variables = _variables(module)
    return [Stage((name,), variables)] if variables else []


def _variables(module: object) -> tuple[str, ...]:
    return tuple(layers.named_variables(module))
