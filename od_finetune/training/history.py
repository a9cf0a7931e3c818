"""Every evaluation of a run, one JSON object per line: `step` and each result by its name.

`tools/plot_runs.py` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from od_finetune import files


class History:
    """The evaluations of one run, in a file that outlives its interruptions."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def begin(self, step: int) -> None:
        """Forgets the evaluations after `step`, at which the run starts or goes on: they are another run's, or are
        to be made again."""
        if self.path.exists():
            kept = {known: results for known, results in self.read().items() if known <= step and step}
            files.write_text(self.path, "".join(_line(known, results) for known, results in kept.items()))

    def add(self, step: int, results: Mapping[str, float]) -> None:
        """Appends an evaluation."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(step, results))

    def read(self) -> dict[int, dict[str, float]]:
        """Results by step; of a step that was evaluated twice the later ones."""
        found: dict[int, dict[str, float]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                results = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill
                continue
            found[int(results.pop("step"))] = results
        return found


def _line(step: int, results: Mapping[str, float]) -> str:
    return json.dumps({"step": step, **results}) + "\n"
