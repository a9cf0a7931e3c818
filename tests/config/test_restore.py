import pytest
from google.protobuf import text_format

from od_finetune.checkpoints.records import Demand
from od_finetune.config.restore import restore_demand, restore_requests
from od_finetune.errors import UserError
from od_finetune.protos import train_pb2


def _request(text):
    requests = restore_requests(text_format.Parse(text, train_pb2.TrainConfig()))
    assert len(requests) <= 1
    return requests[0] if requests else None


@pytest.mark.parametrize(
    "fields, kind, version, parts, notice",
    [
        ("", "classification", "V1", {"backbone"}, "fine_tune_checkpoint_type is not set"),
        ("from_detection_checkpoint: true", "detection", "V1", {"backbone", "neck", "head"}, "(deprecated)"),
        ("from_detection_checkpoint: false", "classification", "V1", {"backbone"}, "from_detection_checkpoint: false"),
        ("fine_tune_checkpoint_type: 'detection'", "detection", "V1", {"backbone", "neck", "head"}, None),
        (
            "fine_tune_checkpoint_type: 'detection' load_all_detection_checkpoint_vars: true",
            "detection", "V1", {"backbone", "neck", "head"}, "loads the heads anyway",
        ),
        (
            "fine_tune_checkpoint_type: 'detection' load_all_detection_checkpoint_vars: false",
            "detection", "V1", {"backbone", "neck"}, "fine_tune_checkpoint_version: V2",
        ),
        (
            "fine_tune_checkpoint_type: 'detection' fine_tune_checkpoint_version: V2",
            "detection", "V2", {"backbone", "neck"}, None,
        ),
        (
            "fine_tune_checkpoint_type: 'detection' fine_tune_checkpoint_version: V2 "
            "load_all_detection_checkpoint_vars: true",
            "detection", "V2", {"backbone", "neck"}, "acts on type 'detection' of version V1 only",
        ),
        (
            "fine_tune_checkpoint_type: 'full' from_detection_checkpoint: true",
            "full", "V1", {"backbone", "neck", "head"}, "has no effect beside fine_tune_checkpoint_type: 'full'",
        ),
        ("fine_tune_checkpoint_type: 'classification'", "classification", "V1", {"backbone"}, None),
    ],
)  # fmt: skip
def test_what_the_fields_mean(fields, kind, version, parts, notice):
    request = _request(f"fine_tune_checkpoint: 'x/model.ckpt' {fields}")
    assert (request.path, request.type, request.version) == ("x/model.ckpt", kind, version)
    assert request.parts == parts
    assert bool(request.notices) is (notice is not None)
    assert notice is None or any(notice in text for text in request.notices)


def test_from_detection_checkpoint_with_load_all_false_gives_both_notices():
    request = _request(
        "fine_tune_checkpoint: 'x' from_detection_checkpoint: true load_all_detection_checkpoint_vars: false"
    )
    assert request.parts == {"backbone", "neck"}
    assert len(request.notices) == 2


def test_no_checkpoint():
    assert _request("from_detection_checkpoint: true") is None


@pytest.mark.parametrize(
    "text, words",
    [
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_version: V2", ["V2 has no default", "'full'"]),
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_type: 'fine_tune'", ["CenterNet's name for what 'detection'"]),
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_type: 'detect'", ["'detect' is unknown", "'classification'"]),
        ("fine_tune_checkpoint: 'PATH_TO_BE_CONFIGURED/model.ckpt'", ["placeholder", "fine_tune_checkpoint"]),
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_version: UNKNOWN", ["UNKNOWN", "expected V1 or V2"]),
    ],
)
def test_errors_name_the_field_and_the_choices(text, words):
    with pytest.raises(UserError) as error:
        _request(text)
    assert all(word in str(error.value) for word in [*words, "train_config."])


def _requests(text):
    return restore_requests(text_format.Parse(text, train_pb2.TrainConfig()))


def _demand(text):
    return restore_demand(text_format.Parse(text, train_pb2.TrainConfig()))


class TestRestoreBlocks:
    def test_every_field(self):
        (request,) = _requests("""
          fine_tune_checkpoint_version: V2
          restore {
            checkpoint: "net.pth" type: "classification" scope: "MobilenetV2" map { pattern: "^module\\\\." }
            map { pattern: "a(b)" replacement: "\\\\1" } only: "features" skip: "aux" by_order: true
            batch_norm_epsilon: 0.00001
          }""")
        assert (request.path, request.type, request.version) == ("net.pth", "classification", "V2")
        assert request.map == (("^module\\.", ""), ("a(b)", "\\1")) and request.scope == ("MobilenetV2",)
        assert request.only == ("features",) and request.skip == ("aux",) and request.by_order
        assert request.batch_norm_epsilon == pytest.approx(1e-5) and request.field == "train_config.restore[0]"
        assert request.notices == ()

    def test_a_block_without_checkpoint_and_type_takes_the_outer_ones(self):
        (request,) = _requests("""fine_tune_checkpoint: "outer" fine_tune_checkpoint_type: "full"
                                  restore { skip: "Class" }""")
        assert (request.path, request.type, request.skip) == ("outer", "full", ("Class",))
        assert request.batch_norm_epsilon is None and not request.moving_averages

    def test_the_outer_checkpoint_comes_first_where_no_block_stands_for_it(self):
        requests = _requests("""fine_tune_checkpoint: "outer" fine_tune_checkpoint_type: "detection"
                                restore { checkpoint: "a" type: "classification" } restore { checkpoint: "b" }""")
        found = [(request.path, request.type) for request in requests]
        assert found == [("outer", "detection"), ("a", "classification"), ("b", "detection")]

    def test_the_outer_checkpoint_comes_where_a_block_stands_for_it(self):
        requests = _requests("""fine_tune_checkpoint: "outer" fine_tune_checkpoint_type: "detection"
                                restore { checkpoint: "a" } restore { scope: "BoxPredictor" }""")
        assert [request.path for request in requests] == ["a", "outer"]

    def test_blocks_alone(self):
        requests = _requests("restore { checkpoint: 'a' type: 'full' } restore { checkpoint: 'b' type: 'full' }")
        assert [request.path for request in requests] == ["a", "b"]

    @pytest.mark.parametrize("text, words", [
        ("restore { type: 'full' }", ["restore[0].checkpoint: is not set", "fine_tune_checkpoint, its default"]),
        ("restore { checkpoint: 'a' type: 'all' }", ["restore[0].type: 'all' is unknown", "'classification'"]),
        ("restore { checkpoint: 'PATH_TO_BE_CONFIGURED/a' type: 'full' }", ["restore[0].checkpoint", "placeholder"]),
        ("restore { checkpoint: 'a' type: 'full' map { pattern: '(' } }", ["restore[0].map[0].pattern", "not a valid"]),
        ("restore { checkpoint: 'a' type: 'full' map { replacement: 'x' } }", ["restore[0].map[0]", "empty pattern"]),
        (
            "restore { checkpoint: 'a' type: 'full' map { pattern: 'x' replacement: '\\\\1' } }",
            ["restore[0].map[0].replacement", "invalid group reference 1"],
        ),
        ("restore { checkpoint: 'a' type: 'full' skip: 'ok' skip: '*' }", ["restore[0].skip[1]", "not globs"]),
        ("restore { checkpoint: 'a' type: 'full' batch_norm_epsilon: -1 }", ["batch_norm_epsilon: found -1"]),
        ("restore { checkpoint: 'a' } fine_tune_checkpoint_version: V2", ["V2 has no default"]),
    ])  # fmt: skip
    def test_errors_name_block_and_field(self, text, words):
        with pytest.raises(UserError) as error:
            _requests(text)
        assert all(word in str(error.value) for word in [*words, "train_config."]), str(error.value)


def test_demand():
    assert not _demand("")
    assert _demand("min_restored_fraction: 0.9 require: 'a' require: 'b'") == Demand(0.9, ("a", "b"))


@pytest.mark.parametrize("text, words", [
    ("min_restored_fraction: 90", "train_config.min_restored_fraction: found 90, expected a number from 0 to 1"),
    ("require: ''", "train_config.require[0]: an empty pattern"),
])  # fmt: skip
def test_demands_that_make_no_sense(text, words):
    with pytest.raises(UserError) as error:
        _demand(text)
    assert words in str(error.value)
