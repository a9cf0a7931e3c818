from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from batches import map_tensors

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training import loop
from od_finetune.training.best import BestSettings
from od_finetune.training.evaluator import Evaluator
from od_finetune.training.loop import LoopSettings
from od_finetune.training.stopping import StopRequest
from od_finetune.training.trainer import NotFiniteError


@pytest.mark.parametrize(
    "optimizer", ["momentum", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "rms_prop"))]
)
def test_six_steps_are_three_and_a_resume_and_three_to_the_bit(start, state_of, tmp_path, optimizer):
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
    with pytest.raises(KeyboardInterrupt), StopRequest():
        # Called, not sent: Python delivers a signal where it likes, also in callbacks that swallow exceptions.
        handler = signal.getsignal(signal.SIGINT)
        handler(signal.SIGINT, None)
        handler(signal.SIGINT, None)


def test_saves_evaluates_and_keeps_the_best_at_its_intervals(start, scripted, scalars, dataset, tmp_path):
    evaluated = start(
        LoopSettings(7, batch_size=2, checkpoint_every=3, evaluate_every=2, log_every=2, keep_checkpoints=0),
        evaluator=lambda detector: Evaluator(
            detector, dataset(2, endless=False), [scripted([0.1, 0.4, 0.3, 0.2])]
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
    train = scalars(run / "train")
    assert set(train) == {
        "Loss/localization_loss", "Loss/classification_loss", "Loss/regularization_loss", "Loss/total_loss",
        "learning_rate", "steps_per_second", "images_per_second",
    }
    assert list(train["Loss/total_loss"]) == [2, 4, 6, 7]
    for step, rate in train["steps_per_second"].items():  # orbit's own would be another clock's
        assert train["images_per_second"][step] == pytest.approx(rate * evaluated.settings.batch_size)
    written = [json.loads(line) for line in (run / "eval" / "results.jsonl").read_text().splitlines()]
    assert [(row["step"], row["score"]) for row in written] == [(2, 0.1), (4, 0.4), (6, 0.3), (7, 0.2)]
    assert all(fields.TOTAL_LOSS in row for row in written)
    assert list(scalars(run / "eval")["score"]) == [2, 4, 6, 7]


@pytest.mark.slow
def test_early_stopping_counts_through_a_resume(start, scripted, dataset):
    def evaluator(values):
        return lambda detector: Evaluator(detector, dataset(1, endless=False), [scripted(values)])

    best = BestSettings("score", patience=2)
    settings = LoopSettings(4, checkpoint_every=2)
    assert start(settings, evaluator=evaluator([0.5, 0.4]), best=best).run().reason == loop.COMPLETED
    outcome = start(settings._replace(num_steps=20), evaluator=evaluator([0.3]), best=best).run()
    assert outcome.reason == loop.EARLY_STOPPING and outcome.step == 6


def test_evaluates_averages_and_puts_the_weights_back(start, scripted, dataset):
    seen = []

    class Watch(scripted):
        def update(self, batch, detections):
            super().update(batch, detections)
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
                return map_tensors(tf.identity, batch)

        return dataset(skip=skip).map(fail)

    with pytest.raises(UserError, match="bad record 4"):
        start(LoopSettings(10), make_dataset=failing).run()
    assert (tmp_path / "run" / "ckpt-2.index").exists()


def test_data_that_ends_ends_the_run(start, dataset):
    outcome = start(LoopSettings(10), make_dataset=lambda skip: dataset(3, skip, endless=False)).run()
    assert outcome.reason == loop.END_OF_DATA and outcome.step == 3 and outcome.checkpoint.endswith("ckpt-3")


@pytest.mark.slow
def test_an_evaluation_that_a_signal_cut_short_is_made_after_the_resume(start, scripted, dataset, tmp_path):
    class Signalling(scripted):
        def update(self, batch, detections):
            super().update(batch, detections)
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluator(metric):
        return lambda detector: Evaluator(detector, dataset(2, endless=False), [metric])

    settings = LoopSettings(8, checkpoint_every=3, evaluate_every=2)
    cut = start(settings, evaluator=evaluator(Signalling([0.1])), best=BestSettings("score")).run()
    assert cut.reason == loop.SIGNALLED and cut.step == 2 and cut.results == {}
    settings, best = settings._replace(num_steps=5), BestSettings("score")
    start(settings, evaluator=evaluator(scripted([0.9, 0.2, 0.3])), best=best).run()
    history = tmp_path / "run" / "eval" / "results.jsonl"
    steps = [json.loads(line)["step"] for line in history.read_text().splitlines()]
    assert steps == [2, 4, 5]
    record = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (record["step"], record["value"]) == (2, 0.9)
    assert (tmp_path / "run" / "best" / "ckpt-2.index").exists()
    # What is recorded is not evaluated again: the script has no value left, and patience does not count twice.
    again = start(settings, evaluator=evaluator(scripted([])), best=best).run()
    assert again.results["score"] == 0.3
    assert json.loads((tmp_path / "run" / "best" / "best.json").read_text()) == record


@pytest.mark.slow
def test_what_was_evaluated_after_the_step_it_goes_on_from_is_forgotten(start, scripted, dataset, tmp_path):
    def run(num_steps, values):
        made = start(
            LoopSettings(num_steps, checkpoint_every=2),
            evaluator=lambda detector: Evaluator(detector, dataset(1, endless=False), [scripted(values)]),
        )
        made.run()

    run(4, [0.1, 0.2])
    for path in (tmp_path / "run").glob("ckpt-4*"):
        path.unlink()
    history = tmp_path / "run" / "eval" / "results.jsonl"
    with history.open("a") as file:
        file.write('{"step": 6, "sco')  # a kill while writing
    run(4, [0.3])
    assert [json.loads(line)["score"] for line in history.read_text().splitlines()] == [0.1, 0.3]


def test_a_fresh_run_does_not_compete_with_the_best_of_another(start, scripted, dataset, tmp_path):
    def fresh(values):
        for path in (tmp_path / "run").glob("ckpt-*"):
            path.unlink()
        made = start(
            LoopSettings(2, checkpoint_every=1),
            evaluator=lambda detector: Evaluator(detector, dataset(1, endless=False), [scripted(values)]),
            best=BestSettings("score", patience=2),
        )
        return made, made.run()

    fresh([0.9, 0.8])
    best = tmp_path / "run" / "best"
    again, outcome = fresh([float("nan"), 0.2])
    assert outcome.reason == loop.COMPLETED and "starts anew" in again.said()
    record = json.loads((best / "best.json").read_text())
    assert (record["step"], record["value"]) == (2, 0.2)
    assert {path.name.split(".")[0] for path in best.glob("ckpt-*")} == {"ckpt-2"}
    written = (tmp_path / "run" / "eval" / "results.jsonl").read_text().splitlines()
    assert len(written) == 2


def test_a_misspelt_best_metric_is_refused_before_the_first_step(start, scripted, dataset, tmp_path):
    def make(metric):
        return start(
            LoopSettings(2),
            evaluator=lambda detector: Evaluator(detector, dataset(1, endless=False), [scripted([0.1])]),
            best=BestSettings(metric),
        )

    with pytest.raises(UserError, match="best_metric is 'scoer'.*score"):
        make("scoer")
    with pytest.raises(UserError, match="Loss/totl_loss.*Loss/total_loss"):
        make("Loss/totl_loss")
    assert make("Loss/total_loss").best is not None


def test_an_evaluation_at_the_start_is_of_the_restored_weights_and_counts(start, scripted, dataset, tmp_path):
    seen = []

    class Watch(scripted):
        def update(self, batch, detections):
            super().update(batch, detections)
            seen.append(self.detector.named_variables()["BoxPredictor_0/ClassPredictor/weights"].numpy())

    def evaluator(detector):
        metric = Watch([0.7, 0.2, 0.1])
        metric.detector = detector
        seen.append(detector.named_variables()["BoxPredictor_0/ClassPredictor/weights"].numpy())
        return Evaluator(detector, dataset(1, endless=False), [metric])

    settings = LoopSettings(2, checkpoint_every=2, evaluate_at_start=True)
    best = BestSettings("score", patience=2)
    assert start(settings, evaluator=evaluator, best=best).run().step == 2
    np.testing.assert_array_equal(seen[1], seen[0])
    assert not np.array_equal(seen[2], seen[0])
    history = tmp_path / "run" / "eval" / "results.jsonl"
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == [0, 2]
    record = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
    assert (record["step"], record["value"], record["evaluations_without_improvement"]) == (0, 0.7, 1)
    assert not (tmp_path / "run" / "ckpt-0.index").exists()  # the next run would go on from it, not restore
    start(settings._replace(num_steps=4), evaluator=evaluator, best=best).run()  # a resume does not start again
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == [0, 2, 4]
