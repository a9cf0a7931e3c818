"""Whether two detectors that hold the same weights are the same detector: in what they compute and how they train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from od_finetune.errors import UserError
from od_finetune.fields import BOX_ENCODINGS, CLASS_PREDICTIONS, Detector

_TOLERANCE = 1e-4  # of an output's standard deviation: other kernels sum in another order


def transfer(detector: Detector, other: Detector) -> list[str]:
    """Runs both on the same noise with the same random weights, compares, then gives the other the detector's weights.

    Returns:
      Sentences on how they differ in training only: which weights decay.

    Raises:
      UserError: they have other variables, other outputs or other batch norms; the message says which.
    """
    variables, others = detector.named_variables(), other.named_variables()
    differing = [
        f"{name} is {_shape(variables.get(name))} here, {_shape(others.get(name))} there"
        for name in sorted(variables.keys() | others.keys())
        if _shape(variables.get(name)) != _shape(others.get(name))
    ]
    if differing:
        raise UserError(f"{len(differing)} variables differ, e.g. {'; '.join(differing[:3])}")
    problems = [*_norms(detector, other), *_outputs(detector, other)]
    if problems:
        raise UserError("; ".join(problems[:3]))
    for name, variable in variables.items():
        others[name].assign(variable)
    return list(_decay(detector, other))


def _shape(variable: tf.Variable | None) -> str:
    return "missing" if variable is None else str(tuple(variable.shape))


def _norms(detector: Detector, other: Detector) -> Iterator[str]:
    theirs = other.weighted_layers()
    for scope, layer in detector.weighted_layers().items():
        for attribute in ("momentum", "epsilon", "keeps_statistics"):
            here, there = getattr(layer, attribute, None), getattr(theirs[scope], attribute, None)
            if here != there:
                yield f"{scope} has {attribute} {here} here, {there} there"


def _outputs(detector: Detector, other: Detector) -> Iterator[str]:
    variables, others = detector.named_variables(), other.named_variables()
    kept = {name: variable.numpy() for name, variable in variables.items()}
    generator = np.random.default_rng(0)
    noise = generator.uniform(0, 255, (1, 160, 160, 3)).astype(np.float32)
    inputs, shapes = detector.preprocess(tf.constant(noise))
    try:
        for name, variable in variables.items():
            value = _random(name, tuple(variable.shape), generator)
            variable.assign(value)
            others[name].assign(value)
        here, there = (each.predict(inputs, shapes) for each in (detector, other))
    finally:
        for name, value in kept.items():
            variables[name].assign(value)
    for key in (BOX_ENCODINGS, CLASS_PREDICTIONS):
        difference = np.abs(here[key] - there[key]).max()
        if not difference <= _TOLERANCE * np.std(here[key]):
            yield f"{key} of the same image differ by up to {difference:.3g}"


def _random(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Kernels that keep the spread of activations (He et al. 2015), biases wide enough for every one of these to clip
    (ReLU6 has to be told from ReLU), and batch norms that do nothing else: a trained network may do neither."""
    leaf = name.rpartition("/")[2]
    if leaf.endswith("weights"):
        inputs = np.prod(shape[:2] if leaf == "depthwise_weights" else shape[:-1])
        return generator.normal(0, np.sqrt(2 / inputs), shape)
    if leaf in ("beta", "biases"):
        return generator.normal(0, 3, shape)
    return np.zeros(shape) if leaf == "moving_mean" else np.ones(shape)


def _decay(detector: Detector, other: Detector) -> Iterator[str]:
    here, there = detector.regularizers().keys(), other.regularizers().keys()
    for names, which in ((here - there, "not there"), (there - here, "there only")):
        if names:
            yield f"{len(names)} variables decay {which}, e.g. {min(names)}"
