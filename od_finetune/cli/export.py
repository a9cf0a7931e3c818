"""`od-finetune export`: a config and a checkpoint -> frozen graph, SavedModel, checkpoint and config to deploy; or,
`export checkpoint`, a checkpoint for an installation of the OD API."""

from __future__ import annotations

import argparse
import logging

from od_finetune.cli import export_checkpoint
from od_finetune.config import lint, pipeline
from od_finetune.config.export import export_trained
from od_finetune.export import bundle, signatures

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags; those the OD API has are called as there.

    `checkpoint` may follow instead of them, which has flags of its own. So argparse can't require those of graphs.
    """
    _add_shared(parser, required=False)
    parser.add_argument("--input_type", default=signatures.IMAGE_TENSOR, choices=list(signatures.INPUT_TYPES),
                        help="what the exported detector takes (default: %(default)s)")
    parser.add_argument("--input_shape", default="", metavar="B,H,W,3",
                        help="fix sizes of an image input, e.g. 1,300,300,3; -1 leaves one open")
    parser.add_argument("--format", dest="formats", action="append", choices=bundle.FORMATS,
                        help="write this graph only; repeatable (default: all)")
    parser.set_defaults(usage_error=parser.error)
    others = parser.add_subparsers(dest="what", title="instead of graphs", metavar="[checkpoint]")
    summary = "write a checkpoint that an installation of the OD API (TF1 or TF2) restores"
    subparser = others.add_parser("checkpoint", help=f"{summary}; see `export checkpoint --help`", description=summary)
    _add_shared(subparser, required=True)
    export_checkpoint.add_arguments(subparser)


def _add_shared(parser: argparse.ArgumentParser, required: bool) -> None:
    needed = parser.add_argument_group("required")
    needed.add_argument("--pipeline_config_path", required=required, help="the config the checkpoint was trained with")
    checkpoint = needed.add_mutually_exclusive_group(required=required)
    checkpoint.add_argument("--trained_checkpoint_prefix", dest="checkpoint",
                            help="a checkpoint's prefix, or a directory that has one: model_dir, model_dir/best")
    checkpoint.add_argument("--trained_checkpoint_dir", dest="checkpoint", help="the same for a directory")
    needed.add_argument("--output_directory", required=required, help="to write; new or empty")
    parser.add_argument("--use_moving_averages", action=argparse.BooleanOptionalAction, default=None,
                        help="export averaged weights (default: as eval_config.use_moving_averages says)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
                        help="change a field first, e.g. model.ssd.num_classes=3; repeatable")
    parser.add_argument("--allow_unhonoured", action="store_true",
                        help="go on without the model's fields that are not honoured")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the output directory")


def run(options: argparse.Namespace) -> int:
    """Exports and prints what was written."""
    path = options.pipeline_config_path
    for flag, value in (("--pipeline_config_path", path), ("--trained_checkpoint_prefix", options.checkpoint),
                        ("--output_directory", options.output_directory)):
        if value is None:
            options.usage_error(f"the following arguments are required: {flag}")
    config = checked(pipeline.load(path, options.overrides), path, options.allow_unhonoured)
    if options.what == "checkpoint":
        return export_checkpoint.run(options, config)
    report = export_trained(
        config,
        options.checkpoint,
        options.output_directory,
        options.input_type,
        signatures.parse_shape(options.input_shape),
        use_moving_averages=options.use_moving_averages,
        formats=options.formats or bundle.FORMATS,
        overwrite=options.overwrite,
    )
    print(report.text())
    return 0


def checked(
    config: pipeline.TrainEvalPipelineConfig, path: str, allow_unhonoured: bool
) -> pipeline.TrainEvalPipelineConfig:
    """The config to export by: its model checked, what lint says of it logged, and what may be left out left out.

    Raises:
      UserError: lists what is wrong with the model.
    """
    for finding in lint.check(config, path, use=(), allow_unhonoured=allow_unhonoured):
        logger.warning("%s", finding.text(path))
    return lint.without_unhonoured(config)[0] if allow_unhonoured else config
