"""Lint on fields that are not honoured, without effect or deprecated."""

from __future__ import annotations

import pytest
from lint_config import only

from od_finetune.config import lint, pipeline
from od_finetune.config.finding import ERROR, INFO, WARNING

OPTIONAL = [
    ("model.ssd.mask_head_config={}", "model.ssd.mask_head_config"),
    ("model.ssd.feature_extractor.replace_preprocessor_with_placeholder=true",
     "model.ssd.feature_extractor.replace_preprocessor_with_placeholder"),
    ("model.ssd.use_confidences_as_targets=true", "model.ssd.use_confidences_as_targets"),
    ("model.ssd.implicit_example_weight=0.5", "model.ssd.implicit_example_weight"),
    ("model.ssd.loss.equalization_loss.weight=1", "model.ssd.loss.equalization_loss.weight"),
    ("graph_rewriter={quantization {}}", "graph_rewriter"),
    ("train_input_reader.load_multiclass_scores=true", "train_input_reader.load_multiclass_scores"),
    ("train_input_reader.input_type=TF_SEQUENCE_EXAMPLE", "train_input_reader.input_type"),
    ("train_config.data_augmentation_options={autoaugment_image {}}",
     "train_config.data_augmentation_options[0].autoaugment_image"),
]  # fmt: skip


@pytest.mark.parametrize("override, path", OPTIONAL)
def test_set_but_not_honoured_is_an_error_unless_allowed(findings, override, path):
    (error,) = [finding for finding in findings(override) if finding.unhonoured]
    assert (error.severity, error.path) == (ERROR, path)
    assert "not honoured" in error.message and "--allow_unhonoured" in error.hint
    if path == "graph_rewriter":
        assert "quantisation-aware training" in error.message and "remove graph_rewriter" in error.hint
    allowed = findings(override, allow_unhonoured=True)
    (warning,) = [finding for finding in allowed if finding.unhonoured]
    assert warning.severity == WARNING and "left out" in warning.hint
    assert only(allowed, ERROR) == []  # the parts of a run are built without the field


def test_without_unhonoured_clears_what_it_names_and_nothing_else(folder):
    plain = pipeline.load(folder / "my.config", ["train_config.data_augmentation_options={random_horizontal_flip {}}"])
    overrides = [override.replace("augmentation_options=", "augmentation_options[+]=") for override, _ in OPTIONAL]
    config = pipeline.load(folder / "my.config", [
        "train_config.data_augmentation_options={random_horizontal_flip {}}", *overrides])  # fmt: skip
    before = pipeline.to_text(config)
    cleared, paths = lint.without_unhonoured(config)
    assert set(paths) == {path.replace("options[0]", "options[1]") for _, path in OPTIONAL}
    assert pipeline.to_text(config) == before
    cleared.model.ssd.loss.ClearField("equalization_loss")  # empty now, and says nothing
    assert cleared == plain


@pytest.mark.parametrize(
    "override, supported",
    [
        ("model.experimental_model={}", "ssd"),
        ("model.ssd.loss.classification_loss={weighted_dice_classification_loss {}}", "weighted_sigmoid"),
        ("train_input_reader.external_input_reader={}", "tf_record_input_reader"),
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_what_a_run_cannot_do_without_stays_an_error(findings, override, supported, allowed):
    (error,) = [finding for finding in findings(override, allow_unhonoured=allowed) if finding.unhonoured]
    assert error.severity == ERROR and supported in error.hint and "--allow_unhonoured" not in error.text()


def test_the_default_of_a_field_that_is_not_honoured_is_fine(findings):
    assert findings("train_input_reader.load_multiclass_scores=false", "model.ssd.implicit_example_weight=1.0") == []


def test_machinery_is_a_note(findings):
    (note,) = findings("train_config.sync_replicas=true")
    assert note.severity == INFO and "no effect" in note.message
    assert findings("train_config.sync_replicas=false") == []


def test_deprecated_fields_name_their_replacement(findings):
    found = findings(
        "train_config.from_detection_checkpoint=true",
        "train_config.load_all_detection_checkpoint_vars=true",
        "train_config.batch_queue_capacity=5",
        "eval_config.num_examples=10",
        "eval_input_reader[0].queue_capacity=2",
    )
    assert {finding.severity for finding in found} == {WARNING}
    hints = {finding.path: finding.hint for finding in found}
    assert "fine_tune_checkpoint_type" in hints["train_config.from_detection_checkpoint"]
    assert "fine_tune_checkpoint_type" in hints["train_config.load_all_detection_checkpoint_vars"]
    assert "shuffle_buffer_size" in hints["eval_input_reader[0].queue_capacity"]
    assert len(hints) == 5
