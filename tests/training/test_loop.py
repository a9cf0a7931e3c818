from __future__ import annotations

import io
import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training import loop, optimizers, schedules
from od_finetune.training.best import BestSettings
from od_finetune.training.evaluator import Evaluator
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.loop import LoopSettings, TrainingLoop, evaluate_checkpoints
from od_finetune.training.progress import Progress
from od_finetune.training.trainer import NotFiniteError, Trainer

KINDS = {
    "momentum": lambda: optimizers.Momentum(schedules.cosine_decay(0.05, 10, 0.01, 2)),
    "adam": lambda: optimizers.Adam(schedules.cosine_decay(0.05, 10, 0.01, 2)),
    "rms_prop": lambda: optimizers.RmsProp(schedules.cosine_decay(0.05, 10, 0.01, 2)),
}


class Scripted:
    """A metric that gives the next of some values at each evaluation."""

    primary = "score"

    def __init__(self, values):
        self.values = iter(values)

    def reset(self):
        pass

    def update(self, batch, detections):
        pass

    def result(self):
        return {"score": next(self.values)}


@pytest.fixture
def start(fake_detector, dataset, tmp_path):
    """Makes a loop over a fresh detector in the test's model_dir."""

    def make(settings, optimizer="momentum", make_dataset=None, evaluator=None, model_dir=None, freeze=(), **kw):
        detector = fake_detector()
        plan = FreezePlan.compute(detector, FreezeRequest(freeze=freeze))
        trainer = Trainer(detector, plan, KINDS[optimizer](), moving_average_decay=0.9)
        made = evaluator(detector) if evaluator else None
        stream = io.StringIO()
        kw["progress"] = Progress(settings.num_steps, settings.batch_size, stream)
        make_dataset = make_dataset or (lambda skip: dataset(skip=skip))
        loop_ = TrainingLoop(trainer, model_dir or tmp_path / "run", settings, make_dataset, made, **kw)
        loop_.said = stream.getvalue
        return loop_

    return make


def state_of(trainer) -> dict[str, np.ndarray]:
    state = {name: v.numpy() for name, v in trainer.detector.named_variables().items()}
    state |= {f"average/{name}": v.numpy() for name, v in trainer.moving_average.shadows.items()}
    for name, variable in trainer.trained.items():
        for slot in trainer.optimizer.get_slot_names():
            state[f"{slot}/{name}"] = trainer.optimizer.get_slot(variable, slot).numpy()
    return state | {"step": trainer.global_step.numpy()}


@pytest.mark.parametrize("optimizer", KINDS)
def test_six_steps_are_three_and_a_resume_and_three_to_the_bit(start, tmp_path, optimizer):
    straight = start(LoopSettings(6), optimizer, model_dir=tmp_path / "straight", freeze=("Conv_0",))
    straight.run()
    start(LoopSettings(3), optimizer, model_dir=tmp_path / "parts", freeze=("Conv_0",)).run()
    resumed = start(LoopSettings(6), optimizer, model_dir=tmp_path / "parts", freeze=("Conv_0",))
    outcome = resumed.run()
    assert outcome.step == 6 and outcome.reason == loop.COMPLETED and outcome.exit_code == 0
    assert "ckpt-3 at step 3" in resumed.said()
    expected = state_of(straight.trainer)
    for name, value in state_of(resumed.trainer).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert resumed.trainer._train_loop_fn.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(start, dataset, tmp_path, number, code):
    before = signal.getsignal(number)

    def make_dataset(skip):
        return dataset(skip=skip)

    endless = start(LoopSettings(0, checkpoint_every=0, log_every=2), make_dataset=make_dataset)
    show = endless.progress.show

    def show_and_signal(step, values, last):
        show(step, values, last)
        if step >= 4 and not endless.stop:
            os.kill(os.getpid(), number)

    endless.progress.show = show_and_signal
    outcome = endless.run()
    assert outcome.reason == loop.SIGNALLED and outcome.exit_code == code
    assert outcome.step >= 4 and outcome.checkpoint.endswith(f"ckpt-{outcome.step}")
    assert (tmp_path / "run" / f"ckpt-{outcome.step}.index").exists()
    assert signal.getsignal(number) == before


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), loop.StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_saves_evaluates_and_keeps_the_best_at_its_intervals(start, dataset, tmp_path):
    evaluated = start(
        LoopSettings(7, checkpoint_every=3, evaluate_every=2, log_every=2, keep_checkpoints=0),
        evaluator=lambda detector: Evaluator(
            detector, dataset(2, endless=False), [Scripted([0.1, 0.4, 0.3, 0.2])]
        ),
        best=BestSettings("score"),
    )
    outcome = evaluated.run()
    run = tmp_path / "run"
    saved = {int(path.stem.split("-")[1]) for path in run.glob("ckpt-*.index")}
    assert saved == {2, 3, 4, 6, 7}  # every third, the evaluated ones, the last
    assert outcome.results["score"] == 0.2 and fields.TOTAL_LOSS in outcome.results
    record = json.loads((run / "best" / "best.json").read_text())
    assert (record["step"], record["value"]) == (4, 0.4)
    scalars = read_scalars(run / "train")
    assert set(scalars) == {
        "Loss/localization_loss", "Loss/classification_loss", "Loss/regularization_loss", "Loss/total_loss",
        "learning_rate", "steps_per_second", "images_per_second",
    }
    assert scalars["Loss/total_loss"] == [2, 4, 6, 7]
    assert read_scalars(run / "eval")["score"] == [2, 4, 6, 7]


def read_scalars(directory) -> dict[str, list[int]]:
    """Steps at which each tag was written."""
    steps: dict[str, list[int]] = {}
    for path in sorted(directory.iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


def test_early_stopping_counts_through_a_resume(start, dataset):
    def evaluator(values):
        return lambda detector: Evaluator(detector, dataset(1, endless=False), [Scripted(values)])

    best = BestSettings("score", patience=2)
    settings = LoopSettings(4, checkpoint_every=2)
    assert start(settings, evaluator=evaluator([0.5, 0.4]), best=best).run().reason == loop.COMPLETED
    outcome = start(settings._replace(num_steps=20), evaluator=evaluator([0.3]), best=best).run()
    assert outcome.reason == loop.EARLY_STOPPING and outcome.step == 6


def test_evaluates_averages_and_puts_the_weights_back(start, dataset):
    seen = []

    class Watch(Scripted):
        def update(self, batch, detections):
            seen.append(self.detector.named_variables()["BoxPredictor_0/ClassPredictor/weights"].numpy())

    def evaluator(detector):
        metric = Watch([0.0] * 9)
        metric.detector = detector
        return Evaluator(detector, dataset(1, endless=False), [metric])

    averaged = start(LoopSettings(3, evaluate_averages=True), evaluator=evaluator)
    averaged.run()
    name = "BoxPredictor_0/ClassPredictor/weights"
    np.testing.assert_array_equal(seen[-1], averaged.trainer.moving_average.shadows[name])
    assert not np.array_equal(seen[-1], averaged.trainer.trained[name])


def test_nan_names_step_records_and_the_last_good_checkpoint(start, dataset, tmp_path):
    def poisoned(skip):
        def poison(index, batch):
            factor = tf.where(index + skip == 4, np.float32(np.nan), 1.0)
            return batch._replace(images=batch.images * factor)

        return dataset(skip=skip).enumerate().map(poison)

    with pytest.raises(NotFiniteError) as error:
        start(LoopSettings(10, checkpoint_every=3), make_dataset=poisoned).run()
    for said in ("Step 5", "image-8", "image-9", str(tmp_path / "run" / "ckpt-3")):
        assert said in str(error.value)
    assert not (tmp_path / "run" / "ckpt-4.index").exists()


def test_what_was_trained_is_saved_when_the_data_fails(start, dataset, tmp_path):
    def failing(skip):
        def fail(batch):
            assertion = tf.debugging.Assert(tf.reduce_all(batch.keys != "train.record:4 image-4"), ["bad record 4"])
            with tf.control_dependencies([assertion]):
                return tf.nest.map_structure(tf.identity, batch)

        return dataset(skip=skip).map(fail)

    with pytest.raises(UserError, match="bad record 4"):
        start(LoopSettings(10), make_dataset=failing).run()
    assert (tmp_path / "run" / "ckpt-2.index").exists()


def test_data_that_ends_ends_the_run(start, dataset):
    outcome = start(LoopSettings(10), make_dataset=lambda skip: dataset(3, skip, endless=False)).run()
    assert outcome.reason == loop.END_OF_DATA and outcome.step == 3 and outcome.checkpoint.endswith("ckpt-3")


def test_evaluation_only_takes_the_newest_or_each_as_it_appears(start, fake_detector, dataset, tmp_path):
    start(LoopSettings(4, checkpoint_every=2)).run()
    detector = fake_detector(5)
    evaluator = Evaluator(detector, dataset(1, endless=False), [Scripted([0.1, 0.2, 0.3])])
    seen = []
    results = evaluate_checkpoints(
        evaluator, tmp_path / "run", tmp_path / "eval", run_once=True, on_results=lambda step, r: seen.append(step)
    )
    assert results["score"] == 0.1 and seen == [4]
    results = evaluate_checkpoints(
        evaluator, tmp_path / "run", tmp_path / "eval", use_moving_averages=True, last_step=4,
        on_results=lambda step, r: seen.append(step),
    )
    assert results["score"] == 0.2 and seen == [4, 4]
    assert read_scalars(tmp_path / "eval")["score"] == [4, 4]
    for once in (True, False):
        with pytest.raises(UserError, match="no checkpoint"):
            evaluate_checkpoints(evaluator, tmp_path / "none", tmp_path / "eval", run_once=once, timeout=0.1)
