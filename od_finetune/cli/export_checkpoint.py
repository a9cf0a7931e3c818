"""`od-finetune export checkpoint`: back to an installation of the OD API."""

from __future__ import annotations

import argparse

from od_finetune.config import pipeline
from od_finetune.config.export_checkpoint import FORMATS, export_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that graphs don't have, too."""
    parser.add_argument("--format", required=True, choices=FORMATS,
                        help="tf1: by names (model.ckpt); tf2: by the object graph (checkpoint/ckpt-0)")


def run(options: argparse.Namespace, config: pipeline.TrainEvalPipelineConfig) -> int:
    """Writes the checkpoint and prints what was written."""
    report = export_checkpoint(
        config,
        options.checkpoint,
        options.output_directory,
        options.format,
        use_moving_averages=options.use_moving_averages,
        overwrite=options.overwrite,
    )
    print(report.text())
    return 0
