"""Keras' files: `.h5` (whole model or weights), `.weights.h5` and `.keras`. No layer is deserialised, no Lambda run."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from od_finetune.checkpoints.arrays import ArraySource
from od_finetune.checkpoints.readers import hdf5, keras_names
from od_finetune.errors import UnreadableError, UserError, first_line

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_MOST_CONFIG = 64 << 20  # bytes; that of a network of a thousand layers has one million
_MOST_INFLATED = 20  # bytes of weights per byte of archive; Keras stores them unpacked
_SLACK = 1 << 20
# What zipfile raises for damaged archives.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


def sniff(path: str) -> bool:
    """Whether `path` is an HDF5 file or a `.keras` archive."""
    return os.path.isfile(path) and (hdf5.sniff(path) or _is_archive(path))


def open_keras(path: str) -> ArraySource:
    """Opens the weights of a Keras model. Names are `layer/weight`, within a model in the model `model/layer/weight`.

    Raises:
      UnreadableError: the file is damaged or half written.
      UserError: it holds no weights, or something that weight files do not: links, foreign or inflated data.
    """
    if hdf5.sniff(path):
        contents = hdf5.load(path)
        config = _json(contents.attributes.get("", {}).get("model_config"), path)
    else:
        contents, config = _unzipped(path)
    model = keras_names.layers(config)
    root = contents.attributes.get("", {})
    old = "model_weights" in contents.attributes or any(name.startswith("layer_names") for name in root)
    weights, others = keras_names.legacy(contents) if old else keras_names.indexed(contents, model)
    plain = not weights
    if plain:  # HDF5 of another program
        weights, others = {name: name for name in contents.shapes}, {}
    if not weights:
        raise UserError(f"{path}: an HDF5 file without arrays; expected the weights of a Keras model.")
    # HDF5 keeps its groups sorted; Keras lists its layers in order in an attribute or in the model's config.
    has_order = not plain and (old or bool(model))
    return _source(path, contents, weights, others, model, "HDF5 file" if plain else _kind(path, old), has_order)


def _source(
    path: str,
    contents: hdf5.Contents,
    weights: Mapping[str, str],
    others: Mapping[str, str],
    model: tuple[keras_names.Layer, ...],
    kind: str,
    has_order: bool,
) -> ArraySource:
    places = {**others, **weights}
    aliases = keras_names.short_names(weights)
    for spelled in [*weights, *aliases]:  # Keras 3 calls a depthwise kernel `kernel`
        scope, _, leaf = spelled.rpartition("/")
        name = aliases.get(spelled, spelled)
        if leaf == "kernel" and len(contents.shapes[weights[name]]) == 4:
            aliases.setdefault(f"{scope}/depthwise_kernel", name)
    aliases = {spelled: name for spelled, name in aliases.items() if spelled not in weights}
    return ArraySource(
        path,
        kind,
        {name: contents.shapes[place] for name, place in weights.items()},
        lambda name: contents.read(places[name]),
        others={name: contents.shapes[place] for name, place in others.items()},
        second_names=aliases,
        epsilons=_epsilons(model, weights),
        has_order=has_order,
    )


def _epsilons(model: tuple[keras_names.Layer, ...], weights: Mapping[str, str]) -> dict[str, float]:
    """By scope as the weights' names have it: with all, some or none of the models around the layer."""
    found = {**dict(keras_names.epsilons(model, prefixes=False)), **dict(keras_names.epsilons(model))}
    epsilons = {}
    for scope in dict.fromkeys(name.rpartition("/")[0] for name in weights):
        segments = scope.split("/")
        ends = ["/".join(segments[first:]) for first in range(len(segments))]
        epsilon = next((found[end] for end in ends if end in found), None)
        if epsilon is not None:
            epsilons[scope] = epsilon
    return epsilons


def _kind(path: str, old: bool) -> str:
    if not hdf5.sniff(path):
        return "Keras archive (.keras)"
    return "Keras HDF5 file (.h5)" if old else "Keras weights file (.weights.h5)"


def _is_archive(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            return {_CONFIG, _WEIGHTS} <= set(archive.namelist())
    except _UNREADABLE:
        return False


def _unzipped(path: str) -> tuple[hdf5.Contents, Any]:
    """Weights and config of a `.keras` archive."""
    size = os.path.getsize(path)
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="od_finetune_keras_") as folder:
            config = _member(archive, _CONFIG, _MOST_CONFIG, path)
            unpacked = os.path.join(folder, _WEIGHTS)
            content = archive.getinfo(_WEIGHTS)
            if content.file_size > _MOST_INFLATED * size + _SLACK:
                raise UserError(f"{path}: refused: {_WEIGHTS} would unpack from {size} to {content.file_size} bytes.")
            with archive.open(content) as packed, open(unpacked, "wb") as output:
                _copy(packed, output, content.file_size)
            return hdf5.load(unpacked, f"{path}/{_WEIGHTS}"), _json(config.decode(errors="replace"), path)
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UnreadableError(
            f"{path}: a damaged or half-written Keras archive: {first_line(error)}. Copy or save it again."
        ) from None


def _member(archive: zipfile.ZipFile, name: str, most: int, path: str) -> bytes:
    with archive.open(name) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path}: refused: {name} unpacks to more than {most} bytes.")
    return content


def _copy(packed: Any, output: Any, size: int) -> None:
    left = size
    while chunk := packed.read(min(1 << 20, left)):
        output.write(chunk)
        left -= len(chunk)


def _json(text: Any, path: str) -> Any:
    """A model's config; None where the file has none."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: its model config is no JSON: {first_line(error)}. Save it again.") from None
