"""Choosing, suggesting and showing, on made-up costs."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from od_finetune.planning import probing, report
from od_finetune.planning.depth_costs import THIS_CONFIG, DepthCosts, Row, _configured, agreement
from od_finetune.training.costs import Depth, StepCost
from od_finetune.training.probe import Measurement

FORWARD = 100


def make_row(name: str, backward: int, configured: str = "", seconds: float | None = None) -> Row:
    measured = None
    if seconds:
        measured = Measurement((seconds,) * 3, (2 * seconds,) * 3, int(1e9 + 1e6 * backward), (2.0,) * 3)
    cost = StepCost(FORWARD, backward, 2 * (FORWARD + backward), backward * 10**6, 2 * backward * 10**6)
    return Row(Depth(name, (name,), tuple(map(str, range(backward)))), cost, backward, 7, 9, configured, measured)


def make(*rows: Row) -> DepthCosts:
    return DepthCosts(rows, 2, (30, 40), "Momentum", {"a": FORWARD})


@pytest.fixture
def costs() -> DepthCosts:
    names = ["none", "d1", "d2", "d3", "d4", "d5"]
    return make(*(make_row(n, 200 - 40 * i, THIS_CONFIG if n == "d1" else "") for i, n in enumerate(names)))


def test_the_shallowest_depth_with_most_of_the_saving_is_suggested(costs):
    found = costs.suggestion()  # steps cost 300, 260, 220, 180, 140, 100
    assert found.name == "d4" and found.least == pytest.approx(1 / 3)
    assert found.relative == pytest.approx(140 / 300)
    assert 'freeze_through: "d4". A step then costs 0.47x' in found.text and "(predicted)" in found.text


def test_measurements_overrule_predictions(costs):
    seconds = {"none": 1.0, "d2": 0.3, "d5": 0.2}
    measured = {name: Measurement((s,), (s,), 10**9, (1.0,)) for name, s in seconds.items()}
    found = costs.with_measurements(measured)
    assert found.estimated(found.rows[2]) == pytest.approx(0.3)
    assert found.estimated(found.rows[1]) == pytest.approx(0.65)  # halfway by prediction
    assert found.suggestion().name == "d2" and "(measured)" in found.suggestion().text
    assert [row.depth.name for row, _, _ in agreement(found)] == ["none", "d2", "d5"]
    assert agreement(found)[1][1] == pytest.approx(220 / 300 / 0.3)


def test_nothing_is_suggested_where_nothing_is_saved():
    found = make(make_row("none", 0)).suggestion()
    assert found.name == "none" and "saves nothing" in found.text


def test_ends_and_the_configs_own_depth_are_always_measured(costs):
    assert [row.depth.name for row in costs.choose(2)] == ["none", "d1", "d5"]
    assert [row.depth.name for row in costs.choose(3)] == ["none", "d1", "d2", "d5"]
    assert costs.choose(None) == list(costs.rows)
    own = make(*costs.rows[:2], make_row(THIS_CONFIG, 77, configured=THIS_CONFIG))
    assert [row.depth.name for row in own.choose(2)] == ["none", "d1", THIS_CONFIG]
    assert own.suggestion().name != THIS_CONFIG


def test_the_table_and_the_json_say_the_same(costs):
    said = report.text(costs)
    assert "one step of 2 images of 30x40, optimiser Momentum" in said
    line = next(line for line in said.splitlines() if line.startswith("d1 "))
    assert line.split()[:7] == ["d1", "160", "0.00", "0.87x", "0.87x", "0.87x", "160.0"]
    assert line.endswith("<- this config")
    plain = json.loads(json.dumps(costs.to_json()))
    assert plain["depths"][1]["freeze_through"] == "d1" and plain["depths"][1]["configured"] == THIS_CONFIG
    assert plain["depths"][1]["relative"] == pytest.approx(260 / 300)
    assert plain["depths"][1]["measured"] is None
    assert plain["suggestion"]["name"] == "d4"


def test_the_table_of_measured_depths():
    costs = make(make_row("none", 200, seconds=2.0), make_row("d1", 100), make_row("d2", 0, THIS_CONFIG, seconds=0.5))
    said = report.text(costs)
    assert next(line for line in said.splitlines() if line.startswith("d2 ")).split()[9:13] == [
        "0.500", "0.25x", "1.00", "1000",
    ]  # fmt: skip
    assert "Predicted / measured: d2: time 1.33, memory saved 2.00." in said


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_the_picture_is_a_small_png(costs, seconds):
    rows = [make_row(row.depth.name, row.cost.backward_flops, row.configured, seconds) for row in costs.rows]
    content = report.picture(make(*rows))
    assert len(content) < 80_000
    assert Image.open(io.BytesIO(content)).width == 800


class FakeProcess:
    """Answers as a probing process would; a step takes as long as its depth has variables to train, and its number."""

    log: list[str] = []

    def __init__(self, config, frozen, name):
        self.name, self.frozen, self.taken = name, frozen, 0

    def __enter__(self):
        self.log.append(f"start {self.name}")
        return self

    def __exit__(self, *_):
        self.log.append(f"gone {self.name}")

    def ask(self, line):
        self.log.append(f"{line} {self.name}")
        if line == "end":
            return {"peak_bytes": 10**9 - len(self.frozen)}
        self.taken = self.taken % 3 + 1
        return {"seconds": (201.0 - len(self.frozen)) * self.taken, "cpu_seconds": 1.0}


def test_depths_take_their_steps_in_turns(costs, monkeypatch):
    monkeypatch.setattr(probing, "_process", FakeProcess)
    monkeypatch.setattr(probing, "TOGETHER", 2)
    monkeypatch.setattr(probing, "STEPS", 3)
    FakeProcess.log = []
    found = probing.measure(costs, probing.pipeline.TrainEvalPipelineConfig(), None)
    turn = ["step none", "step d1", "step d2"]
    begun = ["start none", "start d1", "start d2", *turn * 3, "end none", "end d1", "end d2", "gone d2", "gone d1"]
    assert FakeProcess.log[: len(begun)] == begun
    assert FakeProcess.log[-1] == "gone none" and "start d5" in FakeProcess.log
    assert [row.measured.relative for row in found.rows] == pytest.approx([1 - 40 * i / 201 for i in range(6)])
    assert found.rows[1].measured.peak_bytes == 10**9 - 40


def test_what_gradual_unfreezing_will_train_is_marked_too():
    class Phase:
        def __init__(self, from_step, trainable):
            self.from_step, self.trainable, self.phases = from_step, trainable, []

    phases = [Phase(0, ["c"]), Phase(300, ["b", "c"]), Phase(500, ["c"])]
    phases[0].phases = phases
    assert _configured(phases[0]) == {
        frozenset("c"): "this config",
        frozenset("bc"): "this config from step 300",
    }
