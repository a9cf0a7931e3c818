"""Measuring depths, each in a process of its own: what one leaves in memory must not count for the next.

`python -m od_finetune.planning.probing` is that process: a JSON object with `config` (text), `frozen` (names of
variables), `steps` on standard input, a line of JSON with the measurement on standard output.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.planning import plans
from od_finetune.planning.depth_costs import DepthCosts, Row
from od_finetune.training import probe
from od_finetune.training.freeze import FreezePlan, FreezeRequest

logger = logging.getLogger(__name__)

STEPS = 5
_RESULT = "measured "
Run = Callable[[str, Sequence[str]], probe.Measurement]


def measure(costs: DepthCosts, config: pipeline.TrainEvalPipelineConfig, count: int | None) -> DepthCosts:
    """Measures up to about `count` depths (None: all) one after the other, the first again at the end.

    Raises:
      UserError: a process did not come to its end; carries what it said last.
    """
    everything = costs.full.depth.trained
    text = pipeline.to_text(config)
    rows = costs.choose(count)

    def run(row: Row, place: str) -> probe.Measurement:
        logger.info("Measuring %s: frozen through %s ...", place, row.depth.name)
        frozen = [name for name in everything if name not in set(row.depth.trained)]
        found = run_process(text, frozen, STEPS)
        logger.info("  %.3f s/step, %.2f CPU s, peak %.0f MB", found.median, found.cpu_median, found.peak_bytes / 1e6)
        return found

    total = len(rows) + (len(rows) > 1)
    measured = {row.depth.name: run(row, f"{i} of {total}") for i, row in enumerate(rows, start=1)}
    drift = None
    if len(rows) > 1:
        again = run(rows[0], f"{total} of {total}, again")
        drift = again.median / measured[rows[0].depth.name].median
    return costs.with_measurements(measured, drift)


def run_process(config: str, frozen: Sequence[str], steps: int) -> probe.Measurement:
    """Trains `steps` steps on noise in a fresh process, with these variables frozen."""
    request = json.dumps({"config": config, "frozen": list(frozen), "steps": steps})
    command = [sys.executable, "-m", "od_finetune.planning.probing"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, env=dict(os.environ))
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode or not lines:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        killed = " (killed, most likely for want of memory)" if done.returncode < 0 else ""
        raise UserError(
            f"--probe: the process that measures ended with exit code {done.returncode}{killed}: {said}\n"
            "Lower train_config.batch_size, or go without --probe."
        )
    fields = json.loads(lines[-1].removeprefix(_RESULT))
    return probe.Measurement(tuple(fields["seconds"]), tuple(fields["cpu_seconds"]), *_integers(fields))


def _integers(fields: dict) -> tuple[int, int]:
    return int(fields["peak_bytes"]), int(fields["trained"])


def main() -> None:
    """The process that measures."""
    request = json.load(sys.stdin)
    config = pipeline.parse(request["config"])
    detector = build_detector(config.model)
    detector.build()
    patterns = (f"^(?:{'|'.join(map(re.escape, request['frozen']))})$",) if request["frozen"] else ()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=patterns))
    trainer = plans.make_trainer(detector, config, plan, still=True)
    found = probe.measure(trainer, plans.noise(detector, config), request["steps"])
    print(_RESULT + json.dumps(found._asdict()))


if __name__ == "__main__":
    main()
