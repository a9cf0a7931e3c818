"""What od_finetune does with a field of the config language, by `honoured_tables`."""

from __future__ import annotations

import enum

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from od_finetune.config.honoured_tables import ALL, HONOURED, REPLACED_BY, STEPS, UNHONOURED, WHY_NOT, WITHOUT_EFFECT


class Status(enum.Enum):
    """What happens to a field that is set."""

    HONOURED = "honoured"
    WITHOUT_EFFECT = "without effect"
    UNHONOURED = "not honoured"


def message_name(descriptor: Descriptor) -> str:
    """`Ssd.MaskHead` for `od_finetune.protos.Ssd.MaskHead`."""
    return descriptor.full_name.removeprefix("od_finetune.protos.")


def statuses(descriptor: Descriptor, field: str) -> set[Status]:
    """Every table that claims a field; sound tables give exactly one."""
    name = message_name(descriptor)
    if name == STEPS:
        return {Status.UNHONOURED if field in UNHONOURED[STEPS].split() else Status.HONOURED}
    found = set()
    for table, status in ((HONOURED, Status.HONOURED), (UNHONOURED, Status.UNHONOURED)):
        listed = table.get(name, "")
        if listed == ALL or field in listed.split():
            found.add(status)
    if field in WITHOUT_EFFECT.get(name, {}):
        found.add(Status.WITHOUT_EFFECT)
    return found


def status(field: FieldDescriptor) -> Status:
    """What od_finetune does with `field`."""
    return next(iter(statuses(field.containing_type, field.name)), Status.UNHONOURED)


def alternatives(field: FieldDescriptor) -> list[str]:
    """Honoured fields of the same oneof."""
    oneof = field.containing_oneof
    return [other.name for other in oneof.fields if status(other) is Status.HONOURED] if oneof else []


def is_needed(field: FieldDescriptor) -> bool:
    """Whether a field that is not honoured can't be left out: it chooses between kinds of something that has to be.

    An augmentation step is a choice too, but the list does without it.
    """
    return bool(alternatives(field)) and message_name(field.containing_type) != STEPS


def why_without_effect(field: FieldDescriptor) -> str:
    """The reason that WITHOUT_EFFECT gives."""
    return WITHOUT_EFFECT[message_name(field.containing_type)][field.name]


def why_not(field: FieldDescriptor) -> tuple[str, str] | None:
    """What WHY_NOT says of a field that is not honoured."""
    return WHY_NOT.get((message_name(field.containing_type), field.name))


def replacement(field: FieldDescriptor) -> str | None:
    """What REPLACED_BY says of a deprecated field."""
    return REPLACED_BY.get((message_name(field.containing_type), field.name))
