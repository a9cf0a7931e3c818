"""What the tests of lint and of data sets share."""

from __future__ import annotations

import pytest
import tensorflow as tf
from lint_config import CONFIG, LABELS
from reading import example

from od_finetune.config import lint, pipeline
from od_finetune.config.finding import Finding
from od_finetune.data.writer import ShardedWriter


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "labels.pbtxt").write_text(LABELS)
    with tf.io.TFRecordWriter(str(tmp_path / "train-0.record")) as writer:
        writer.write(b"a record")
        writer.write(b"another")
    (tmp_path / "my.config").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def findings(folder):
    """findings("path=value", ...): what lint says about the good config after these overrides."""

    def run(*overrides: str, **options) -> list[Finding]:
        return lint.lint(pipeline.load(folder / "my.config", overrides), **options)

    return run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Glob of 3 shards with 20 records in all."""
    path = str(tmp_path_factory.mktemp("shards") / "set.record")
    with ShardedWriter(path, 3) as writer:
        for number in range(20):
            writer.write(example(number))
    return path + "-*"
