"""Under which names published classification nets have EfficientNets."""

from __future__ import annotations

from typing import NamedTuple

from od_finetune.models.backbones import spellings
from od_finetune.names import FRAMEWORK_EPSILON, Rules, Vocabulary

_EPSILON = 1e-3  # of the networks that were trained in TensorFlow, and of their ports


class _Roles(NamedTuple):
    """Names of a block's convolutions and norms, `\\1` being its stack and `\\2` its place in it."""

    expand: tuple[str, str]
    depthwise: tuple[str, str]
    project: tuple[str, str]
    se_reduce: str
    se_expand: str


def _rules(
    stem: tuple[str, str], top: tuple[str, str], logits: str, expanding: _Roles, first: _Roles | None = None
) -> Rules:
    """From canonical layers to these; `first` is for blocks of stack 0, which do not expand."""
    rules: Rules = [(r"^.*/logits/", f"{logits}/")]
    for scope, (conv, norm) in (("stem", stem), ("top", top)):
        rules += [(rf"^.*/{scope}/BatchNorm/", f"{norm}/"), (rf"^.*/{scope}/", f"{conv}/")]
    for stack, roles in (("0", first), (r"\d+", expanding)):
        if roles is None:
            continue
        block = rf"^.*/stack_({stack})/block_(\d+)"
        for role in ("expand", "depthwise", "project"):
            conv, norm = getattr(roles, role)
            rules += [(rf"{block}/{role}/BatchNorm/", f"{norm}/"), (rf"{block}/{role}/", f"{conv}/")]
        rules += [(rf"{block}/se_reduce/", f"{roles.se_reduce}/"), (rf"{block}/se_expand/", f"{roles.se_expand}/")]
    return rules


def _counted(repeats: list[int], before: str, after: str) -> Rules:
    """`<before><stack>@<block><after>` -> the block's number in the whole network."""
    places = [(stack, block) for stack, count in enumerate(repeats) for block in range(count)]
    return [
        (rf"{before}{stack}@{block}{after}", f"{before}{number}{after}") for number, (stack, block) in enumerate(places)
    ]


def _timm() -> Vocabulary:
    """Of those whose name begins with `tf_`; the others differ in epsilon and padding."""
    at = r"blocks.\1.\2."
    excite = (f"{at}se.conv_reduce", f"{at}se.conv_expand")
    expanding = _Roles(
        (f"{at}conv_pw", f"{at}bn1"), (f"{at}conv_dw", f"{at}bn2"), (f"{at}conv_pwl", f"{at}bn3"), *excite
    )
    first = _Roles(expanding.expand, (f"{at}conv_dw", f"{at}bn1"), (f"{at}conv_pw", f"{at}bn2"), *excite)
    rules = _rules(("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier", expanding, first)
    return Vocabulary("timm", rules + spellings.TORCH, _EPSILON)


def _torchvision(version: str) -> Vocabulary:
    """Stages count from 1. Its B5 to B7 are ports, the smaller ones were trained in PyTorch."""

    def roles(start: int) -> _Roles:
        at = [rf"features.@\1.\2.block.{i + start}" for i in range(4)]
        convs = [(f"{scope}.0", f"{scope}.1") for scope in at]
        return _Roles(convs[0], convs[1], convs[3], f"{at[2]}.fc1", f"{at[2]}.fc2")

    rules = _rules(
        ("features.0.0", "features.0.1"), ("features.8.0", "features.8.1"), "classifier.1", roles(0), roles(-1)
    )
    rules += [(rf"^features\.@{stack}\.", f"features.{stack + 1}.") for stack in range(7)]
    epsilon = _EPSILON if version in ("b5", "b6", "b7") else FRAMEWORK_EPSILON
    return Vocabulary("torchvision", rules + spellings.TORCH, epsilon, pads_evenly=True)


def _efficientnet_pytorch(repeats: list[int]) -> Vocabulary:
    """The package of that name. Norms are numbered 0 to 2 whether or not a block expands."""
    at = r"_blocks.\1@\2."
    convs = [(f"{at}_{role}_conv", f"{at}_bn{i}") for i, role in enumerate(("expand", "depthwise", "project"))]
    rules = _rules(
        ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"), "_fc", _Roles(*convs, f"{at}_se_reduce", f"{at}_se_expand")
    )
    rules += [(pattern, name.replace("\\.", ".")) for pattern, name in _counted(repeats, r"_blocks\.", r"\.")]
    return Vocabulary("efficientnet_pytorch", rules + spellings.TORCH, _EPSILON)


def _tpu(version: str, repeats: list[int]) -> Vocabulary:
    """TensorFlow's first published checkpoints of the family: layers of one kind in a block count up."""
    net, norm = f"efficientnet-{version}", "tpu_batch_normalization"
    at = rf"{net}/blocks_\1@\2"
    excite = (f"{at}/se/conv2d", f"{at}/se/conv2d_1")
    depthwise = f"{at}/depthwise_conv2d"
    expand, second = (f"{at}/conv2d", f"{at}/{norm}"), (f"{at}/conv2d_1", f"{at}/{norm}_2")
    expanding = _Roles(expand, (depthwise, f"{at}/{norm}_1"), second, *excite)
    first = _Roles(expand, (depthwise, f"{at}/{norm}"), (f"{at}/conv2d", f"{at}/{norm}_1"), *excite)
    stem, top = ((f"{net}/{part}/conv2d", f"{net}/{part}/{norm}") for part in ("stem", "head"))
    rules = _rules(stem, top, f"{net}/head/dense", expanding, first) + _counted(repeats, "/blocks_", "/")
    return Vocabulary("TPU checkpoint", rules + spellings.KERAS, _EPSILON)


def _keras_applications() -> Vocabulary:
    """Stages count from 1, blocks are letters."""
    at = r"block@\1@\2@_"
    expanding = _Roles(
        (f"{at}expand_conv", f"{at}expand_bn"),
        (f"{at}dwconv", f"{at}bn"),
        (f"{at}project_conv", f"{at}project_bn"),
        f"{at}se_reduce",
        f"{at}se_expand",
    )
    rules = _rules(("stem_conv", "stem_bn"), ("top_conv", "top_bn"), "predictions", expanding)
    rules += [(rf"^block@{stack}@", f"block{stack + 1}@") for stack in range(7)]
    rules += [(rf"^(block\d)@{place}@", rf"\1{chr(ord('a') + place)}") for place in range(13)]
    return Vocabulary("Keras applications", rules + spellings.KERAS, _EPSILON)


def vocabularies(version: str, repeats: list[int]) -> tuple[Vocabulary, ...]:
    """Of one version (`b0` to `b7`), whose stacks have so many blocks."""
    return (
        _timm(),
        _torchvision(version),
        _efficientnet_pytorch(repeats),
        _tpu(version, repeats),
        _keras_applications(),
    )
