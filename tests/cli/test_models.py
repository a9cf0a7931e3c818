"""`od-finetune models`."""

from __future__ import annotations

import published
import pytest

from od_finetune.cli.main import main
from od_finetune.config.catalogue import kinds
from od_finetune.zoo.published import PARAMETERS, TABLE
from od_finetune.zoo.table import CLASSIFICATION, ENTRIES


def test_types_with_what_was_published_of_them(capsys):
    assert main(["models", "--grep", "ssd_mobilenet_v2_fpn"]) == 0
    header, *rows, summary = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["type", "detector", "half"]
    found = [row.split() for row in rows if "zoo:ssd_mobilenet_v2_fpnlite_640x640" in row]
    assert found[0][:4] == ["ssd_mobilenet_v2_fpn_keras", "ssd", "TF2", "640x640"] and "28.2" in found[0]
    assert summary.startswith("2 feature_extractor types.")


def test_sources_of_backbones(capsys):
    assert main(["models", "--sources", "--grep", "^ssd_mobilenet_v2$"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert "torchvision" in row and "timm" in row


def test_a_pattern_that_is_none(capsys):
    assert main(["models", "--grep", "("]) == 2
    assert "not a regular expression" in capsys.readouterr().err


def test_every_number_of_parameters_is_counted_anew_by_a_config(shared):
    configs = published.configs()
    for archive in PARAMETERS:
        assert any(published.is_config_of(name, archive) for name in configs), archive


def test_types_are_listed_once():
    listed = [(kind.detector, kind.type) for kind in kinds()]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.archive)
def test_published_archives_are_those_of_the_zoo(entry):
    assert entry.archive in {each.name for each in ENTRIES if each.zoo != CLASSIFICATION}
    assert float((entry.score or "1").split("/")[0]) > 0 and float(entry.milliseconds or 1) > 0
