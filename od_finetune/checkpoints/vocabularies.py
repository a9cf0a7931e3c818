"""Under which names a checkpoint may hold a variable of the model, apart from which file format it comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from od_finetune.checkpoints import vocabularies_tfvision
from od_finetune.checkpoints.source import Source

# The scopes that TF1 detection checkpoints put a classification net in.
_FEATURE_SCOPES = ("FeatureExtractor", "FirstStageFeatureExtractor", "SecondStageFeatureExtractor")


class Vocabulary(NamedTuple):
    """One way of naming: from a variable's canonical and TF2 name to the names a checkpoint may have it under."""

    rule: str  # how the plan calls it
    spell: Callable[[str, str], list[str]]


class Match(NamedTuple):
    """A source entry that answers to a variable's name."""

    rule: str
    source: str
    shape: tuple[int, ...]


def _without_scope(name: str, tf2_name: str) -> list[str]:
    scope, _, rest = name.partition("/")
    return [rest] if scope in _FEATURE_SCOPES and rest else []


def _other_feature_scope(name: str, tf2_name: str) -> list[str]:
    return [f"{scope}/{rest}" for rest in _without_scope(name, tf2_name) for scope in _FEATURE_SCOPES]


# In order: the first that finds an entry of the right shape decides.
DETECTION: tuple[Vocabulary, ...] = (
    Vocabulary("same name", lambda name, tf2_name: [name]),
    Vocabulary("TF2 name", lambda name, tf2_name: [tf2_name] if tf2_name else []),
)
CLASSIFICATION: tuple[Vocabulary, ...] = (
    *DETECTION,
    Vocabulary("classification net", _without_scope),
    Vocabulary("other feature extractor scope", _other_feature_scope),
    Vocabulary("TF-Vision", vocabularies_tfvision.spell),
)


class Finder:
    """Looks variables up in one source."""

    def __init__(self, source: Source, vocabularies: tuple[Vocabulary, ...]) -> None:
        self._shapes = source.names()
        self._aliases = source.aliases()
        self._vocabularies = vocabularies

    def find(self, name: str, tf2_name: str, shape: tuple[int, ...]) -> Match | None:
        """The first entry with the variable's name and shape; without one, the first with its name; else None."""
        first = None
        for match in self._matches(name, tf2_name):
            if match.shape == shape:
                return match
            first = first or match
        return first

    def _matches(self, name: str, tf2_name: str) -> Iterator[Match]:
        for vocabulary in self._vocabularies:
            for spelling in vocabulary.spell(name, tf2_name):
                if spelling in self._shapes:
                    yield Match(vocabulary.rule, spelling, self._shapes[spelling])
                elif self._aliases.get(spelling) in self._shapes:
                    source = self._aliases[spelling]
                    yield Match(f"{vocabulary.rule} as object path", source, self._shapes[source])
