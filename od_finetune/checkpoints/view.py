"""A source's entries under the names that a request's rules give them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from od_finetune import names
from od_finetune.checkpoints.records import RestoreRequest
from od_finetune.checkpoints.source import Source
from od_finetune.errors import UserError

_NUMBERS = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class View:
    """What of a source may be used.

    Attributes:
      shapes: by rewritten name, sorted.
      own: rewritten name -> the file's.
      aliases: second spelling -> rewritten name.
      order: the rewritten names in the order of the file; in natural order where the format keeps none.
      has_order: whether `order` is the file's.
      excluded: the file's names that `only` or `skip` leave out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    own: Mapping[str, str]
    aliases: Mapping[str, str]
    order: tuple[str, ...]
    has_order: bool
    excluded: frozenset[str]


def view(source: Source, request: RestoreRequest) -> View:
    """Applies `map`, `only` and `skip`.

    Raises:
      UserError: a pattern matches nothing, or two entries would have one name.
    """
    shapes = source.names()
    rewritten = _rewritten(list(shapes), request)
    spellings: dict[str, list[str]] = {}
    for alias, name in source.aliases().items():
        spellings.setdefault(name, []).append(alias)
    aliases_of = {seen: spellings.get(own, []) for own, seen in rewritten.items()}
    kept = set(rewritten.values())
    if request.only:
        kept &= _matching(aliases_of, request.only, f"{request.field}.only")
    if request.skip:
        kept -= _matching(aliases_of, request.skip, f"{request.field}.skip")
    own = {seen: name for name, seen in rewritten.items() if seen in kept}
    file_order = source.order()
    ordered = [rewritten[name] for name in file_order if name in rewritten] if file_order is not None else None
    return View(
        shapes={seen: shapes[own[seen]] for seen in sorted(own)},
        own=own,
        aliases={alias: seen for seen in own for alias in aliases_of[seen]},
        order=tuple(seen for seen in (ordered if ordered is not None else sorted(own, key=natural)) if seen in own),
        has_order=file_order is not None,
        excluded=frozenset(name for name, seen in rewritten.items() if seen not in kept),
    )


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names by their value: `layer_2` before `layer_10`, `conv` before `conv_1`."""
    parts = (part for part in _NUMBERS.split(name.replace("/", " ").replace(".", " ")))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def no_match(field: str, pattern: str, candidates: Iterable[str], what: str) -> UserError:
    """The error for a pattern that matches none of `candidates`."""
    candidates = list(candidates)
    words = re.sub(r"[\\^$()?*+|\[\]{}]|\.(?=[*+])", "", pattern).strip("/.")
    near = names.nearest(words, candidates) or candidates[:3]
    listed = f" The nearest names are: {', '.join(near)}." if near else ""
    return UserError(f"{field}: {pattern!r} matches no {what}.{listed}")


def _rewritten(entries: list[str], request: RestoreRequest) -> dict[str, str]:
    """The file's name -> its name after `map`."""
    current = {name: name for name in entries}
    for index, (pattern, replacement) in enumerate(request.map):
        field = f"{request.field}.map[{index}]"
        if not any(names.compile_pattern(pattern).search(seen) for seen in current.values()):
            raise no_match(f"{field}.pattern", pattern, current.values(), "name of the checkpoint")
        current = {name: names.apply_rules(seen, [(pattern, replacement)]) for name, seen in current.items()}
    owner: dict[str, str] = {}
    for name, seen in current.items():
        if seen in owner:
            raise UserError(
                f"{request.field}.map: the checkpoint's {owner[seen]} and {name} would both become {seen!r}; make the "
                "patterns more exact."
            )
        owner[seen] = name
    return current


def _matching(aliases_of: Mapping[str, list[str]], patterns: Iterable[str], field: str) -> set[str]:
    selected: set[str] = set()
    for index, pattern in enumerate(patterns):
        found = {name for name, aliases in aliases_of.items() if names.pattern_matches(pattern, name, aliases)}
        if not found:
            raise no_match(f"{field}[{index}]", pattern, aliases_of, "name of the checkpoint")
        selected |= found
    return selected
