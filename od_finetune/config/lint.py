"""Finding what is wrong with a config before anything expensive starts."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from od_finetune.config import honoured, lint_checks, pipeline, positions, walk
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
    deep: bool = True,
) -> list[Finding]:
    """Everything there is to say about a config, worst first.

    Args:
      config: the config, overrides applied.
      path: the file it came from; findings then have line numbers.
      use: what it is wanted for, any of "train" and "eval"; the sections of the other are not looked at. The model is
        always checked.
      allow_unhonoured: what `without_unhonoured` leaves out is a warning.
      deep: where nothing is wrong so far, also build the parts of a run, which takes TensorFlow; see `lint_deep`.
    """
    skipped = {section for section, purpose in _SECTIONS.items() if purpose not in use}
    found = list(_fields(config, "", skipped, allow_unhonoured))
    unhonoured = {finding.path for finding in found if finding.unhonoured}
    checks = lint_checks.model(config) + (lint_checks.train(config) if TRAIN in use else [])
    checks += lint_checks.evaluation(config) if EVAL in use else []
    # Below a field that is not honoured there is nothing left to check.
    found += [finding for finding in checks if not _is_below(finding.path, unhonoured)]
    if deep and not any(finding.severity == ERROR for finding in found):
        from od_finetune.config import lint_deep  # here, because it loads TensorFlow

        found += lint_deep.errors(without_unhonoured(config)[0], config.train_config.data_augmentation_options, use)
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
        raise UserError(f"{name} cannot be run:\n{listed}")
    return findings


def without_unhonoured(config: TrainEvalPipelineConfig) -> tuple[TrainEvalPipelineConfig, list[str]]:
    """A copy without the fields that are not honoured, and their paths; for a run that may go on without them.

    Those without which there would be nothing to build stay, see `honoured.is_needed`: they are errors in any case.
    """
    copy = TrainEvalPipelineConfig()
    copy.CopyFrom(config)
    return copy, list(_clear_unhonoured(copy, ""))


def _clear_unhonoured(message: Message, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path, status = f"{prefix}{field.name}", honoured.status(field)
        if status is honoured.Status.UNHONOURED and _says_something(field, value) and not honoured.is_needed(field):
            message.ClearField(field.name)
            yield path
        elif status is honoured.Status.HONOURED:
            for inner_path, inner in walk.submessages(field, value, path):
                yield from _clear_unhonoured(inner, f"{inner_path}.")
            if field.message_type and honoured.message_name(field.message_type) == honoured.STEPS:
                for index in reversed(range(len(value))):
                    if not value[index].ListFields():  # what is left of a step that does not exist
                        del value[index]


def report(findings: Iterable[Finding], name: str = "") -> str:
    """One line per finding (two with a hint), then the counts."""
    findings = list(findings)
    counts = [sum(finding.severity == severity for finding in findings) for severity in SEVERITIES]
    words = [f"{n} {severity}{'s' if n != 1 else ''}" for severity, n in zip(SEVERITIES, counts, strict=True) if n]
    summary = ", ".join(words) or "nothing to complain about"
    return "\n".join([*(finding.text(name) for finding in findings), f"{name}: {summary}" if name else summary])


def _fields(message: Message, prefix: str, skipped: Collection[str], allow: bool) -> Iterator[Finding]:
    """Findings about set fields as such, whatever their value means."""
    for field, value in message.ListFields():
        if not prefix and field.name in skipped:
            continue
        path = f"{prefix}{field.name}"
        status = honoured.status(field)
        replacement = honoured.replacement(field)
        if replacement:
            effect = "" if status is honoured.Status.HONOURED else " and without effect here"
            yield Finding(WARNING, path, f"{field.name} is deprecated{effect}", replacement)
        elif status is honoured.Status.WITHOUT_EFFECT and _says_something(field, value):
            yield Finding(INFO, path, f"has no effect: {honoured.why_without_effect(field)}")
        if status is honoured.Status.UNHONOURED and _says_something(field, value):
            yield _unhonoured(path, field, allow)
        elif status is honoured.Status.HONOURED:
            for inner_path, inner in walk.submessages(field, value, path):
                yield from _fields(inner, f"{inner_path}.", skipped, allow)


def _unhonoured(path: str, field: FieldDescriptor, allow: bool) -> Finding:
    text = f"{honoured.message_name(field.containing_type)}.{field.name} is set but not honoured"
    supported = f"supported: {', '.join(honoured.alternatives(field))}"
    if honoured.is_needed(field):
        return Finding(ERROR, path, text, supported, unhonoured=True)
    if allow:
        return Finding(WARNING, path, text, "left out, as --allow_unhonoured says", unhonoured=True)
    why = honoured.why_not(field)
    if why is not None:
        reason, instead = why
        return Finding(ERROR, path, f"{text}: it {reason}", f"{instead}; --allow_unhonoured goes on without it",
                       unhonoured=True)
    hint = "take it out, or go on without it with --allow_unhonoured"
    if honoured.alternatives(field):
        hint += f"; {supported}"
    return Finding(ERROR, path, text, hint, unhonoured=True)


def _says_something(field: FieldDescriptor, value: object) -> bool:
    """Whether a set value asks for anything: writing down the default does not."""
    return bool(field.is_repeated or field.message_type or value != field.default_value)


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
