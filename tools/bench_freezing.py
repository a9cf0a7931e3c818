"""What each way of freezing costs, in one run: `python tools/bench_freezing.py CONFIG [--freeze PATTERN ...]`.

Four ways that end in the same trainable weights under plain SGD, timed in turns on the same batch; the quickest step
of each counts, so that another load on the machine disturbs little:

- `not watched`: the gradient tape watches trainable variables only (what od_finetune does);
- `left out`: the tape watches everything, gradients of everything are formed, the optimiser gets the trainable ones
  (a traced step prunes the gradients that nobody takes, so this costs memory and tracing, hardly time, unless
  something such as clipping by global norm takes them all);
- `zeroed`: gradients of frozen variables are multiplied by zero and applied;
- `restored`: everything is updated, then the frozen variables get their old values back.

Batch norm layers that are frozen run in inference mode in all four.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import tensorflow as tf

from od_finetune import fields
from od_finetune.training import probe
from od_finetune.training.freeze import FreezePlan, FreezeRequest
from od_finetune.training.optimizers import Momentum
from od_finetune.training.schedules import constant

NOT_WATCHED, LEFT_OUT, ZEROED, RESTORED = "not watched", "left out", "zeroed", "restored"
METHODS = (NOT_WATCHED, LEFT_OUT, ZEROED, RESTORED)


def make_step(
    method: str, detector: fields.Detector, plan: FreezePlan, learning_rate: float
) -> Callable[[fields.Batch], tf.Tensor]:
    """A traced step of plain SGD that freezes by `method`; batch -> loss."""
    trained = plan.apply(detector)
    every = {n: v for n, v in detector.named_variables().items() if n in trained or v.trainable}
    updated = trained if method in (NOT_WATCHED, LEFT_OUT) else every
    watched = trained if method == NOT_WATCHED else every
    optimizer = Momentum(constant(learning_rate), momentum=0.0)
    optimizer.build(list(updated.values()), tf.Variable(0, dtype=tf.int64))
    # A variable, as the graph optimiser would drop a multiplication by a constant zero and all that leads to it.
    mask = tf.Variable(0.0, trainable=False)
    kept = {n: tf.Variable(v, trainable=False) for n, v in every.items() if n not in trained}

    @tf.function
    def step(batch: fields.Batch) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(watched.values()))
            inputs = detector.normalize(batch.images, batch.true_shapes)
            predictions = detector.predict(inputs, batch.true_shapes, training=True)
            loss = tf.add_n(list(detector.losses(predictions, batch.groundtruth).values()))
        gradients = dict(zip(watched, tape.gradient(loss, list(watched.values())), strict=True))
        if method == ZEROED:
            gradients = {n: g if n in trained or g is None else g * mask for n, g in gradients.items()}
        optimizer.apply_gradients([(gradients[n], updated[n]) for n in updated if gradients[n] is not None])
        if method == RESTORED:
            for name, value in kept.items():
                every[name].assign(value)
        return loss

    return step


def main() -> None:
    """Prints seconds per step and the ratio to what od_finetune does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a pipeline.config")
    parser.add_argument("--freeze", nargs="+", default=["feature_extractor"], help="patterns as in freeze_variables")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--side", type=int, default=300, help="height and width of the images")
    parser.add_argument("--steps", type=int, default=10)
    flags = parser.parse_args()

    from od_finetune.config import pipeline
    from od_finetune.config.detector import build_detector

    model = pipeline.load(flags.config).model
    plans = {"everything trained": ()} | {method: tuple(flags.freeze) for method in METHODS}
    batch, steps = None, {}
    for label, patterns in plans.items():
        detector = build_detector(model)
        detector.build()
        batch = batch or probe.random_batch(flags.batch_size, (flags.side, flags.side), detector.num_classes, 3)
        plan = FreezePlan.compute(detector, FreezeRequest(freeze=patterns))
        steps[label] = make_step(label if label in METHODS else NOT_WATCHED, detector, plan, 1e-4)
        steps[label](batch)  # traces
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(flags.steps):
        for label, step in steps.items():
            begun = time.perf_counter()
            float(step(batch))
            seconds[label].append(time.perf_counter() - begun)
    reference = min(seconds[NOT_WATCHED])
    print(f"{flags.config}: batch {flags.batch_size}, frozen: {' '.join(flags.freeze)}, best of {flags.steps} steps")
    for label, values in seconds.items():
        best = min(values)
        print(f"{label:20s} {best:8.3f} s/step  {flags.batch_size / best:7.1f} images/s  x{best / reference:.2f}")


if __name__ == "__main__":
    main()
