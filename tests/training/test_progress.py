from __future__ import annotations

import io

from od_finetune.training import progress as module
from od_finetune.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_line_has_rate_and_remaining_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    progress = Progress(num_steps=7000, batch_size=8, stream=io.StringIO())
    progress.start(100)
    clock[0] += 30.0
    progress.pause(10.0)  # an evaluation
    assert progress.line(140, {"loss": 1.5, "lr": 0.004}) == (
        "step 140/7000  loss 1.5  lr 0.004  16.0 images/s  ETA 0:57:10"
    )
    assert "ETA" not in Progress(0, 8, io.StringIO()).line(140, {})


def test_only_whole_lines_where_nobody_watches():
    stream = io.StringIO()
    progress = Progress(10, 1, stream)
    progress.show(1, {"loss": 1.0}, last=False)
    progress.show(2, {"loss": 0.5}, last=True)
    assert stream.getvalue().startswith("step 2/10  loss 0.5") and stream.getvalue().count("\n") == 1


def test_a_terminals_line_is_rewritten_and_a_note_gets_its_own():
    stream = Terminal()
    progress = Progress(10, 1, stream)
    progress.show(1, {"loss": 1.0}, last=False)
    progress.note("saved")
    progress.show(2, {"loss": 0.5}, last=True)
    lines = stream.getvalue().split("\n")
    assert lines[0].startswith("\rstep 1/10") and lines[1] == "saved" and lines[2].startswith("\rstep 2/10")
