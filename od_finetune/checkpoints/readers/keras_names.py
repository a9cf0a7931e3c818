"""What Keras calls the variables in its files: from an HDF5 layout, and a model's config where the file has one.

Layers are read from the config as data: nothing is deserialised, so that a Lambda layer is but a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from od_finetune.checkpoints.readers.hdf5 import Contents

# Variables of layers in the order in which Keras stores them; those that a layer may lack are in _OPTIONAL.
_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "Conv2DTranspose": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel", "bias"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
    "GroupNormalization": ("gamma", "beta"),
}
_OPTIONAL = {"bias": "use_bias", "gamma": "scale", "beta": "center"}
_NORM_BY_COUNT = {4: _VARIABLES["BatchNormalization"], 3: ("beta", "moving_mean", "moving_variance")}
_INDEXED = re.compile(r"^(?:(.*)/)?vars/(\d+)$")
_NOT_OF_THE_MODEL = ("optimizer", "metrics", "loss", "_loss_tracker", "_metrics", "optimizer_weights")


class Layer(NamedTuple):
    """One layer of a model's config."""

    kind: str  # its class
    name: str
    settings: Mapping[str, Any]
    inner: tuple[Layer, ...]  # of a model within the model


def layers(config: Any) -> tuple[Layer, ...]:
    """The layers of a model's config, in order; none where it is something else."""
    inner = config.get("config") if isinstance(config, dict) else None
    listed = inner.get("layers") if isinstance(inner, dict) else inner  # Keras 2.1 and before: a list for Sequential
    if not isinstance(listed, list):
        return ()
    found = []
    for entry in listed:
        settings = entry.get("config") if isinstance(entry, dict) else None
        if isinstance(settings, dict):
            name = settings.get("name", entry.get("name", ""))
            found.append(Layer(str(entry.get("class_name", "")), str(name), settings, layers(entry)))
    return tuple(found)


def epsilons(model: Sequence[Layer], prefixes: bool = True, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(scope, epsilon) of every batch norm; with `prefixes`, the names of models around it are in the scope."""
    for layer in model:
        epsilon = layer.settings.get("epsilon")
        if layer.kind == "BatchNormalization" and isinstance(epsilon, (int, float)):
            yield prefix + layer.name, float(epsilon)
        yield from epsilons(layer.inner, prefixes, f"{prefix}{layer.name}/" if prefixes else "")


def legacy(contents: Contents) -> tuple[dict[str, str], dict[str, str]]:
    """(path by name of the model's weights, path by name of the rest) of a file with `layer_names`.

    That is `.h5` as Keras 2 writes it, weights alone or within `model_weights`, and as Keras 3 still does.
    """
    root = "model_weights/" if "model_weights" in contents.attributes else ""
    names: dict[str, str] = {}
    order = _listed(contents.attributes.get(root.rstrip("/"), {}), "layer_names")
    groups = [*order, *(["top_level_model_weights"] if "top_level_model_weights" not in order else [])]
    for group in groups:
        for weight in _listed(contents.attributes.get(root + group, {}), "weight_names"):
            path = f"{root}{group}/{weight}"
            if path not in contents.shapes:
                continue
            name = weight.removesuffix(":0")
            if "/" not in name or name in names:  # some versions of Keras 3 write a bare `kernel`
                name = f"{group}/{name}"
            names[name] = path
    taken = set(names.values())
    return names, {path.removesuffix(":0"): path for path in contents.shapes if path not in taken}


def indexed(contents: Contents, model: Sequence[Layer] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """The same of a file in Keras 3's layout (`.weights.h5`, and within `.keras`): `layers/conv2d_1/vars/0`.

    The layers' own names come from the config, else from the file (Keras 3.5 and later note them), else they are
    those of the layout.
    """
    known = dict(_by_path(model, "", ""))
    groups: dict[str, list[int]] = {}
    others: dict[str, str] = {}
    for path in contents.shapes:
        match = _INDEXED.match(path)
        if match is None or path.split("/")[0].rstrip("0123456789") in _NOT_OF_THE_MODEL:
            others[path] = path
        else:
            groups.setdefault(match[1] or "", []).append(int(match[2]))
    order = {path: position for position, path in enumerate(known)}
    names: dict[str, str] = {}
    for group in sorted(groups, key=lambda path: (order.get(path, len(order)), _natural(path))):
        prefix = f"{group}/" if group else ""
        paths = [f"{prefix}vars/{index}" for index in sorted(groups[group])]
        scope, layer = known.get(group, (_noted(contents, group), None))
        for leaf, path in zip(_leaves(contents, group, paths, layer), paths, strict=True):
            name = f"{scope}/{leaf}" if scope else leaf
            names[name if name not in names else path] = path
    return names, others


def short_names(names: Mapping[str, Any]) -> dict[str, str]:
    """`layer/weight` -> name, where models around the layer make the name longer and it stays unique without them."""
    short: dict[str, list[str]] = {}
    for name in names:
        short.setdefault("/".join(name.split("/")[-2:]), []).append(name)
    return {end: found[0] for end, found in short.items() if len(found) == 1 and end != found[0]}


def _listed(attributes: Mapping[str, Any], name: str) -> list[str]:
    """A list of names, which Keras splits where it is longer than an HDF5 attribute may be."""
    if name in attributes:
        return list(attributes[name])
    chunks: list[str] = []
    while f"{name}{len(chunks)}" in attributes:
        chunks.append(f"{name}{len(chunks)}")
    return [entry for chunk in chunks for entry in attributes[chunk]]


def _by_path(model: Sequence[Layer], path: str, scope: str) -> Iterator[tuple[str, tuple[str, Layer]]]:
    """(path in the layout, (scope, layer)) of every layer: classes in snake case, counted from the second on."""
    uses: dict[str, int] = {}
    for layer in model:
        snake = _snake(layer.kind)
        uses[snake] = uses.get(snake, -1) + 1
        inner = f"{path}layers/{snake}" + (f"_{uses[snake]}" if uses[snake] else "")
        yield inner, (scope + layer.name, layer)
        yield from _by_path(layer.inner, f"{inner}/", f"{scope}{layer.name}/")


def _snake(kind: str) -> str:
    """As Keras spells a class in a path: `Conv2D` -> `conv2d`, `BatchNormalization` -> `batch_normalization`."""
    name = re.sub(r"\W+", "", kind)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _noted(contents: Contents, group: str) -> str:
    """A layer's scope as the file notes it, level by level; else as the layout has it."""
    segments = group.split("/") if group else []
    scope, path = [], ""
    for segment in segments:
        path = f"{path}/{segment}" if path else segment
        noted = contents.attributes.get(f"{path}/vars", {}).get("name")
        if noted or segment != "layers":
            scope.append(noted or segment)
    return "/".join(scope)


def _leaves(contents: Contents, group: str, paths: Sequence[str], layer: Layer | None) -> list[str]:
    """What a layer's variables are called, by its class, else by the layout's name, their number and shapes."""
    kind = layer.kind if layer else next((kind for kind in _VARIABLES if _is_named(group, kind)), "")
    settings = layer.settings if layer else {}
    expected = [
        leaf for leaf in _VARIABLES.get(kind, ()) if leaf not in _OPTIONAL or settings.get(_OPTIONAL[leaf], True)
    ]
    ranks = [len(contents.shapes[path]) for path in paths]
    if len(expected) != len(paths):
        if kind == "BatchNormalization" or all(rank == 1 for rank in ranks):
            expected = list(_NORM_BY_COUNT.get(len(paths), ()))
        elif ranks in ([4], [2], [4, 1], [2, 1]):
            expected = ["depthwise_kernel" if kind == "DepthwiseConv2D" else "kernel", "bias"][: len(paths)]
    if len(expected) != len(paths):
        return [path.rpartition("/")[2] for path in paths]
    return expected


def _is_named(group: str, kind: str) -> bool:
    return re.fullmatch(_snake(kind) + r"(_\d+)?", group.rpartition("/")[2]) is not None


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]
