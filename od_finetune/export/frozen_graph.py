"""One GraphDef file with the weights as constants, for `tf.compat.v1.Session` and everything that reads those."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph
from tensorflow.python.grappler import tf_optimizer
from tensorflow.types.experimental import ConcreteFunction

from od_finetune.export.signatures import trace
from od_finetune.fields import Detector

FILE_NAME = "frozen_inference_graph.pb"

# Rewrites that leave the arithmetic as it is. No fusing: fused kernels exist on some devices only.
_OPTIMIZERS = ("debug_stripper", "pruning", "constfold", "dependency", "pruning")


def freeze(function: ConcreteFunction) -> tf.compat.v1.GraphDef:
    """A traced function (`signatures.trace`) as a GraphDef without variables, functions, assertions or devices.

    The placeholder keeps its name and every output is a node named by its key.
    """
    outputs = list(function.structured_outputs)
    # Lowering turns While and If into Switch, Merge and the like, which sessions of every version run.
    _, graph_def = convert_variables_to_constants_v2_as_graph(function, lower_control_flow=True)
    graph_def = _optimize(graph_def, outputs)
    for node in graph_def.node:
        node.device = ""
        for attribute in [name for name in node.attr if name.startswith("_")]:
            del node.attr[attribute]
    return graph_def


def write(function: ConcreteFunction, directory: str | Path) -> Path:
    """Writes `directory/frozen_inference_graph.pb` and returns its path."""
    path = Path(directory) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(freeze(function).SerializeToString(deterministic=True))
    return path


def export(
    detector: Detector, directory: str | Path, input_type: str, input_shape: tuple[int | None, ...] | None = None
) -> Path:
    """Writes `directory/frozen_inference_graph.pb` for a detector that has its weights, and returns its path.

    Raises:
      UserError: for an unknown `input_type` or an `input_shape` that does not fit it.
    """
    return write(trace(detector, input_type, input_shape), directory)


def _optimize(graph_def: tf.compat.v1.GraphDef, outputs: list[str]) -> tf.compat.v1.GraphDef:
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    meta_graph = tf.compat.v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    # Grappler takes what this collection lists as what has to be computed, and drops the rest.
    meta_graph.collection_def["train_op"].node_list.value.extend(outputs)
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewrites.optimizers.extend(_OPTIMIZERS)
    return tf_optimizer.OptimizeGraph(config, meta_graph)
