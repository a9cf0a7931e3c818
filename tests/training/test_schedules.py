from __future__ import annotations

import json

import pytest
import tensorflow as tf
from google.protobuf import text_format

from od_finetune.config.training import build_schedule
from od_finetune.errors import UserError
from od_finetune.protos import optimizer_pb2
from od_finetune.training import schedules


def test_all_recorded_rates(shared):
    rows = json.loads((shared / "reference" / "schedules.json").read_text())
    assert len(rows) >= 7
    for row in rows:
        config = text_format.Parse(row["learning_rate"], optimizer_pb2.LearningRate())
        schedule = build_schedule(config)
        for step, rate in row["at"].items():
            found = float(schedule(tf.constant(int(step), tf.int64)))
            assert found == pytest.approx(rate, rel=2e-6, abs=1e-9), (row["learning_rate"], step)


@pytest.mark.parametrize("step, rate", [(0, 0.001), (9, 0.001), (10, 0.1), (20, 0.05), (1000, 0.02)])
def test_burn_in_then_decay_to_the_floor(step, rate):
    schedule = schedules.exponential_decay(0.1, 10, 0.5, False, 0.001, 10, floor=0.02)
    assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(rate, rel=1e-6)


def test_burn_in_without_a_rate_of_its_own_holds_the_initial_one():
    schedule = schedules.exponential_decay(0.1, 10, 0.5, False, 0.0, 10)
    assert [round(float(schedule(s)), 6) for s in (0, 9, 10, 20)] == [0.1, 0.1, 0.1, 0.05]


def test_cosine_without_warmup_starts_at_its_base():
    schedule = schedules.cosine_decay(0.5, total_steps=10)
    assert [round(float(schedule(s)), 4) for s in (0, 5, 10, 11)] == [0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: schedules.cosine_decay(0.1, 100, 0.01, 90, 10), "total_steps"),
        (lambda: schedules.cosine_decay(0.1, 100, 0.2, 10), "warmup_learning_rate"),
        (lambda: schedules.manual_step(0.1, [20, 10], [0.1, 0.1]), "increase"),
        (lambda: schedules.exponential_decay(0.1, 0, 0.5), "decay_steps"),
        (lambda: build_schedule(optimizer_pb2.LearningRate()), "constant_learning_rate"),
    ],
)
def test_what_makes_no_sense_is_refused(make, word):
    with pytest.raises(UserError, match=word):
        make()
