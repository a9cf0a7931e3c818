"""Measuring depths, each in a process of its own: what one leaves in memory must not count for the next.

The processes take their steps in turns, together with one that trains everything, so that other load on the machine
falls on all alike. `python -m od_finetune.planning.probing` is such a process: it reads a line of JSON with `config`
(text) and `frozen` (names of variables), warms up, and answers each further line with one of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from od_finetune.config import pipeline
from od_finetune.config.detector import build_detector
from od_finetune.errors import UserError
from od_finetune.planning import plans
from od_finetune.planning.depth_costs import DepthCosts, Row
from od_finetune.training import probe
from od_finetune.training.freeze import FreezePlan, FreezeRequest

logger = logging.getLogger(__name__)

STEPS = 7
TOGETHER = 5  # processes at once beside the one that trains everything: each holds a whole training in memory
_STEP, _END = "step", "end"
_ANSWER = "answer "  # what else a process prints is not for its parent


def measure(costs: DepthCosts, config: pipeline.TrainEvalPipelineConfig, count: int | None) -> DepthCosts:
    """Measures about `count` depths (None: all).

    Raises:
      UserError: a process did not come to its end; carries what it said last.
    """
    text = pipeline.to_text(config)
    first, *rest = costs.choose(count)
    found: dict[str, probe.Measurement] = {}
    with contextlib.ExitStack() as stack:
        logger.info("Measuring %d depths; starting %s", len(rest) + 1, first.depth.name)
        reference = stack.enter_context(_process(text, _frozen(costs, first), first.depth.name))
        for start in range(0, max(len(rest), 1), TOGETHER):
            group = rest[start : start + TOGETHER]
            found |= _in_turns(reference, costs, text, first, group)
    return costs.with_measurements(found)


def _in_turns(
    reference: _Process, costs: DepthCosts, text: str, first: Row, group: Sequence[Row]
) -> dict[str, probe.Measurement]:
    """One group's measurements by name of the depth, those of the reference among them."""
    with contextlib.ExitStack() as stack:
        running = {first.depth.name: reference}
        for row in group:
            logger.info("  starting %s", row.depth.name)
            name = row.depth.name
            running[name] = stack.enter_context(_process(text, _frozen(costs, row), name))
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        logger.info("  %d steps each, in turns", STEPS)
        for _ in range(STEPS):
            for name, process in running.items():
                steps[name].append(process.ask(_STEP))
        peaks = {name: process.ask(_END) for name, process in running.items()}
    reference_seconds = tuple(step["seconds"] for step in steps[first.depth.name])
    found = {}
    for name, taken in steps.items():
        seconds, cpu = (tuple(step[key] for step in taken) for key in ("seconds", "cpu_seconds"))
        found[name] = probe.Measurement(seconds, cpu, int(peaks[name]["peak_bytes"]), reference_seconds)
        logger.info("  %s: %.3f s/step, peak %.0f MB", name, found[name].median, found[name].peak_bytes / 1e6)
    return found


def _frozen(costs: DepthCosts, row: Row) -> list[str]:
    return [name for name in costs.full.depth.trained if name not in set(row.depth.trained)]


class _Process:
    """One that is ready to take steps."""

    def __init__(self, process: subprocess.Popen[str], said: TextIO, name: str) -> None:
        self._process, self._said, self._name = process, said, name

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        for answer in self._process.stdout:
            if answer.startswith(_ANSWER):
                return json.loads(answer.removeprefix(_ANSWER))
        raise self._failure()

    def _failure(self) -> UserError:
        code = self._process.wait()
        self._said.seek(0)
        last = "\n".join(self._said.read().strip().splitlines()[-3:])
        killed = " (killed, most likely for want of memory)" if code < 0 else ""
        return UserError(
            f"--probe: the process that measures {self._name!r} ended with exit code {code}{killed}: {last}\n"
            "Lower train_config.batch_size, or go without --probe."
        )


@contextlib.contextmanager
def _process(config: str, frozen: Sequence[str], name: str) -> Iterator[_Process]:
    """A process that has traced its step and warmed up; gone afterwards."""
    command = [sys.executable, "-m", "od_finetune.planning.probing"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            started = _Process(process, said, name)
            started.ask(json.dumps({"config": config, "frozen": list(frozen)}))
            yield started
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # of a line that it did not live to read
                process.communicate()


def serve(lines: TextIO, answers: TextIO) -> None:
    """The process's side."""

    def answer(**fields: Any) -> None:
        print(_ANSWER + json.dumps(fields), file=answers, flush=True)

    request = json.loads(lines.readline())
    config = pipeline.parse(request["config"])
    detector = build_detector(config.model)
    detector.build()
    patterns = (f"^(?:{'|'.join(map(re.escape, request['frozen']))})$",) if request["frozen"] else ()
    plan = FreezePlan.compute(detector, FreezeRequest(freeze=patterns))
    trainer = plans.make_trainer(detector, config, plan, still=True)
    stepper = probe.Stepper(trainer, plans.noise(detector, config))
    answer(trained=len(trainer.trained))
    for line in lines:
        if line.strip() == _STEP:
            seconds, cpu_seconds = stepper.step()
            answer(seconds=seconds, cpu_seconds=cpu_seconds)
        else:
            answer(peak_bytes=probe.peak_resident())


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
