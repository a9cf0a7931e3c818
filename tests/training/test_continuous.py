from __future__ import annotations

import functools
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.config.export import load_trained
from od_finetune.errors import UserError
from od_finetune.training import checkpointing, continuous, loop
from od_finetune.training.continuous import evaluate_checkpoints
from od_finetune.training.evaluator import Evaluator
from od_finetune.training.loop import LoopSettings


@pytest.fixture
def evaluator(fake_detector, dataset, scripted):
    return Evaluator(fake_detector(5), dataset(1, endless=False), [scripted([0.1, 0.2, 0.3])])


@pytest.fixture
def load(evaluator):
    """What a run is given to load a checkpoint with."""
    return functools.partial(load_trained, evaluator.detector)


def test_takes_the_newest_or_each_as_it_appears(start, evaluator, load, scalars, tmp_path):
    start(LoopSettings(4, checkpoint_every=2)).run()
    seen = []
    outcome = evaluate_checkpoints(
        evaluator, load, tmp_path / "run", tmp_path / "eval", run_once=True,
        on_results=lambda step, r: seen.append(step),
    )
    assert outcome.results["score"] == 0.1 and seen == [4] and outcome.exit_code == 0
    outcome = evaluate_checkpoints(
        evaluator, functools.partial(load, use_moving_averages=True), tmp_path / "run", tmp_path / "eval", last_step=4,
        on_results=lambda step, r: seen.append(step),
    )
    assert outcome.results["score"] == 0.2 and seen == [4, 4] and outcome.checkpoint.endswith("ckpt-4")
    assert list(scalars(tmp_path / "eval")["score"]) == [4]
    for once in (True, False):
        with pytest.raises(UserError, match="no checkpoint"):
            evaluate_checkpoints(evaluator, load, tmp_path / "none", tmp_path / "eval", run_once=once, timeout=0.1)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_a_checkpoint_that_goes_unread_is_left_out(start, evaluator, load, tmp_path, monkeypatch, caplog, part):
    start(LoopSettings(2, checkpoint_every=1)).run()
    found = checkpointing.candidates(tmp_path / "run")
    (tmp_path / "run" / f"ckpt-1.{part}").unlink()
    monkeypatch.setattr(continuous, "_appearing", lambda *_: reversed(found))
    seen = []
    outcome = evaluate_checkpoints(
        evaluator, load, tmp_path / "run", tmp_path / "eval", on_results=lambda step, r: seen.append(step)
    )
    assert seen == [2] and outcome.step == 2
    assert "ckpt-1: a half-written or incompletely copied checkpoint" in caplog.text
    monkeypatch.setattr(continuous, "_newest", lambda *_: found[1:])
    with pytest.raises(UserError, match="ckpt-1: a half-written or incompletely copied"):
        evaluate_checkpoints(evaluator, load, tmp_path / "run", tmp_path / "eval", run_once=True)


def test_each_new_one_after_the_interval_until_the_wait_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(continuous, "_SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "ckpt-1.index").touch()
    seen = []
    for path in continuous._appearing(tmp_path, 0.1, 0.05, loop.StopRequest()):
        seen.append(path)
        if len(seen) == 1:
            (tmp_path / "ckpt-2.index").touch()
            (tmp_path / "ckpt-3.index").touch()
    assert seen == [str(tmp_path / "ckpt-1"), str(tmp_path / "ckpt-3")]


def test_an_interrupt_ends_it_with_the_shells_code(start, evaluator, load, tmp_path):
    start(LoopSettings(2)).run()
    before = signal.getsignal(signal.SIGINT)
    outcome = evaluate_checkpoints(
        evaluator, load, tmp_path / "run", tmp_path / "eval", on_results=lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    assert (outcome.step, outcome.reason, outcome.exit_code) == (2, loop.SIGNALLED, 130)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_within_an_evaluation_ends_it_too(start, evaluator, load, tmp_path):
    start(LoopSettings(2)).run()
    evaluator.metrics[0].update = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    outcome = evaluate_checkpoints(evaluator, load, tmp_path / "run", tmp_path / "eval", run_once=True)
    assert (outcome.results, outcome.exit_code) == ({}, 143)


@pytest.mark.parametrize("prefix", ["model.ckpt", "checkpoint/ckpt-0"])
def test_a_checkpoint_from_elsewhere_can_be_evaluated(evaluator, load, fake_detector, tmp_path, prefix):
    """Published archives: `model.ckpt` of TF1, here without a step, and the folder `checkpoint` of TF2."""
    variables = fake_detector(3).named_variables()
    (tmp_path / prefix).parent.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / prefix),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[variable.read_value() for variable in variables.values()],
    )
    outcome = evaluate_checkpoints(evaluator, load, tmp_path, tmp_path / "eval", run_once=True)
    assert outcome.step == 0 and outcome.checkpoint == str(tmp_path / prefix)
    for name, variable in evaluator.detector.named_variables().items():
        np.testing.assert_array_equal(variable, variables[name], err_msg=name)
