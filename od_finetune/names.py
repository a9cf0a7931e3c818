"""Canonical variable names: other spellings of them, patterns over them, rewriting rules, nearest names.

A canonical name is the TF1-style scope of a variable, e.g. `FeatureExtractor/MobilenetV2/Conv/weights`. People
also write it in snake case (`feature_extractor/...`) or by the name a TF2 checkpoint stores (`Conv1/kernel`).
Nothing here needs TensorFlow.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from od_finetune.errors import UserError

# A digit only starts a new word before a capitalised word, so that Conv2D stays conv2d and V2Keras becomes v2_keras.
_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LEADING_LOOKAHEAD = re.compile(r"(?:\(\?[aiLmsux]+\))?\^?\(\?[=!]")
_NEGATIVE_LOOKAROUNDS = ("(?!", "(?<!")

Rules = list[tuple[str, str]]
"""Rewriting steps in order: every match of a pattern becomes its replacement (`re.sub` syntax)."""


FRAMEWORK_EPSILON = 1e-5
"""Epsilon of batch norms in PyTorch and in Gluon, unless a network says otherwise."""


class Vocabulary(NamedTuple):
    """How one kind of published checkpoint names the variables of a network."""

    name: str  # for people: "torchvision", "timm", "GluonCV"
    rules: Rules  # canonical name -> name there; a name they leave as it is has no counterpart
    epsilon: float | None = None  # of its batch norms, where it may be another than the model's
    pads_evenly: bool = False  # before its strided convolutions, whatever the size of the image
    note: str = ""  # for the plan of whoever restores from it


# Kinds of layers without a name, as Keras calls them.
_NUMBERED = re.compile(
    r"^(conv2d|conv2d_transpose|separable_conv2d|batch_normalization|dense)(_\d+)?/"
    r"|/(convolutional_block|residual_block|skip_convolution)(_\d+)?/"
)


def is_numbered(tf2_name: str) -> bool:
    """Whether Keras has numbered the layer of a variable: another program may give another variable this name."""
    return _NUMBERED.search(tf2_name) is not None


def snake_name(name: str) -> str:
    """The snake_case spelling, slashes kept: `FeatureExtractor/MobilenetV2/BatchNorm` -> `feature_extractor/...`."""
    return _WORD_START.sub("_", name).lower()


def apply_rules(name: str, rules: Rules) -> str:
    """Rewrites `name` by every rule in order, each on the result of the one before.

    Raises:
      UserError: a rule is no valid regular expression, or its replacement names a group it does not have.
    """
    for pattern, replacement in rules:
        try:
            name = compile_pattern(pattern).sub(replacement, name)
        except (re.error, IndexError) as error:
            raise UserError(f"replacement {replacement!r} of the rule {pattern!r}: {error}") from None
    return name


def check_replacement(pattern: str, replacement: str) -> None:
    """Raises UserError if a rule's replacement is not valid or names a group that its pattern does not have."""
    try:
        re.compile(f"(?:{pattern})|").sub(replacement, "")
    except (re.error, IndexError) as error:
        raise UserError(f"replacement {replacement!r} of the rule {pattern!r}: {error}") from None


@functools.lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a user's regular expression.

    Raises:
      UserError: it is empty (it would match everything) or not valid; the message shows where.
    """
    if not pattern:
        raise UserError("an empty pattern matches every variable; write '.*' if that is meant, or leave it out")
    try:
        return re.compile(pattern)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos} ({pattern[error.pos:error.pos + 12]!r})"
        raise UserError(
            f"pattern {pattern!r} is not a valid Python regular expression: {error.msg}{where}. "
            "Patterns are regular expressions, not globs: any text is '.*', a dot or bracket is escaped with '\\'."
        ) from None


def pattern_matches(pattern: str, name: str, aliases: Iterable[str] = ()) -> bool:
    """Whether `pattern` selects the variable `name`, also known as `snake_name(name)` and `aliases`.

    The pattern is searched anywhere in any of the spellings; one that begins with a look-ahead is anchored at the
    start. A pattern with a negation, such as `(?!FeatureExtractor).*` or `^((?!BoxPredictor).)*$`, is about the
    spelling it excludes, so it must hold in every spelling that the pattern without its negations fits: otherwise
    the snake_case spelling of `FeatureExtractor/...` would slip through.

    Raises:
      UserError: the pattern is not a valid regular expression.
    """
    matcher = compile_pattern(pattern)
    anchored = _LEADING_LOOKAHEAD.match(pattern) is not None
    spellings = (name, snake_name(name), *aliases)
    positive = _without_negations(pattern)
    if positive is None:
        return any(_found(matcher, spelling, anchored) for spelling in spellings)
    readable = [spelling for spelling in spellings if _found(positive, spelling, anchored)]
    return bool(readable) and all(_found(matcher, spelling, anchored) for spelling in readable)


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` of `names` most like `name`, best first; empty if none is.

    `name` may be a part of a name (`BoxPredicter_0`, `feature_extractr/Mobilenet`): it is compared with the runs of
    as many segments, regardless of case style, and each different run is listed once.
    """
    wanted = snake_name(name).strip("/")
    width = wanted.count("/") + 1
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted)
    score: dict[str, float] = {}
    first: dict[str, str] = {}
    for candidate in names:
        segments = snake_name(candidate).split("/")
        runs = {"/".join(segments[i : i + width]) for i in range(max(1, len(segments) - width + 1))}
        for run in sorted(runs - score.keys()):
            matcher.set_seq1(run)
            score[run] = matcher.ratio() if matcher.quick_ratio() > 0.5 else 0.0
        best = max(sorted(runs), key=score.__getitem__)
        first.setdefault(best, candidate)
    ranked = sorted((run for run in first if score[run] > 0.5), key=lambda run: -score[run])
    return [first[run] for run in ranked[:n]]


def common_scope(names: Sequence[str]) -> str:
    """The longest scope that all `names` share, without their last segment: `a/b/x`, `a/b/y/z` -> `a/b`."""
    if not names:
        return ""
    shared = names[0].split("/")[:-1]
    for name in names[1:]:
        segments = name.split("/")[:-1]
        length = 0
        while length < min(len(shared), len(segments)) and shared[length] == segments[length]:
            length += 1
        shared = shared[:length]
    return "/".join(shared)


def _found(matcher: re.Pattern[str], spelling: str, anchored: bool) -> bool:
    return (matcher.match(spelling) if anchored else matcher.search(spelling)) is not None


@functools.lru_cache(maxsize=1024)
def _without_negations(pattern: str) -> re.Pattern[str] | None:
    """The pattern with each negative look-around made empty; None if it has none."""
    kept: list[str] = []
    position = 0
    removed = False
    for start, end in _groups(pattern):
        if start >= position and pattern.startswith(_NEGATIVE_LOOKAROUNDS, start):
            kept += [pattern[position:start], "(?:)"]  # an empty group: a quantifier after it stays valid
            position = end
            removed = True
    if not removed:
        return None
    try:
        return re.compile("".join(kept) + pattern[position:])
    except re.error:  # a back reference to a group inside the negation: judge by the pattern as it stands
        return re.compile(pattern)


def _groups(pattern: str) -> list[tuple[int, int]]:
    """Start and end of every parenthesised group of a valid pattern, by start, escapes and `[...]` respected."""
    groups: list[tuple[int, int]] = []
    open_at: list[int] = []
    set_from = -1  # where the character set began that `i` is inside of
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif set_from >= 0:
            if char == "]" and i > set_from:  # a bracket right after "[" or "[^" is a member, not the end
                set_from = -1
        elif char == "[":
            set_from = i + 2 if pattern.startswith("[^", i) else i + 1
            i += set_from - i - 1
        elif char == "(":
            open_at.append(i)
        elif char == ")":
            groups.append((open_at.pop(), i + 1))
        i += 1
    return sorted(groups)
