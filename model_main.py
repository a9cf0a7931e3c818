"""Trains and evaluates a detector from a pipeline.config. Flags only: the work is in od_finetune/experiment.py."""

from __future__ import annotations

import logging
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow loads; its start-up chatter hides ours

from absl import app, flags  # noqa: E402

from od_finetune.cli.common import log_to_stderr, run_script  # noqa: E402

_CONFIG = flags.DEFINE_string("pipeline_config_path", None, "The pipeline.config that describes model and training.")
_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Where checkpoints, plans, events and the best model are written.")
_SET = flags.DEFINE_multi_string(
    "set", [], "Override one config field, e.g. --set train_config.batch_size=4. Repeatable, applied in order."
)
_STEPS = flags.DEFINE_integer("num_train_steps", None, "Overrides train_config.num_steps.")
_CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", None, "Evaluate the checkpoints in this directory instead of training."
)
_RUN_ONCE = flags.DEFINE_boolean("run_once", False, "With --checkpoint_dir: evaluate the latest checkpoint and stop.")
_EVAL_TIMEOUT = flags.DEFINE_integer(
    "eval_timeout", 3600, "With --checkpoint_dir: seconds to wait for a new checkpoint before stopping."
)
_EVAL_ON_TRAIN = flags.DEFINE_boolean(
    "eval_on_train_data", False, "With --checkpoint_dir: evaluate on the training records instead."
)
_SAMPLE_EVAL = flags.DEFINE_integer("sample_1_of_n_eval_examples", None, "Evaluate every n-th example only.")
_SAMPLE_TRAIN = flags.DEFINE_integer(
    "sample_1_of_n_eval_on_train_examples", 5, "With --eval_on_train_data: use every n-th training example."
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every_n", None, "Overrides train_config.checkpoint_every_n_steps."
)
_SUMMARIES = flags.DEFINE_boolean("record_summaries", True, "Write TensorBoard events.")
_ALLOW = flags.DEFINE_boolean(
    "allow_unhonoured", False, "Run although the config sets fields that od_finetune does not honour yet."
)
_EXPORT = flags.DEFINE_string("export_dir", None, "After training, export the best model here.")

# Flags of the OD API's two scripts that stay accepted, each with what happens instead.
flags.DEFINE_boolean("eval_training_data", False, "The OD API's older name of --eval_on_train_data.")
flags.DEFINE_string("hparams_overrides", None, "Not supported: use --set.")
flags.DEFINE_integer("max_eval_retries", 0, "Without effect: a failed evaluation stops with its error.")
flags.DEFINE_boolean("use_tpu", False, "Not supported: runs on the GPUs or CPUs that TensorFlow sees.")
flags.DEFINE_string("tpu_name", None, "Not supported.")
flags.DEFINE_integer("num_workers", 1, "Only 1: one process trains.")


def _refuse_unsupported() -> None:
    values = flags.FLAGS
    if values.hparams_overrides:
        raise app.UsageError("--hparams_overrides: write --set train_config.batch_size=4 and the like instead")
    if values.use_tpu or values.tpu_name:
        raise app.UsageError("--use_tpu, --tpu_name: TPUs are not supported; leave the flag out to train on GPU or CPU")
    if values.num_workers != 1:
        raise app.UsageError(f"--num_workers={values.num_workers}: only one worker is supported")
    for name in ("eval_on_train_data", "eval_training_data", "run_once"):
        if values[name].value and not values.checkpoint_dir:
            raise app.UsageError(f"--{name} needs --checkpoint_dir, the model_dir of the run to evaluate")
    if values.export_dir and values.checkpoint_dir:
        raise app.UsageError(
            "--export_dir: exports at the end of training, which --checkpoint_dir replaces by evaluation; "
            "use `od-finetune export`"
        )
    if values.max_eval_retries:
        logging.warning("--max_eval_retries has no effect: a failed evaluation stops with its error")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a --flag")
    _refuse_unsupported()
    try:
        from od_finetune import experiment  # here, so that --help answers without loading TensorFlow
    except ModuleNotFoundError as error:
        if error.name != "od_finetune.protos":
            raise
        sys.exit("The config language is not compiled in this checkout. Run once: pip install -e .")
    from od_finetune.errors import UserError

    options = experiment.Options(
        config_path=_CONFIG.value,
        model_dir=_MODEL_DIR.value,
        overrides=tuple(_SET.value),
        num_train_steps=_STEPS.value,
        checkpoint_every_n=_CHECKPOINT_EVERY.value,
        eval_on_train_data=_EVAL_ON_TRAIN.value or flags.FLAGS.eval_training_data,
        sample_1_of_n_eval_examples=_SAMPLE_EVAL.value,
        sample_1_of_n_eval_on_train_examples=_SAMPLE_TRAIN.value,
        record_summaries=_SUMMARIES.value,
        allow_unhonoured=_ALLOW.value,
        export_dir=_EXPORT.value,
    )
    try:
        with log_to_stderr():
            if _CHECKPOINT_DIR.value:
                once, timeout = _RUN_ONCE.value, _EVAL_TIMEOUT.value
                sys.exit(experiment.evaluate(options, _CHECKPOINT_DIR.value, run_once=once, timeout=timeout))
            else:
                sys.exit(experiment.train_and_evaluate(options))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    flags.mark_flags_as_required(["pipeline_config_path", "model_dir"])
    run_script(main)
