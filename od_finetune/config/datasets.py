"""Input readers -> data sets."""

from __future__ import annotations

import logging
import os

import tensorflow as tf

from od_finetune.config.augmentation import build_augmentation
from od_finetune.config.label_map import load_label_map
from od_finetune.data.context_features import ContextFeatures
from od_finetune.data.dataset import StreamOptions, build_batches, build_stream
from od_finetune.data.decoder import Decoder
from od_finetune.data.groundtruth import BatchOptions
from od_finetune.data.label_map import LabelMap
from od_finetune.data.object_extras import NUMERICAL_MASKS, PNG_MASKS, ObjectExtras
from od_finetune.data.records import RecordFile, find_files
from od_finetune.errors import UserError
from od_finetune.fields import Detector
from od_finetune.protos import eval_pb2, input_reader_pb2, train_pb2

logger = logging.getLogger(__name__)


def build_train_dataset(
    input_reader: input_reader_pb2.InputReader,
    train_config: train_pb2.TrainConfig,
    detector: Detector,
    label_map: LabelMap | None = None,
    skip_batches: int = 0,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Augmented batches to train on, for ever unless `num_epochs` is set.

    Args:
      detector: gives `num_classes`, `resize` and `context_size`.
      label_map: read from `label_map_path` where not given.
      skip_batches: so many batches are behind already; the stream begins with the next.
      seed: `train_config.seed` where not given.

    Raises:
      UserError: files, label map or options that can't be used. Iterating raises TensorFlow errors for bad
        records, see `data.dataset.explain`.
    """
    seed = train_config.seed if seed is None else seed
    _check_steps(input_reader, train_config)
    steps = build_augmentation(
        train_config.data_augmentation_options, detector.num_classes, input_reader.num_keypoints
    )
    options = _stream_options(input_reader)._replace(
        shuffle=input_reader.shuffle, num_epochs=input_reader.num_epochs, seed=seed
    )
    skip = skip_batches * train_config.batch_size
    batch = BatchOptions(
        batch_size=_positive("train_config.batch_size", train_config.batch_size),
        num_classes=detector.num_classes,
        max_boxes=_max_boxes(input_reader, train_config),
        merge_labels=train_config.merge_multiple_label_boxes,
        drop_remainder=input_reader.drop_remainder,
        prefetch=input_reader.num_prefetch_batches,
    )
    sources = _sources(input_reader)
    _check_size(sources, batch.batch_size, options)
    stream = build_stream(sources, options, _weights(input_reader), skip)
    decoder = _decoder(input_reader, detector, label_map)
    return build_batches(stream, decoder, detector.resize, batch, steps, seed, skip)


def build_eval_dataset(
    input_reader: input_reader_pb2.InputReader,
    eval_config: eval_pb2.EvalConfig,
    detector: Detector,
    label_map: LabelMap | None = None,
    max_examples: int | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Every record once, in the files' order unless `shuffle: true` is written out, nothing augmented.

    The last batch may be smaller. No box is left out unless `max_number_of_boxes` is written out: a batch is
    filled to the longest of its images (at least the field's default). To evaluate on training data, give the
    training's input reader.

    Args:
      max_examples: at most so many records; `eval_config.num_examples` where not given and written out.

    Raises:
      UserError: as `build_train_dataset`.
    """
    options = _stream_options(input_reader)._replace(
        shuffle=input_reader.HasField("shuffle") and input_reader.shuffle, num_epochs=1, seed=seed
    )
    batch = BatchOptions(
        batch_size=_positive("eval_config.batch_size", eval_config.batch_size),
        num_classes=detector.num_classes,
        max_boxes=_max_boxes(input_reader),
        truncate=input_reader.HasField("max_number_of_boxes"),
        drop_remainder=False,
        prefetch=input_reader.num_prefetch_batches,
    )
    stream = build_stream(_sources(input_reader), options, _weights(input_reader))
    if max_examples is None and eval_config.HasField("num_examples"):
        max_examples = eval_config.num_examples
    if max_examples:
        stream = stream.take(max_examples)
    decoder = _decoder(input_reader, detector, label_map)
    return build_batches(stream, decoder, detector.resize, batch)


def input_files(input_reader: input_reader_pb2.InputReader) -> list[RecordFile]:
    """Every record file of a reader with its number of records (found whole up to the records' own checksums).

    Raises:
      UserError: another kind of reader; a path that matches nothing; an empty, cut or foreign file.
    """
    return [file for source in _sources(input_reader) for file in source]


def check_reader(
    input_reader: input_reader_pb2.InputReader,
    train_config: train_pb2.TrainConfig | None = None,
    context_size: tuple[int, int] | None = None,
) -> None:
    """Whether a data set can be built of a reader, as far as its files' headers and its options tell.

    Args:
      train_config: given for the reader of the training.
      context_size: as the detector's.

    Raises:
      UserError: as `input_files`; an impossible option.
    """
    options = _stream_options(input_reader)
    _weights(input_reader)
    _max_boxes(input_reader, train_config)
    label_map = None
    if input_reader.use_keypoint_label_map and os.path.isfile(input_reader.label_map_path):
        label_map = load_label_map(input_reader.label_map_path)
    _extras(input_reader, label_map)
    _context(input_reader, context_size)
    sources = _sources(input_reader)
    if train_config is not None:
        _check_steps(input_reader, train_config)
        _check_size(sources, train_config.batch_size, options._replace(num_epochs=input_reader.num_epochs))


def _sources(input_reader: input_reader_pb2.InputReader) -> list[list[RecordFile]]:
    """One list of files per input_path."""
    kind = input_reader.WhichOneof("input_reader")
    if kind != "tf_record_input_reader":
        raise UserError(f"input reader: {kind or 'no kind of reader'} given, expected tf_record_input_reader")
    if input_reader.input_type == input_reader_pb2.TF_SEQUENCE_EXAMPLE:
        raise UserError("input_type: TF_SEQUENCE_EXAMPLE is not available, expected TF_EXAMPLE; write each frame as a "
                        "tf.Example, its context bank in image/context_features")
    patterns = list(input_reader.tf_record_input_reader.input_path)
    if not patterns:
        raise UserError("tf_record_input_reader: no input_path, expected at least one path or glob of TFRecord files")
    return [find_files([pattern]) for pattern in patterns]


def _stream_options(input_reader: input_reader_pb2.InputReader) -> StreamOptions:
    return StreamOptions(
        shuffle_buffer=input_reader.shuffle_buffer_size,
        shuffle_files_buffer=input_reader.filenames_shuffle_buffer_size,
        num_readers=input_reader.num_readers,
        read_block_length=input_reader.read_block_length,
        sample_1_of_n=_positive("sample_1_of_n_examples", input_reader.sample_1_of_n_examples),
    )


def _weights(input_reader: input_reader_pb2.InputReader) -> list[float]:
    weights = list(input_reader.sample_from_datasets_weights)
    paths = len(input_reader.tf_record_input_reader.input_path)
    if weights and len(weights) != paths:
        raise UserError(f"sample_from_datasets_weights has {len(weights)} values, expected {paths} (one per path)")
    if weights and (min(weights) < 0 or sum(weights) <= 0):
        raise UserError(f"sample_from_datasets_weights is {weights}, expected no negative and at least one positive")
    return weights


def _max_boxes(input_reader: input_reader_pb2.InputReader, train_config: train_pb2.TrainConfig | None = None) -> int:
    """The reader's field; the deprecated one of train_config only where the reader's is not written out."""
    if train_config is not None and train_config.HasField("max_number_of_boxes"):
        if not input_reader.HasField("max_number_of_boxes"):
            return _positive("train_config.max_number_of_boxes", train_config.max_number_of_boxes)
    return _positive("max_number_of_boxes", input_reader.max_number_of_boxes)


def _decoder(input_reader: input_reader_pb2.InputReader, detector: Detector, label_map: LabelMap | None) -> Decoder:
    num_classes = detector.num_classes
    if label_map is None and input_reader.label_map_path:
        label_map = load_label_map(input_reader.label_map_path)
    if label_map is not None:
        label_map.check(num_classes)
    extras, context = _extras(input_reader, label_map), _context(input_reader, detector.context_size)
    if label_map is None:
        return Decoder(num_classes, extras=extras, context=context)
    return Decoder(num_classes, label_map.ids(input_reader.use_display_name), label_map.path, extras, context)


def _context(input_reader: input_reader_pb2.InputReader, size: tuple[int, int] | None) -> ContextFeatures | None:
    if not input_reader.load_context_features:
        return None
    if size is None:
        raise UserError("load_context_features is true, but the model has nothing that looks at them; remove it, or "
                        "give the model a context_config (Faster R-CNN)")
    max_rows, length = size
    return ContextFeatures(length, max_rows)


def _extras(input_reader: input_reader_pb2.InputReader, label_map: LabelMap | None) -> ObjectExtras | None:
    """What is loaded of objects beside boxes; None for nothing, which keeps the graph as small as it was."""
    loads = (
        input_reader.num_keypoints,
        input_reader.load_instance_masks,
        input_reader.load_dense_pose,
        input_reader.load_track_id,
    )
    if input_reader.load_keypoint_depth_features and not input_reader.num_keypoints:
        raise UserError("load_keypoint_depth_features is set, but num_keypoints is 0; set it to the records' number")
    if input_reader.use_keypoint_label_map and not input_reader.num_keypoints:
        raise UserError("use_keypoint_label_map is set, but num_keypoints is 0; set it to the label map's number")
    if not any(loads):
        return None
    mask_type = PNG_MASKS if input_reader.mask_type == input_reader_pb2.PNG_MASKS else NUMERICAL_MASKS
    return ObjectExtras(
        mask_type=mask_type if input_reader.load_instance_masks else None,
        num_keypoints=input_reader.num_keypoints,
        keypoint_ids=_keypoint_ids(input_reader, label_map) if input_reader.use_keypoint_label_map else None,
        keypoint_depths=input_reader.load_keypoint_depth_features,
        dense_pose=input_reader.load_dense_pose,
        track_ids=input_reader.load_track_id,
    )


def _check_steps(input_reader: input_reader_pb2.InputReader, train_config: train_pb2.TrainConfig) -> None:
    """Mirrored people need mirrored DensePose surfaces, which is a table of its own (part by part, point by point)."""
    for number, step in enumerate(train_config.data_augmentation_options):
        name = step.WhichOneof("preprocessing_step")
        if input_reader.load_dense_pose and name in ("random_horizontal_flip", "random_vertical_flip"):
            raise UserError(
                f"data_augmentation_options[{number}].{name}: does not work with load_dense_pose of the input reader; "
                "take one of them out"
            )


def _keypoint_ids(input_reader: input_reader_pb2.InputReader, label_map: LabelMap | None) -> dict[str, int]:
    ids = label_map.keypoint_ids() if label_map else {}
    where = label_map.path if label_map else "label_map_path"
    if not ids:
        raise UserError(f"use_keypoint_label_map: {where} has no item with keypoints {{ id: 0 label: 'nose' }} ...")
    if max(ids.values()) >= input_reader.num_keypoints:
        raise UserError(
            f"num_keypoints is {input_reader.num_keypoints}, but {where} has keypoint ids up to {max(ids.values())} "
            f"(ids count from 0); set it to {max(ids.values()) + 1}"
        )
    return ids


def _check_size(sources: list[list[RecordFile]], batch_size: int, options: StreamOptions) -> None:
    total = -(-sum(file.num_records for files in sources for file in files) // options.sample_1_of_n)
    if options.num_epochs and total * options.num_epochs < batch_size:
        raise UserError(
            f"the records ({total} x {options.num_epochs} epochs) do not fill one batch of {batch_size}; "
            "lower train_config.batch_size or raise num_epochs (0 repeats for ever)"
        )
    if total < batch_size:
        logger.warning("a batch of %d holds some of the %d records more than once", batch_size, total)


def _positive(name: str, value: int) -> int:
    if value <= 0:
        raise UserError(f"{name} is {value}, expected at least 1")
    return value
