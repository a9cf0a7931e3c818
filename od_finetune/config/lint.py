"""Finding what is wrong with a config before anything expensive starts."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from od_finetune.config import honoured, lint_checks, pipeline, positions
from od_finetune.config.finding import ERROR, INFO, SEVERITIES, WARNING, Finding
from od_finetune.errors import UserError
from od_finetune.protos.pipeline_pb2 import TrainEvalPipelineConfig

TRAIN, EVAL = "train", "eval"
_SECTIONS = {"train_config": TRAIN, "train_input_reader": TRAIN, "eval_config": EVAL, "eval_input_reader": EVAL}


def lint(
    config: TrainEvalPipelineConfig,
    path: str | os.PathLike | None = None,
    *,
    use: Collection[str] = (TRAIN, EVAL),
    allow_unhonoured: bool = False,
) -> list[Finding]:
    """Everything there is to say about a config, worst first.

    Args:
      config: the config, overrides applied.
      path: the file it came from; findings then have line numbers.
      use: what it is wanted for, any of "train" and "eval"; the sections of the other are not looked at. The model is
        always checked.
      allow_unhonoured: report fields that are not honoured as warnings.
    """
    skipped = {section for section, purpose in _SECTIONS.items() if purpose not in use}
    found = list(_fields(config, "", skipped, WARNING if allow_unhonoured else ERROR))
    unhonoured = {finding.path for finding in found if finding.unhonoured}
    checks = lint_checks.model(config) + (lint_checks.train(config) if TRAIN in use else [])
    checks += lint_checks.evaluation(config) if EVAL in use else []
    # Below a field that is not honoured there is nothing left to check.
    found += [finding for finding in checks if not _is_below(finding.path, unhonoured)]
    lines = _lines(path)
    found = [dataclasses.replace(finding, line=_line(lines, finding.path)) for finding in found]
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.line or 0))


def check(
    config: TrainEvalPipelineConfig,
    path: str | os.PathLike | None = None,
    *,
    use: Collection[str] = (TRAIN, EVAL),
    allow_unhonoured: bool = False,
) -> list[Finding]:
    """`lint` for a run: returns the warnings and notes.

    Raises:
      UserError: lists the errors, if there are any.
    """
    findings = lint(config, path, use=use, allow_unhonoured=allow_unhonoured)
    errors = [finding for finding in findings if finding.severity == ERROR]
    if errors:
        name = str(path) if path else "The config"
        listed = "\n".join(f"  {finding.text()}" for finding in errors)
        hint = "\n--allow_unhonoured goes on without the fields that are not honoured."
        some_unhonoured = any(finding.unhonoured for finding in errors)
        raise UserError(f"{name} cannot be run:\n{listed}{hint if some_unhonoured else ''}")
    return findings


def report(findings: Iterable[Finding], name: str = "") -> str:
    """One line per finding (two with a hint), then the counts."""
    findings = list(findings)
    counts = [sum(finding.severity == severity for finding in findings) for severity in SEVERITIES]
    words = [f"{n} {severity}{'s' if n != 1 else ''}" for severity, n in zip(SEVERITIES, counts, strict=True) if n]
    summary = ", ".join(words) or "nothing to complain about"
    return "\n".join([*(finding.text(name) for finding in findings), f"{name}: {summary}" if name else summary])


def _fields(message: Message, prefix: str, skipped: Collection[str], severity: str) -> Iterator[Finding]:
    """Findings about set fields as such, whatever their value means."""
    for field, value in message.ListFields():
        if not prefix and field.name in skipped:
            continue
        path = f"{prefix}{field.name}"
        status = honoured.status(field)
        replacement = honoured.REPLACED_BY.get((honoured.message_name(field.containing_type), field.name))
        if replacement:
            effect = "" if status is honoured.Status.HONOURED else " and without effect here"
            yield Finding(WARNING, path, f"{field.name} is deprecated{effect}", replacement)
        elif status is honoured.Status.WITHOUT_EFFECT and _says_something(field, value):
            yield Finding(INFO, path, f"has no effect: {honoured.why_without_effect(field)}")
        if status is honoured.Status.UNHONOURED and _says_something(field, value):
            yield _unhonoured(path, field, severity)
        elif status is honoured.Status.HONOURED:
            for inner_path, inner in _messages(field, value, path):
                yield from _fields(inner, f"{inner_path}.", skipped, severity)


def _unhonoured(path: str, field: FieldDescriptor, severity: str) -> Finding:
    where = honoured.message_name(field.containing_type)
    hint = "take it out, or go on without it with --allow_unhonoured"
    if field.containing_oneof is not None:
        others = [
            other.name for other in field.containing_oneof.fields if honoured.status(other) is honoured.Status.HONOURED
        ]
        if others:
            hint = f"supported: {', '.join(others)}"
    return Finding(severity, path, f"{where}.{field.name} is set but not honoured", hint, unhonoured=True)


def _says_something(field: FieldDescriptor, value: object) -> bool:
    """Whether a set value asks for anything: writing down the default does not."""
    return bool(field.is_repeated or field.message_type or value != field.default_value)


def _messages(field: FieldDescriptor, value: object, path: str) -> Iterator[tuple[str, Message]]:
    if not field.message_type:
        return
    if isinstance(value, Mapping):
        entries = ((f"{path}[{key}]", value[key]) for key in value)
        yield from ((entry_path, entry) for entry_path, entry in entries if isinstance(entry, Message))
    elif field.is_repeated:
        yield from ((f"{path}[{index}]", element) for index, element in enumerate(value))
    else:
        yield path, value


def _is_below(path: str, tops: Collection[str]) -> bool:
    return any(path == top or path.startswith((f"{top}.", f"{top}[")) for top in tops)


def _lines(path: str | os.PathLike | None) -> dict[str, int]:
    if path is None:
        return {}
    return positions.field_lines(pipeline.read_text(path), TrainEvalPipelineConfig.DESCRIPTOR)


def _line(lines: dict[str, int], path: str) -> int | None:
    """The line of a field, or of the nearest message around it that the text has."""
    steps = path.split(".")
    starts = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
    return next((lines[start] for start in itertools.islice(starts, 2) if start in lines), None)
