"""The compiled protos against the recorded table of the config language."""

from __future__ import annotations

import csv
import importlib
import pkgutil
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from od_finetune import protos
from od_finetune.config import pipeline
from od_finetune.protos import string_int_label_map_pb2

PACKAGE = "od_finetune.protos."
FIRST_EXTENSION = 1000
SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
}


def proto_modules() -> list:
    names = [module.name for module in pkgutil.iter_modules(protos.__path__) if module.name.endswith("_pb2")]
    return [importlib.import_module(f"{protos.__name__}.{name}") for name in names]


def nested(message: Descriptor) -> list[Descriptor]:
    return [message, *(inner for child in message.nested_types for inner in nested(child))]


def short(full_name: str) -> str:
    return full_name.removeprefix(PACKAGE)


def field_row(file: str, field: FieldDescriptor) -> tuple[str, ...]:
    """One field in the table's columns."""
    if field.message_type or field.enum_type:
        type_name = short((field.message_type or field.enum_type).full_name)
    else:
        type_name = SCALARS[field.type]
    default = ""
    if not field.is_repeated and not field.message_type and field.has_default_value:
        default = field.default_value
        default = field.enum_type.values_by_number[default].name if field.enum_type else repr(default)
    notes = [f"oneof:{field.containing_oneof.name}"] if field.containing_oneof else []
    notes += ["deprecated"] if field.GetOptions().deprecated else []
    label = "repeated" if field.is_repeated else "required" if field.is_required else "optional"
    message = short(field.containing_type.full_name)
    return (file, message, str(field.number), field.name, type_name, label, default, ",".join(notes))


def enum_rows(file: str, enum: EnumDescriptor) -> list[tuple[str, ...]]:
    return [(file, short(enum.full_name), str(v.number), v.name, "enum value", "", "", "") for v in enum.values]


def reserved_rows(file: str, message: Descriptor) -> list[tuple[str, ...]]:
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    return [
        (file, short(message.full_name), "-", f"reserved {span.start}-{span.end - 1}", "", "", "", "")
        for span in proto.reserved_range
    ]


def compiled_rows() -> set[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for module in proto_modules():
        file = Path(module.DESCRIPTOR.name).name
        for enum in module.DESCRIPTOR.enum_types_by_name.values():
            rows += enum_rows(file, enum)
        for top in module.DESCRIPTOR.message_types_by_name.values():
            for message in nested(top):
                rows += [field_row(file, field) for field in message.fields]
                rows += reserved_rows(file, message)
                for enum in message.enum_types:
                    rows += enum_rows(file, enum)
    return set(rows)


def as_number(row: tuple[str, ...]) -> tuple:
    """Defaults compare as numbers where they are: the table has 0.2 where float32 has 0.20000000298."""
    *head, default, notes = row
    try:
        return (*head, f"{float(default):.6g}", notes)
    except ValueError:
        return (*head, default, notes)


def test_compiled_protos_are_the_recorded_language(shared):
    with open(shared / "reference" / "pipeline_schema.tsv", newline="") as file:
        recorded = {as_number(tuple(row)) for row in list(csv.reader(file, delimiter="\t"))[1:]}
    compiled = {as_number(row) for row in compiled_rows()}
    assert sorted(recorded - compiled) == []
    extensions = compiled - recorded
    extension_messages = {"LearningRateMultiplier", *(row[1] for row in extensions if row[0] == "fine_tune.proto")}
    unexpected = [
        row for row in extensions if row[1] not in extension_messages and not (int(row[2]) >= FIRST_EXTENSION)
    ]
    assert unexpected == []


def test_extension_fields_have_the_documented_names():
    extensions = {(row[1], row[3], row[6]) for row in compiled_rows() if row[2].isdigit() and int(row[2]) >= 1000}
    assert extensions == {
        ("TrainConfig", "learning_rate_multiplier", ""),
        ("TrainConfig", "checkpoint_every_n_steps", "1000"),
        ("TrainConfig", "max_checkpoints_to_keep", "5"),
        ("TrainConfig", "seed", "0"),
        ("TrainConfig", "log_every_n_steps", "100"),
        ("TrainConfig", "restore", ""),
        ("TrainConfig", "min_restored_fraction", "0.0"),
        ("TrainConfig", "require", ""),
        ("TrainConfig", "class_transfer", ""),
        ("TrainConfig", "keep_classes", ""),
        ("TrainConfig", "freeze_through", "''"),
        ("TrainConfig", "trainable_batch_norm", ""),
        ("TrainConfig", "unfreeze", ""),
        ("TrainConfig", "layer_decay", "1.0"),
        ("TrainConfig", "weight_decay", ""),
        ("EvalConfig", "eval_every_n_steps", "0"),
        ("EvalConfig", "best_metric", ""),
        ("EvalConfig", "best_metric_is_loss", "False"),
        ("EvalConfig", "early_stopping_patience", "0"),
        ("EvalConfig", "early_stopping_min_delta", "0.0"),
        ("EvalConfig", "eval_at_start", "False"),
    }


@pytest.mark.parametrize("generation", ["tf1", "tf2"])
def test_published_configs_parse_and_survive_a_round_trip(shared, generation):
    paths = sorted((shared / "reference" / "configs" / generation).glob("*.config"))
    assert len(paths) > 30
    for path in paths:
        config = pipeline.load(path)
        assert pipeline.parse(pipeline.to_text(config)) == config, path.name


def test_the_published_keypoint_label_map_parses(shared):
    text = (shared / "reference" / "mscoco_keypoints_label_map.pbtxt").read_text()
    label_map = text_format.Parse(text, string_int_label_map_pb2.StringIntLabelMap())
    assert [item.name for item in label_map.item if item.keypoints]


def test_every_message_has_a_comment():
    """The config language is documented where it is defined."""
    folder = Path(__file__).resolve().parents[2] / "protos"
    bare = []
    for path in sorted(folder.glob("*.proto")):
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            starts = line.strip().startswith(("message ", "enum "))
            if starts and not lines[index - 1].strip().startswith("//"):
                bare.append(f"{path.name}:{index + 1}: {line.strip()}")
    assert bare == []
