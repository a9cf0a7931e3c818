"""Writes docs/models.md from what the tests measured of the published configs:

    OD_FINETUNE_MODEL_RESULTS=results.jsonl python -m pytest -q -m slow tests/test_published.py tests/test_goldens*.py
    python tools/make_models_table.py results.jsonl docs/models.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_INTRODUCTION = """# Published detectors

Each config that was published with the OD API, as `tests/test_published.py` and `tests/test_goldens*.py` found it.
`od-finetune models` lists the types with their published scores, speeds and checkpoints.

- **parameters**: numbers in all variables, for the classes of the config.
- **error**: the largest difference of a feature map or raw prediction to a recording of the OD API with the same
  weights, as a fraction of that tensor's standard deviation (the tests allow 0.002; the OD API against itself with
  other CPU kernels differs by up to 0.0007). Of Faster R-CNN it is that of the feature maps: what follows is compared
  region by region, at least 99 % of the anchors and every region found in both to the same tolerance
  (tests/test_goldens_faster_rcnn.py says why no more can be).
- **losses**: the largest relative difference of a loss to the recording's (the tests allow 0.001, of EfficientDet-D6
  and D7 0.25; those of Faster R-CNN are sampled at random, and are compared by order of magnitude only).
- **restored**: variables of the model that the OD API's checkpoint of this config (TF1 or TF2, as the config is) gave.
- **across**: variables of the backbone that the checkpoint of the same network in the other half of the OD API gave.
- **trains**: the loss over the first and the last three of 20 steps on one batch of noise at 128x128
  (hourglasses 256x256); **frozen**: backward operations left in a frozen feature extractor; **exported**: largest
  difference of a SavedModel's scores to the detector's. One config of each feature extractor type, and of each kind of
  head, runs these (Context R-CNN with what proposes regions frozen: its regions would differ from step to step).

A dash: there is nothing to compare with, or it was not run.
"""


class Summary(NamedTuple):
    """What is known of one config."""

    name: str
    noted: dict[str, Any]  # the last of each
    errors: dict[str, float]  # by tensor
    failures: dict[str, str]  # by test

    def row(self) -> list[str]:
        """Cells of the table."""
        get = self.noted.get
        error = max(self.errors.values(), default=None)
        return [
            self.name,
            get("type", ""),
            f"{get('parameters') / 1e6:.1f} M" if get("parameters") else "no",
            _number(error),
            _number(get("loss_error")),
            f"{get('restored')} of {get('variables')}" if "restored" in self.noted else "–",
            f"{get('across')} of {get('backbone')}" if "across" in self.noted else "–",
            f"{get('first_loss'):.3g} → {get('last_loss'):.3g}" if "first_loss" in self.noted else "–",
            str(get("frozen_backward", "–")),
            _number(get("export_error")),
        ]


_HEADER = ["config", "type", "parameters", "error", "losses", "restored", "across", "trains", "frozen", "exported"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1g}" if value else "0"


def summarise(lines: Iterable[str]) -> list[Summary]:
    """One summary per config, by name, from the lines of a results file; the last note of a kind counts."""
    found: dict[str, Summary] = {}
    for line in lines:
        noted = json.loads(line)
        name = noted.pop("config")
        summary = found.setdefault(name, Summary(name, {}, {}, {}))
        if "tensor" in noted:
            if noted["relative"]:
                summary.errors[noted["tensor"]] = noted["error"]
        elif "failed" in noted:
            summary.failures[noted["failed"]] = noted["why"]
        else:
            summary.noted.update(noted)
    return [found[name] for name in sorted(found)]


def document(summaries: list[Summary]) -> str:
    """The page."""
    table = [_HEADER, ["---"] * len(_HEADER), *(summary.row() for summary in summaries)]
    lines = [f"| {' | '.join(row)} |" for row in table]
    failing = [summary for summary in summaries if summary.failures]
    held = f"{len(summaries) - len(failing)} of {len(summaries)} configs pass everything that was run on them."
    reasons = [f"- `{each.name}`, {test}: {why}" for each in failing for test, why in each.failures.items()]
    return "\n".join([_INTRODUCTION, held, "", *reasons, *[""] * bool(reasons), *lines, ""])


def main() -> None:
    """Reads the results, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that OD_FINETUNE_MODEL_RESULTS named")
    parser.add_argument("page", type=Path, help="docs/models.md")
    flags = parser.parse_args()
    summaries = summarise(flags.results.read_text(encoding="utf-8").splitlines())
    flags.page.write_text(document(summaries), encoding="utf-8")
    print(f"{flags.page}: {len(summaries)} configs")


if __name__ == "__main__":
    main()
