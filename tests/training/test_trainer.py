from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from batches import batches_dataset, map_tensors

from od_finetune import fields
from od_finetune.errors import UserError
from od_finetune.training import optimizers, schedules
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.trainer import NotFiniteError, Trainer, TrainerSettings


def make_trainer(detector, dataset, settings=None, **request) -> Trainer:
    plan = FreezePlan.compute(detector, FreezeRequest(**request))
    return Trainer(detector, plan, optimizers.Momentum(schedules.constant(0.1), 0.0), dataset, settings)


def weights(detector) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in detector.named_variables().items()}


def test_total_is_the_sum_and_weight_decay_is_that_of_trained_variables(fake_detector, batch):
    detector = fake_detector(weight_decay=0.1)
    trainer = make_trainer(detector, None, freeze=("feature_extractor",))
    losses = {name: float(value) for name, value in trainer.losses(batch(0)).items()}
    head = [v for n, v in detector.named_variables().items() if n.startswith("BoxPredictor") and n.endswith("weights")]
    assert losses[fields.REGULARIZATION_LOSS] == pytest.approx(sum(0.05 * float(tf.reduce_sum(v**2)) for v in head))
    total = losses.pop(fields.TOTAL_LOSS)
    assert len(losses) == 3 and total == pytest.approx(sum(losses.values()))
    unregularized = make_trainer(detector, None, TrainerSettings(regularize=False))
    assert fields.REGULARIZATION_LOSS not in unregularized.losses(batch(0))


def test_training_lowers_the_loss_and_reports_means(fake_detector, dataset):
    trainer = make_trainer(fake_detector(), dataset(4))
    first = trainer.train(tf.constant(4))
    trainer.reset_means()
    for _ in range(10):
        last = trainer.train(tf.constant(4))
    assert float(last[fields.TOTAL_LOSS]) < 0.5 * float(first[fields.TOTAL_LOSS])
    assert float(last["learning_rate"]) == pytest.approx(0.1)
    assert int(trainer.global_step) == 44
    assert trainer._train_loop_fn.experimental_get_tracing_count() == 1


def test_clipping_is_by_global_norm(fake_detector, dataset):
    ends, start = [], weights(fake_detector())
    for settings in (TrainerSettings(clip_norm=0.0), TrainerSettings(clip_norm=1e-3)):
        detector = fake_detector()
        make_trainer(detector, dataset(), settings, freeze=("moving|BatchNorm",)).train(tf.constant(1))
        ends.append({name: value - start[name] for name, value in weights(detector).items()})
    free, clipped = (np.concatenate([move.ravel() for move in end.values()]) for end in ends)
    assert np.linalg.norm(clipped) == pytest.approx(0.1 * 1e-3, rel=1e-2)
    np.testing.assert_allclose(clipped / np.linalg.norm(clipped), free / np.linalg.norm(free), atol=2e-3)


def test_bias_multiplier_scales_the_gradients_of_biases_alone(fake_detector, dataset):
    start, moves = weights(fake_detector()), []
    for multiplier in (0.0, 3.0):
        detector = fake_detector()
        make_trainer(detector, dataset(), TrainerSettings(bias_multiplier=multiplier)).train(tf.constant(1))
        moves.append({name: value - start[name] for name, value in weights(detector).items()})
    for name in start:
        factor = 3.0 if name.endswith("/biases") else 1.0
        np.testing.assert_allclose(moves[1][name], factor * moves[0][name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_records(fake_detector, batch, bad):
    broken = batch(2)
    broken = broken._replace(groundtruth=broken.groundtruth._replace(boxes=broken.groundtruth.boxes * bad))
    rows = batches_dataset([batch(0), batch(1), broken, batch(3)])
    detector, reference = fake_detector(), fake_detector()
    trainer = make_trainer(detector, rows)
    with pytest.raises(NotFiniteError) as error:
        trainer.train(tf.constant(4))
    for said in ("Step 3", "train.record:4 image-4", "train.record:5 image-5", "learning rate"):
        assert said in str(error.value)
    make_trainer(reference, rows).train(tf.constant(2))
    trained = weights(reference)
    for name, value in weights(detector).items():
        if "moving" not in name:
            np.testing.assert_array_equal(value, trained[name], err_msg=name)


def test_an_error_of_the_input_pipeline_is_the_users(fake_detector, dataset):
    def check(batch: fields.Batch) -> fields.Batch:
        bad = tf.reduce_any(batch.keys == "train.record:4 image-4")
        message = "train.record:4: no JPEG or PNG"
        with tf.control_dependencies([tf.debugging.Assert(~bad, [message])]):
            return map_tensors(tf.identity, batch)

    trainer = make_trainer(fake_detector(), dataset().map(check))
    with pytest.raises(UserError, match="train.record:4: no JPEG or PNG") as error:
        trainer.train(tf.constant(5))
    assert str(error.value) == "The input pipeline failed: [train.record:4: no JPEG or PNG]"
    assert not isinstance(error.value, NotFiniteError)


def test_a_truncated_record_file_is_the_users(fake_detector, dataset, tmp_path):
    path = str(tmp_path / "cut.record")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(b"x" * 100)
    with open(path, "r+b") as file:
        file.truncate(60)
    records = tf.data.TFRecordDataset(path)
    joined = tf.data.Dataset.zip(records, dataset()).map(lambda record, batch: batch)
    with pytest.raises(UserError, match="input pipeline failed.*truncated"):
        make_trainer(fake_detector(), joined).train(tf.constant(1))


def test_a_programming_error_is_not_disguised(fake_detector, dataset):
    detector = fake_detector()
    detector.losses = lambda predictions, groundtruth: {"loss": tf.reshape(groundtruth.boxes[:1, 0, 0], [2])[0]}
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)) as error:
        make_trainer(detector, dataset()).train(tf.constant(1))
    assert not isinstance(error.value, UserError)


def test_a_dataset_that_ends_ends_training(fake_detector, dataset):
    trainer = make_trainer(fake_detector(), dataset(3, endless=False))
    trainer.train(tf.constant(10))
    assert trainer.exhausted and int(trainer.global_step) == 3


def test_a_variable_the_loss_does_not_reach_is_left_alone(fake_detector, dataset, hashes):
    detector = fake_detector(weight_decay=0.0)
    losses = detector.losses
    detector.losses = lambda p, g: {fields.LOCALIZATION_LOSS: losses(p, g)[fields.LOCALIZATION_LOSS]}
    before = hashes(detector)
    make_trainer(detector, dataset()).train(tf.constant(2))
    after = hashes(detector)
    assert {n for n in before if before[n] == after[n]} == {n for n in before if "ClassPredictor" in n}
