import pytest
from google.protobuf import text_format

from od_finetune.config.restore import restore_requests
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
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_type: 'detect'", ["'detect' is unknown", "'classification'"]),
        ("fine_tune_checkpoint: 'PATH_TO_BE_CONFIGURED/model.ckpt'", ["placeholder", "fine_tune_checkpoint"]),
        ("fine_tune_checkpoint: 'x' fine_tune_checkpoint_version: UNKNOWN", ["UNKNOWN", "expected V1 or V2"]),
    ],
)
def test_errors_name_the_field_and_the_choices(text, words):
    with pytest.raises(UserError) as error:
        _request(text)
    assert all(word in str(error.value) for word in [*words, "train_config."])
