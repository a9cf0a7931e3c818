"""From record files to batches: a deterministic stream that can be entered at any batch.

    record strings -> shuffle, repeat -> skip -> number -> decode, augment, resize, pad -> batch -> prefetch

The order of the stream depends on the seed and the epoch alone, every random number of an augmentation on the
seed and the record's place in the stream. So two runs with one seed see the same batches, and a run that is
resumed goes on with the very batch that would have come next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from od_finetune.data import checks, records
from od_finetune.data import sample as s
from od_finetune.data.decoder import Decoder
from od_finetune.data.draws import fold_in, split, uniform
from od_finetune.data.geometry import as_float, masks_like
from od_finetune.data.groundtruth import BatchOptions, to_groundtruth
from od_finetune.data.records import RecordFile
from od_finetune.data.sample import Sample, Step
from od_finetune.fields import Batch

Resize = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

_FOREVER = tf.int64.max


class StreamOptions(NamedTuple):
    """How records are read."""

    shuffle: bool = True
    shuffle_buffer: int = 2048  # records
    shuffle_files_buffer: int = 100  # files; 0 keeps their order
    num_readers: int = 64  # files read in turn (when shuffling; else one after the other)
    read_block_length: int = 32  # records taken from a file in its turn
    sample_1_of_n: int = 1
    num_epochs: int = 0  # 0: for ever
    seed: int = 0


def build_stream(
    sources: Sequence[Sequence[RecordFile]],
    options: StreamOptions,
    weights: Sequence[float] = (),
    skip: int = 0,
) -> tf.data.Dataset:
    """The records of all sources as (position "file:record number", serialised record), without the first `skip`.

    With one weight per source, each record comes from a source drawn with these weights; otherwise the sources
    are one set of files. An epoch that is skipped as a whole costs nothing where there are no weights.
    """
    if weights:
        mixed = _mix([_epochs(files, options, number) for number, files in enumerate(sources)], weights, options.seed)
        return mixed.skip(skip)
    files = [file for source in sources for file in source]
    per_epoch = -(-sum(file.num_records for file in files) // options.sample_1_of_n)
    first_epoch, rest = divmod(skip, per_epoch)
    return _epochs(files, options, 0, first_epoch).skip(rest)


def _epochs(files: Sequence[RecordFile], options: StreamOptions, number: int, first: int = 0) -> tf.data.Dataset:
    """Epochs `first`, `first` + 1, ... of a set of files; `number` tells several sets' seeds apart."""
    paths = tf.constant([file.path for file in files])
    seed = tf.constant([options.seed % 2**31, number], tf.int32)

    @tf.autograph.experimental.do_not_convert
    def read(file_index: tf.Tensor) -> tf.data.Dataset:
        path = paths[file_index]
        return (
            tf.data.TFRecordDataset(path)
            .enumerate()
            .map(lambda record, serialized: (tf.strings.join([path, ":", tf.strings.as_string(record)]), serialized))
        )

    @tf.autograph.experimental.do_not_convert
    def epoch(index: tf.Tensor) -> tf.data.Dataset:
        # The shuffle's seed must not depend on a global seed that someone sets; this is this function's graph only.
        tf.compat.v1.set_random_seed(1)
        file_seed, record_seed = (tf.cast(part[0], tf.int64) for part in split(fold_in(seed, index), 2))
        dataset = tf.data.Dataset.range(len(files))
        cycle = 1
        if options.shuffle:
            cycle = max(1, min(options.num_readers, len(files)))
            if options.shuffle_files_buffer and len(files) > 1:
                dataset = dataset.shuffle(options.shuffle_files_buffer, seed=file_seed)
        dataset = dataset.interleave(read, cycle_length=cycle, block_length=max(1, options.read_block_length))
        if options.sample_1_of_n > 1:
            dataset = dataset.shard(options.sample_1_of_n, 0)
        if options.shuffle and options.shuffle_buffer > 1:
            dataset = dataset.shuffle(options.shuffle_buffer, seed=record_seed)
        return dataset

    return tf.data.Dataset.range(first, options.num_epochs or _FOREVER).flat_map(epoch)


def _mix(streams: list[tf.data.Dataset], weights: Sequence[float], seed: int) -> tf.data.Dataset:
    limits = tf.cumsum(tf.constant(weights, tf.float32) / sum(weights))
    mix_seed = tf.constant([seed % 2**31, len(streams)], tf.int32)

    @tf.autograph.experimental.do_not_convert
    def choose(index: tf.Tensor) -> tf.Tensor:
        chosen = tf.reduce_sum(tf.cast(uniform(fold_in(mix_seed, index)) >= limits, tf.int64))
        return tf.minimum(chosen, len(streams) - 1)

    return tf.data.Dataset.choose_from_datasets(streams, tf.data.Dataset.range(_FOREVER).map(choose))


def build_batches(
    stream: tf.data.Dataset,
    decoder: Decoder,
    resize: Resize,
    options: BatchOptions,
    steps: Sequence[Step] = (),
    seed: int = 0,
    first_index: int = 0,
) -> tf.data.Dataset:
    """Batches of a stream that begins at record `first_index`.

    Args:
      resize: as `Detector.resize`. Images of different sizes are filled up to the batch's largest, with what
        `Detector.normalize` makes 0.
      steps: augmentation steps, in order.
    """
    base_seed = tf.constant([seed % 2**31, len(steps)], tf.int32)

    @tf.autograph.experimental.do_not_convert
    def process(index: tf.Tensor, record: tuple[tf.Tensor, tf.Tensor]) -> Batch:
        decoded = decoder(record[1], record[0])
        sample = augment(decoded.sample, fold_in(base_seed, index), steps)
        image, true_shape = resize(sample.image)
        true_shape = tf.ensure_shape(tf.cast(true_shape, tf.int32), [3])
        if s.MASKS in sample.objects:
            masks = masks_like(sample.objects[s.MASKS], image, true_shape)
            sample = sample._replace(objects={**sample.objects, s.MASKS: masks})
        return Batch(
            images=as_float(image),
            true_shapes=true_shape,
            groundtruth=to_groundtruth(sample, options),
            keys=decoded.key,
            source_ids=decoded.source_id,
            original_shapes=tf.shape(decoded.sample.image)[:2],
            context=decoded.context,
        )

    dataset = stream.enumerate(start=first_index)
    dataset = dataset.map(process, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = _batch(dataset, options)
    if options.prefetch:
        dataset = dataset.prefetch(options.prefetch if options.prefetch > 0 else tf.data.AUTOTUNE)
    settings = tf.data.Options()
    settings.deterministic = True
    # sharding by file would hand whole shards to one worker of a distribution strategy, in another order
    settings.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(settings)


def _batch(dataset: tf.data.Dataset, options: BatchOptions) -> tf.data.Dataset:
    structure = dataset.element_spec
    specs = tf.nest.flatten(structure)
    present = [number for number, spec in enumerate(specs) if isinstance(spec, tf.TensorSpec)]
    if all(specs[number].shape.is_fully_defined() for number in present):
        return dataset.batch(options.batch_size, options.drop_remainder)

    @tf.autograph.experimental.do_not_convert
    def fields_present(batch: Batch) -> tuple[tf.Tensor, ...]:
        values = tf.nest.flatten(batch)
        return tuple(values[number] for number in present)

    @tf.autograph.experimental.do_not_convert
    def all_fields(*values: tf.Tensor) -> Batch:
        by_number = dict(zip(present, values, strict=True))
        return tf.nest.pack_sequence_as(structure, [by_number.get(number) for number in range(len(specs))])

    # padded_batch takes no None, which is what a field that is not loaded holds
    dataset = dataset.map(fields_present).padded_batch(options.batch_size, drop_remainder=options.drop_remainder)
    return dataset.map(all_fields)


def augment(sample: Sample, seed: tf.Tensor, steps: Sequence[Step]) -> Sample:
    """Applies the steps in order, each with a seed of its own."""
    for number, step in enumerate(steps):
        sample = step(sample, fold_in(seed, number))
    return sample


def explain(
    error: BaseException, files: Callable[[], Sequence[RecordFile]] = tuple
) -> checks.BadRecord | None:
    """What an error of iterating over a data set says about the data, readably; None if it is about something else.

    `files`: gives the files in which a damaged record is looked for, since TensorFlow does not name it.
    """
    if isinstance(error, tf.errors.DataLossError):
        for file in files():
            found = records.damaged_record(file.path)
            if found:
                return checks.BadRecord(
                    f"{file.path}:{found[0]}: record is damaged ({found[1]}); write the file again or leave it out"
                )
    return checks.explain(error)
