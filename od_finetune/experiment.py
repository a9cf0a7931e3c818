"""The whole flow, from a pipeline.config to a fine-tuned, evaluated, exported detector. Read this first.

    pipeline.config -> config -> detector ------+
                           +--> datasets -------+
                           +--> RestorePlan ----+
                           +--> FreezePlan -----+-> trainer -> checkpoints -> evaluator -> export
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection
from pathlib import Path

import tf_keras

from od_finetune import fields, files
from od_finetune.checkpoints.plan import RestorePlan
from od_finetune.checkpoints.records import Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config import class_transfer, evaluation, export, label_map, lint, pipeline, restore, training
from od_finetune.config.datasets import build_eval_dataset, build_train_dataset, input_files
from od_finetune.config.detector import build_detector
from od_finetune.config.gallery import Gallery
from od_finetune.config.keeping import kept_outputs
from od_finetune.data.dataset import explain
from od_finetune.errors import UserError
from od_finetune.export import bundle
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig
from od_finetune.training import checkpointing
from od_finetune.training.continuous import evaluate_checkpoints
from od_finetune.training.evaluator import Evaluator
from od_finetune.training.freeze import FreezePlan
from od_finetune.training.loop import TrainingLoop
from od_finetune.training.row_masks import RowMasks
from od_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)

BEST_KEYS = ("metric", "value", "step")
RESTORE_PLAN, FREEZE_PLAN, RESULTS, PICTURE = "restore_plan.json", "freeze_plan.json", "results.json", "detections.png"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line adds to a pipeline.config; None leaves the config's value."""

    config_path: str
    model_dir: str
    overrides: tuple[str, ...] = ()
    num_train_steps: int | None = None
    checkpoint_every_n: int | None = None
    sample_1_of_n_eval_examples: int | None = None
    sample_1_of_n_eval_on_train_examples: int = 5
    eval_on_train_data: bool = False
    record_summaries: bool = True
    allow_unhonoured: bool = False
    export_dir: str | None = None


def train_and_evaluate(options: Options) -> int:
    """Restores, freezes, trains with evaluation, keeps the best, exports it; returns the exit code.

    Continues from the newest checkpoint where `model_dir` has one.

    Raises:
      UserError: config, records, checkpoint or model_dir can't be used; the message says what to do.
    """
    if options.export_dir:
        bundle.check_directory(options.export_dir, overwrite=True)
    config = _config(options)
    _claim(options.model_dir, config)
    detector = _detector(config)
    if not checkpointing.candidates(options.model_dir):
        restore_checkpoint(detector, config, options.model_dir)
    trainer = build_trainer(detector, config, options.model_dir)
    gallery = Gallery(config) if config.eval_input_reader else None
    evaluator = build_evaluator(detector, config, gallery) if gallery else None
    loop = TrainingLoop(
        trainer,
        options.model_dir,
        training.loop_settings(config.train_config, config.eval_config)._replace(summaries=options.record_summaries),
        lambda step: build_train_dataset(
            config.train_input_reader, config.train_config, detector, skip_batches=step
        ),
        evaluator,
        training.best_settings(config.eval_config, evaluator.primary) if evaluator else None,
        show_plan=functools.partial(_show_freeze_plan, options.model_dir),
    )
    outcome = loop.run()
    logger.info("Ended at step %d (%s); checkpoint %s", outcome.step, outcome.reason, outcome.checkpoint)
    if outcome.results:
        _report(Path(options.model_dir, "eval"), outcome.step, outcome.results, gallery)
    chosen: Path | str = outcome.checkpoint
    if loop.best and loop.best.value is not None:
        chosen = loop.best.directory
        logger.info("Best %s: %.4f at step %d, in %s", *(loop.best.record[key] for key in BEST_KEYS), chosen)
    if options.export_dir and not outcome.exit_code:
        report = export.export_trained(config, chosen, options.export_dir, overwrite=True)
        logger.info("Exported %s\n%s", chosen, report.text())
    return outcome.exit_code


def evaluate(options: Options, checkpoint_dir: str, run_once: bool = False, timeout: float | None = None) -> int:
    """Evaluates the newest checkpoint of a run, or each new one as it appears, without training; the exit code.

    Raises:
      UserError: as `train_and_evaluate`; also if no checkpoint appears within `timeout` seconds.
    """
    config = _config(options, {lint.TRAIN, lint.EVAL} if options.eval_on_train_data else {lint.EVAL})
    if options.eval_on_train_data:
        del config.eval_input_reader[:]
        config.eval_input_reader.add().CopyFrom(config.train_input_reader)
        config.eval_input_reader[0].sample_1_of_n_examples = options.sample_1_of_n_eval_on_train_examples
    elif not config.eval_input_reader:
        raise UserError(f"{options.config_path}: evaluation needs an eval_input_reader, but the config has none.")
    detector = _detector(config)
    gallery = Gallery(config)
    directory = Path(options.model_dir, "eval_on_train" if options.eval_on_train_data else "eval")
    outcome = evaluate_checkpoints(
        build_evaluator(detector, config, gallery),
        lambda path: export.load_trained(detector, path, config.eval_config.use_moving_averages),
        checkpoint_dir,
        directory,
        run_once=run_once,
        timeout=timeout,
        interval=config.eval_config.eval_interval_secs,
        last_step=config.train_config.num_steps,
        on_results=lambda step, results: _report(directory, step, results, gallery),
    )
    return outcome.exit_code


def restore_checkpoint(
    detector: fields.Detector, config: TrainEvalPipelineConfig, model_dir: str
) -> RestorePlan | None:
    """Plans, shows and does what train_config's `fine_tune_checkpoint` and `restore` ask for; None if that is nothing.

    Raises:
      ShortfallError: less is restored than `min_restored_fraction` and `require` demand.
      UserError: a checkpoint or a rule can't be used.
    """
    plan = restore_plan(detector, config)
    if plan is None:
        logger.info("No fine_tune_checkpoint: training starts from random weights.")
        return None
    logger.info("%s", plan.text())
    plan.write(Path(model_dir, RESTORE_PLAN))
    plan.apply(detector.named_variables())
    return plan


def restore_plan(detector: fields.Detector, config: TrainEvalPipelineConfig) -> RestorePlan | None:
    """What would be restored; None if the config asks for nothing.

    Raises:
      UserError: a checkpoint or a rule can't be used, or classes are to be kept that would not be restored.
    """
    requests, demand = restore.restore_requests(config.train_config), restore.restore_demand(config.train_config)
    plan = None
    if requests or demand:
        sources = [(open_source(request.path), request) for request in requests]
        plan = RestorePlan.compute(Target.of(detector), sources, demand, class_transfer.class_transfer(config))
    if plan is None or not plan.problem:  # which says more
        class_transfer.check_kept(config, plan.rows if plan else None)
    return plan


def freeze_plan(detector: fields.Detector, config: TrainEvalPipelineConfig) -> FreezePlan:
    """What training would move, with the rows of kept classes that it would not.

    Raises:
      UserError: a request of train_config can't be meant; see `FreezePlan.compute`.
    """
    plan = FreezePlan.compute(detector, training.freeze_request(config.train_config))
    kept = class_transfer.kept_classes(config)
    masks = RowMasks.compute(detector, kept.ids) if kept and kept.freeze_rows else None
    for phase in plan.phases:
        phase.row_masks = masks
    return plan


def build_trainer(detector: fields.Detector, config: TrainEvalPipelineConfig, model_dir: str) -> Trainer:
    """Shows and writes the freeze plan, and builds the trainer that carries it out."""
    kept = class_transfer.kept_classes(config)
    plan = freeze_plan(detector, config)
    _show_freeze_plan(model_dir, plan)
    return Trainer(
        detector,
        plan,
        training.build_optimizer(config.train_config.optimizer),
        settings=training.trainer_settings(config.train_config),
        moving_average_decay=training.moving_average_decay(config.train_config.optimizer),
        explain=functools.partial(explain, files=functools.partial(input_files, config.train_input_reader)),
        kept_outputs=kept_outputs(detector, kept, config, model_dir) if kept else None,
    )


def _show_freeze_plan(model_dir: str, plan: FreezePlan) -> None:
    logger.info("%s", plan.text())
    plan.write(Path(model_dir, FREEZE_PLAN))


def build_evaluator(
    detector: fields.Detector, config: TrainEvalPipelineConfig, gallery: Gallery | None = None
) -> Evaluator:
    """The evaluator of `eval_config` on the first `eval_input_reader`."""
    reader = config.eval_input_reader[0]
    return Evaluator(
        detector,
        build_eval_dataset(reader, config.eval_config, detector),
        evaluation.build_metrics(config.eval_config, label_map.load_label_map(reader.label_map_path)),
        draw=gallery,
        num_pictures=config.eval_config.num_visualizations,
        explain=functools.partial(explain, files=functools.partial(input_files, reader)),
    )


def _config(options: Options, use: Collection[str] | None = None) -> TrainEvalPipelineConfig:
    """The config with overrides, after lint's checks of what it is used for (None: training, and evaluation if it has
    an eval_input_reader)."""
    config = pipeline.load(options.config_path, options.overrides)
    if options.num_train_steps is not None:
        config.train_config.num_steps = options.num_train_steps
    if options.checkpoint_every_n is not None:
        config.train_config.checkpoint_every_n_steps = options.checkpoint_every_n
    if options.sample_1_of_n_eval_examples is not None and config.eval_input_reader:
        config.eval_input_reader[0].sample_1_of_n_examples = options.sample_1_of_n_eval_examples
    if use is None:
        use = {lint.TRAIN, lint.EVAL} if config.eval_input_reader else {lint.TRAIN}
    findings = lint.check(config, options.config_path, use=use, allow_unhonoured=options.allow_unhonoured)
    if findings:
        logger.warning("%s", lint.report(findings, options.config_path))
    if options.allow_unhonoured:
        config, _ = lint.without_unhonoured(config)
    return config


def _claim(model_dir: str, config: TrainEvalPipelineConfig) -> None:
    """Makes model_dir this config's: refuses one that holds another model's run, else writes the config there."""
    saved = Path(model_dir, pipeline.SAVED_NAME)
    if saved.exists() and checkpointing.candidates(model_dir):
        changed = pipeline.model_differences(pipeline.load(saved), config)
        if changed:
            listed = "\n  ".join(changed)
            raise UserError(
                f"{model_dir} holds checkpoints of another model ({saved}):\n  {listed}\n"
                "Give a new --model_dir, or the config this directory was trained with."
            )
    try:
        pipeline.save(config, model_dir)
    except OSError as error:
        reason = f"can't be written to ({error.strerror}); name a new directory"
        raise UserError(f"--model_dir {model_dir}: {reason}") from None


def _detector(config: TrainEvalPipelineConfig) -> fields.Detector:
    tf_keras.utils.set_random_seed(config.train_config.seed)
    detector = build_detector(config.model)
    detector.build()
    return detector


def _report(directory: Path, step: int, results: dict[str, float], gallery: Gallery | None) -> None:
    """Prints the metrics, and writes them and the picture to `directory`."""
    lines = "\n".join(f"  {name}: {value:.4f}" for name, value in results.items())
    logger.info("Evaluation at step %d:\n%s", step, lines)
    files.write_json(directory / RESULTS, {"step": step, "results": results})
    if gallery is not None:
        gallery.write(directory / PICTURE)
