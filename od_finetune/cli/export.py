"""`od-finetune export`: a config and a checkpoint -> frozen graph, SavedModel, checkpoint and config to deploy."""

from __future__ import annotations

import argparse

from od_finetune.config import lint, pipeline
from od_finetune.config.export import export_trained
from od_finetune.export import bundle, signatures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--config", required=True, help="path of the pipeline.config")
    parser.add_argument("--checkpoint", required=True,
                        help="a checkpoint's prefix, or a directory that has one: model_dir, model_dir/best")
    parser.add_argument("--output_directory", required=True, help="to write; new or empty")
    parser.add_argument("--input_type", default=signatures.IMAGE_TENSOR, choices=list(signatures.INPUT_TYPES),
                        help="what the exported detector takes (default: %(default)s)")
    parser.add_argument("--input_shape", default="", metavar="B,H,W,3",
                        help="fix sizes of an image input, e.g. 1,300,300,3; -1 leaves one open")
    parser.add_argument("--format", dest="formats", action="append", choices=bundle.FORMATS,
                        help="write this graph only; repeatable (default: all)")
    parser.add_argument("--use_moving_averages", action=argparse.BooleanOptionalAction, default=None,
                        help="export averaged weights (default: as eval_config.use_moving_averages says)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE",
                        help="change a field first, e.g. model.ssd.num_classes=3; repeatable")
    parser.add_argument("--allow_unhonoured", action="store_true",
                        help="go on although the model sets fields that are not honoured")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the output directory")


def run(options: argparse.Namespace) -> int:
    """Exports and prints what was written."""
    config = pipeline.load(options.config, options.overrides)
    for finding in lint.check(config, options.config, use=(), allow_unhonoured=options.allow_unhonoured):
        print(finding.text(options.config))
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
