"""A SavedModel with one signature, `serving_default`, tagged `serve`; it loads without this package."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from od_finetune.export.signatures import input_spec, serving_function, side_input_specs
from od_finetune.fields import Detector

DIRECTORY_NAME = "saved_model"
INPUT_NAME = "input_tensor"
SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


class _Serving(tf.Module):
    """What is saved: inference as `__call__`, and the variables by canonical name.

    The attribute is called `model` so that `variables/variables` is laid out as a training checkpoint is.
    """

    def __init__(self, detector: Detector, input_type: str, specs: list[tf.TensorSpec]):
        super().__init__(name="detector")
        self.model = dict(detector.named_variables())
        # An instance attribute: the loader makes a loaded object callable when it finds one of this name.
        self.__call__ = tf.function(serving_function(detector, input_type), input_signature=specs, autograph=False)


def export(
    detector: Detector, directory: str | Path, input_type: str, input_shape: tuple[int | None, ...] | None = None
) -> Path:
    """Writes `directory/saved_model` for a detector that has its weights, and returns its path.

    `tf.saved_model.load(path)(tensor)` and its `signatures["serving_default"](input_tensor=tensor)` give the same
    dictionary of float32 outputs. What `signatures.side_input_specs` says is given after the tensor, by name in the
    signature.

    Raises:
      UserError: for an unknown `input_type` or an `input_shape` that does not fit it.
    """
    spec = input_spec(input_type, input_shape)
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=INPUT_NAME), *side_input_specs(detector, input_type)]
    detector.build()  # variables must exist before tracing: a graph may not create them
    path = Path(directory) / DIRECTORY_NAME
    module = _Serving(detector, input_type, specs)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: module.__call__.get_concrete_function()})
    return path
