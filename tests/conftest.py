"""What all tests share. Set before anything imports TensorFlow: its C++ log reads the level once."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import results

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
QUICKSTART = ROOT / "configs" / "quickstart.config"

# The quickstart, with its records and checkpoint, as little of it as makes sense: most of a run is then tracing.
_TINY = (
    "model.ssd.image_resizer.fixed_shape_resizer.height=96",
    "model.ssd.image_resizer.fixed_shape_resizer.width=96",
    "model.ssd.feature_extractor.num_layers=2",
    "model.ssd.anchor_generator.ssd_anchor_generator.num_layers=2",
    "train_config.batch_size=2",
    "train_config.num_steps=2",
    "train_config.checkpoint_every_n_steps=2",
    "train_config.log_every_n_steps=1",
    "train_config.freeze_variables=MobilenetV1/Conv2d_[0-5](_|/)",
    "train_config.learning_rate_multiplier={pattern: 'ClassPredictor' multiplier: 3}",
    "train_config.optimizer={momentum_optimizer {learning_rate {constant_learning_rate {learning_rate: 0.01}}}}",
    "train_config.data_augmentation_options=",
    "train_config.data_augmentation_options[+]={random_horizontal_flip {}}",
    "eval_config.batch_size=2",
    "eval_config.num_visualizations=2",
    "eval_input_reader.sample_1_of_n_examples=15",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests marked `by_turns`, where the environment has OD_FINETUNE_TURN="k/n", keeps the k-th of every n."""
    turn = os.environ.get("OD_FINETUNE_TURN")
    if not turn:
        return
    number, count = map(int, turn.split("/"))
    taken = [item for item in items if item.get_closest_marker("by_turns")]
    left = set(taken) - set(taken[number % count :: count])
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Notes failures for docs/models.md, where the environment asks for it."""
    report = yield
    results.note_failure(item, report)
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared/` beside the checkout, with the reference data; tests that need it skip without it.

    They fail instead where the environment has OD_FINETUNE_REQUIRE_SHARED.
    """
    if not (SHARED / "reference").is_dir():
        missing = f"no reference data: {SHARED / 'reference'} does not exist"
        if os.environ.get("OD_FINETUNE_REQUIRE_SHARED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return SHARED


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's config, tiny, with absolute paths: two steps, four images to evaluate, two feature maps."""
    from od_finetune.config import pipeline

    text = pipeline.to_text(pipeline.load(QUICKSTART, _TINY))
    path = tmp_path_factory.mktemp("config") / "tiny.config"
    path.write_text(text.replace('"configs/', f'"{ROOT}/configs/'))
    return path


class Trained(NamedTuple):
    """A run that is over. Its directories are shared: copy before changing them."""

    model_dir: Path
    export_dir: Path
    said: str
    exit_code: int


@pytest.fixture(scope="session")
def trained(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of the main job on the tiny config, from restoring to exporting."""
    from od_finetune import experiment

    folder = tmp_path_factory.mktemp("trained")
    said = io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger("od_finetune")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    options = experiment.Options(str(tiny_config), str(folder / "run"), export_dir=str(folder / "export"))
    try:
        exit_code = experiment.train_and_evaluate(options)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return Trained(folder / "run", folder / "export", said.getvalue(), exit_code)


@pytest.fixture
def eager() -> Iterator[None]:
    """Runs what is traced otherwise as plain Python: for tests in which tracing would take longer than the rest."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* does not apply to tf.data functions")  # nor need it
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def broken_records(tmp_path: Path) -> Callable[..., str]:
    """Writes a record file of which the second record is as the arguments say; returns its path."""
    import tensorflow as tf

    from od_finetune.data.writer import LabelledBox, ShardedWriter, make_example

    good = tf.io.encode_png(tf.zeros([40, 60, 3], tf.uint8)).numpy()

    def write(encoded: bytes = good, **box: Any) -> str:
        sound = {"ymin": 0.1, "xmin": 0.2, "ymax": 0.6, "xmax": 0.7, "label": 1, "text": "mug"}
        path = str(tmp_path / "bad.record")
        with ShardedWriter(path) as writer:
            writer.write(make_example(good, "png", 40, 60, "sound.png", [LabelledBox(**sound)]))
            example = make_example(encoded, "png", 40, 60, "broken.png", [LabelledBox(**{**sound, **box})])
            if "label" in box:  # the text would win
                del example.features.feature["image/object/class/text"]
            writer.write(example)
        return path

    return write
