"""Exports a trained detector, with the flags of the OD API's export_inference_graph.py and exporter_main_v2.py.

`od-finetune export` does the same and has --set instead of --config_override.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads; its start-up chatter hides ours

from absl import app, flags  # noqa: E402

from od_finetune.cli.common import log_to_stderr, run_script  # noqa: E402

_INPUT_TYPE = flags.DEFINE_string(
    "input_type", "image_tensor",
    "What the exported detector takes: image_tensor, float_image_tensor, encoded_image_string_tensor or tf_example.",
)
_INPUT_SHAPE = flags.DEFINE_string(
    "input_shape", "", "Shape of an image input, e.g. 1,300,300,3; -1 or None leaves a size open. Empty: all are."
)
_CONFIG = flags.DEFINE_string("pipeline_config_path", None, "The pipeline.config the checkpoint was trained with.")
_PREFIX = flags.DEFINE_string(
    "trained_checkpoint_prefix", None, "Checkpoint to export: its prefix, or a directory for the latest in it."
)
_DIRECTORY = flags.DEFINE_string("trained_checkpoint_dir", None, "Directory whose latest checkpoint is exported.")
_OUTPUT = flags.DEFINE_string("output_directory", None, "Where to write; new or empty.")
_OVERRIDE = flags.DEFINE_string(
    "config_override", "", 'Text of a config to merge into the one read, e.g. "model { ssd { num_classes: 3 } }".'
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace an earlier export in the output directory.")
_ALLOW = flags.DEFINE_boolean(
    "allow_unhonoured", False, "Go on although the model sets fields that od_finetune does not honour yet."
)

_SIDE_INPUTS = (
    "where a model looks at a context bank, its side inputs are context_features, float32 [images, rows, length], and "
    "valid_context_size, int32 [images]"
)
# Flags of the OD API's scripts that can't be obeyed: accepted at their defaults, refused with a reason otherwise.
_UNSUPPORTED = {
    "write_inference_graph": "no unfrozen graph is written; saved_model/ holds the graph with its variables",
    "additional_output_tensor_names": "outputs are fixed; saved_model/ and the frozen graph list them when written",
    **{f"side_input_{what}": _SIDE_INPUTS for what in ("shapes", "names", "types")},
}
flags.DEFINE_boolean("write_inference_graph", False, "Not supported: see saved_model/ for a graph with variables.")
_USE_SIDE_INPUTS = flags.DEFINE_boolean(
    "use_side_inputs", False, "Makes sure that the export takes context_features and valid_context_size."
)
for _name in ("additional_output_tensor_names", "side_input_shapes", "side_input_names", "side_input_types"):
    flags.DEFINE_string(_name, None, f"Not supported: {_UNSUPPORTED[_name]}.")


def _checkpoint() -> str:
    if (_PREFIX.value is None) == (_DIRECTORY.value is None):
        raise app.UsageError("give one of --trained_checkpoint_prefix and --trained_checkpoint_dir")
    return _PREFIX.value or _DIRECTORY.value


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a --flag")
    for name, reason in _UNSUPPORTED.items():
        if flags.FLAGS[name].value:
            raise app.UsageError(f"--{name} is not supported: {reason}; leave the flag out")
    checkpoint = _checkpoint()
    from od_finetune.cli.export import checked
    from od_finetune.config import pipeline  # here, so that --help answers without loading TensorFlow
    from od_finetune.config.export import export_trained
    from od_finetune.config.kinds import context_size
    from od_finetune.errors import UserError
    from od_finetune.export.signatures import parse_shape

    try:
        with log_to_stderr():
            config = pipeline.load(_CONFIG.value)
            config.MergeFrom(pipeline.parse(_OVERRIDE.value, "--config_override"))
            config = checked(config, _CONFIG.value, _ALLOW.value)
            if _USE_SIDE_INPUTS.value and context_size(config.model) is None:
                raise UserError("--use_side_inputs: the model takes none, it looks at no context bank (context_config "
                                "of a Faster R-CNN); leave the flag out")
            shape = parse_shape(_INPUT_SHAPE.value)
            report = export_trained(
                config, checkpoint, _OUTPUT.value, _INPUT_TYPE.value, shape, overwrite=_OVERWRITE.value
            )
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(report.text())


if __name__ == "__main__":
    flags.mark_flags_as_required(["pipeline_config_path", "output_directory"])
    run_script(main)
