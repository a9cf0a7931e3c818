from __future__ import annotations

import numpy as np
import pytest

from od_finetune.errors import UserError
from od_finetune.export import bundle, frozen_graph, runner, saved_model


@pytest.mark.parametrize("writer", [frozen_graph, saved_model])
@pytest.mark.parametrize("input_type", ["image_tensor", "float_image_tensor", "encoded_image_string_tensor",
                                        "tf_example"])
def test_detect_feeds_each_input_type(writer, input_type, tiny_detector, encoded, expected, tmp_path):
    exported = runner.load(writer.export(tiny_detector, tmp_path, input_type))
    found = exported.detect(encoded[1])
    count = int(expected["num_detections"][1])
    assert count > 0 and found.scores.shape == (count,)
    np.testing.assert_allclose(found.boxes, expected["detection_boxes"][1][:count], atol=1e-4)
    np.testing.assert_array_equal(found.classes, expected["detection_classes"][1][:count])


def test_fixed_size_resizes_the_photograph(tiny_detector, encoded, tmp_path):
    exported = runner.load(frozen_graph.export(tiny_detector, tmp_path, "image_tensor", (2, 24, 24, 3)))
    assert exported.detect(encoded[0]).boxes.shape[1] == 4


def test_load_accepts_the_export_directory(tiny_detector, encoded, tmp_path):
    bundle.export(tiny_detector, tmp_path / "out", "image_tensor", formats=("frozen_graph",))
    assert runner.load(tmp_path / "out").detect(encoded[0]).scores.size


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="found neither a frozen graph"):
        runner.load(tmp_path / "nothing")
    (tmp_path / "text.pb").write_text("no graph at all")
    with pytest.raises(UserError, match="text.pb is no frozen graph"):
        runner.load(tmp_path / "text.pb")
