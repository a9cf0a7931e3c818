from __future__ import annotations

import pytest

from od_finetune.config import class_transfer, lint, pipeline
from od_finetune.errors import UserError

SOURCE_MAP = "configs/quickstart_data/source/label_map.pbtxt"


@pytest.fixture
def load(tiny_config):
    """The quickstart with a class_transfer (without, where `transfer` is None) and a keep_classes."""

    def make(transfer="", keep=None, *overrides):
        root = str(tiny_config.read_text()).split("configs/quickstart_data")[0].rpartition('"')[2]
        if transfer is not None:
            overrides += (f'train_config.class_transfer={{source_label_map: "{root}{SOURCE_MAP}" {transfer}}}',)
        if keep is not None:
            overrides += (f"train_config.keep_classes={{{keep}}}",)
        return pipeline.load(tiny_config, overrides)

    return make


def test_nothing_asked_nothing_done(load):
    config = load(None)
    assert class_transfer.class_transfer(config) is None and class_transfer.kept_classes(config) is None


def test_quickstart_shares_star_and_ring(load):
    transfer = class_transfer.class_transfer(load("new_class {name: 'leaf' init_from: 'house' init_from: 'fish'}"))
    assert {start.name: start.source_ids for start in transfer.starts} == {
        "mug": (), "star": (1,), "leaf": (3, 4), "ring": (2,)
    }  # fmt: skip
    assert transfer.num_source_classes == 6 and transfer.source_path.endswith(SOURCE_MAP)
    renamed = class_transfer.class_transfer(load("rename {from: 'cross' to: 'mug'}"))
    assert {start.name: start.sources for start in renamed.starts}["mug"] == ("cross",)


def test_kept_are_those_carried_over_or_those_named(load):
    kept = class_transfer.kept_classes(load("rename {from: 'cross' to: 'mug'}", ""))
    assert kept == class_transfer.KeptClasses({"mug": 1, "star": 2, "ring": 4}, True, 0.0, True, False)
    said = "name: 'ring' freeze_rows: false distillation_weight: 2 labelled: false"
    kept = class_transfer.kept_classes(load("", said))
    assert kept == class_transfer.KeptClasses({"ring": 4}, False, 2.0, False, False)
    assert class_transfer.kept_classes(load(None, "name: 'mug'")).ids == {"mug": 1}


def test_exclusive_classes_are_seen_from_the_loss(load):
    softmax = "model.ssd.loss.classification_loss={weighted_softmax {}}"
    assert class_transfer.kept_classes(load("", "", softmax)).softmax


@pytest.mark.parametrize(
    "transfer, keep, overrides, said",
    [
        ("rename {from: 'stra' to: 'mug'}", None, (), "rename.0..from: 'stra' is no class of .*source/label_map.pbtxt"),
        ("", None, ("train_config.fine_tune_checkpoint=",), "class_transfer: is set, but no checkpoint is restored"),
        ("", "name: 'rink'", (), "keep_classes.name.0.: 'rink' is no class of .*label_map.pbtxt.*'ring'"),
        ("", "name: 'leaf'", (), "keep_classes.name: 'leaf' is not carried over"),
        (None, "", (), "keep_classes.name: is not set, and without class_transfer"),
        ("", "freeze_rows: false", (), "keep_classes: freeze_rows is false and distillation_weight 0"),
        ("", "distillation_weight: -1", (), "keep_classes.distillation_weight: is -1, expected 0"),
        (
            "", "distillation_weight: 1",
            ("model.ssd.box_predictor.convolutional_box_predictor.apply_sigmoid_to_scores=true",), "needs logits",
        ),
        (
            "new_class {name: 'star'} new_class {name: 'ring'} new_class {name: 'mug' init_from: 'fish'}", "", (),
            "carries no class over, so that there is none to keep",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_and_found_by_lint(load, transfer, keep, overrides, said):
    config = load(transfer, keep, *overrides)
    with pytest.raises(UserError, match=said):
        class_transfer.class_transfer(config)
        class_transfer.kept_classes(config)
    errors = [finding for finding in lint.lint(config, use={"train"}) if finding.severity == "error"]
    assert any(field in errors[0].path for field in ("class_transfer", "keep_classes"))


def test_lint_misses_the_source_label_map(load):
    for path, said in (("none.pbtxt", "no file 'none.pbtxt'"), ("", "is not set"), ("PATH_TO_BE_CONFIGURED/x", "plac")):
        config = load(None)
        config.train_config.class_transfer.source_label_map = path
        (finding,) = [one for one in lint.lint(config, use={"train"}, deep=False) if one.severity == "error"]
        assert finding.path == "train_config.class_transfer.source_label_map" and said in finding.text()
    config.train_config.class_transfer.source_label_map = ""
    with pytest.raises(UserError, match="source_label_map: is not set"):
        class_transfer.class_transfer(config)
