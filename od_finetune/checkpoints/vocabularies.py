"""Under which names a checkpoint may hold a variable of the model, apart from which file format it comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from od_finetune import names
from od_finetune.checkpoints import layouts
from od_finetune.checkpoints.records import CLASSIFICATION as BACKBONE_ONLY
from od_finetune.checkpoints.records import Step
from od_finetune.checkpoints.view import View

# The scopes that TF1 detection checkpoints put a classification net in.
_FEATURE_SCOPES = ("FeatureExtractor", "FirstStageFeatureExtractor", "SecondStageFeatureExtractor")


BY_PATH = "TF2 object path"
AS_PATH = " as object path"  # what follows a rule that found an entry by its second spelling


class Naming(NamedTuple):
    """One way of naming: from a variable's canonical and TF2 name to the names a checkpoint may have it under."""

    rule: str  # how the plan calls it
    spell: Callable[[str, str], list[str]]
    epsilon: float | None = None  # of the batch norms of checkpoints that name so


class Match(NamedTuple):
    """A source entry that answers to a variable's name."""

    rule: str
    name: str  # in the view
    shape: tuple[int, ...]  # in the model's layout
    steps: tuple[Step, ...]


def _without_scope(name: str, tf2_name: str) -> list[str]:
    scope, _, rest = name.partition("/")
    return [rest] if scope in _FEATURE_SCOPES and rest else []


def _other_feature_scope(name: str, tf2_name: str) -> list[str]:
    return [f"{scope}/{rest}" for rest in _without_scope(name, tf2_name) for scope in _FEATURE_SCOPES]


def _keras3(name: str, tf2_name: str) -> list[str]:
    """Keras 3 calls a depthwise convolution's kernel `kernel`."""
    renamed = tf2_name.removesuffix("/depthwise_kernel")
    return [f"{renamed}/kernel"] if renamed != tf2_name else []


# In order: the first that finds an entry of the right shape decides.
DETECTION: tuple[Naming, ...] = (
    Naming("same name", lambda name, tf2_name: [name]),
    Naming("TF2 name", lambda name, tf2_name: [tf2_name] if tf2_name else []),
    Naming("Keras 3 name", _keras3),
)
CLASSIFICATION: tuple[Naming, ...] = (
    *DETECTION,
    Naming("classification net", _without_scope),
    Naming("other feature extractor scope", _other_feature_scope),
)


def of_type(kind: str, families: tuple[names.Vocabulary, ...]) -> tuple[Naming, ...]:
    """The namings to look under for a fine_tune_checkpoint_type; `families` are those of published backbones."""
    return CLASSIFICATION + tuple(map(_family, families)) if kind == BACKBONE_ONLY else DETECTION


def _family(vocabulary: names.Vocabulary) -> Naming:
    def spell(name: str, tf2_name: str) -> list[str]:
        spelling = names.apply_rules(name, vocabulary.rules)
        return [spelling] if spelling != name else []

    return Naming(vocabulary.name, spell, vocabulary.epsilon)


class Finder:
    """Looks variables up in one source."""

    def __init__(
        self, view: View, layout: str, namings: tuple[Naming, ...], tf2_paths: Mapping[str, str] | None = None
    ) -> None:
        self._view = view
        self._paths = tf2_paths or {}
        self._layout = layout
        self._namings = namings

    def find(self, name: str, tf2_name: str, shape: tuple[int, ...]) -> list[Match]:
        """What answers to the variable's name: the entries of its shape, else the first of another; may be empty.

        Several of its shape, best first, say that the checkpoint has it under several names.
        """
        found: dict[str, Match] = {}
        for match in self._matches(name, tf2_name, shape):
            found.setdefault(match.name, match)
        return [match for match in found.values() if match.shape == shape] or list(found.values())[:1]

    def match(self, rule: str, name: str, entry: str, shape: tuple[int, ...]) -> Match:
        """The match of a variable with an entry that was found otherwise."""
        converted, steps = layouts.convert(name, self._view.shapes[entry], self._layout, shape)
        return Match(rule, entry, converted, steps)

    def _matches(self, name: str, tf2_name: str, shape: tuple[int, ...]) -> Iterator[Match]:
        if (entry := self._at_path(name)) is not None:
            # In such a checkpoint the full name may be another variable's.
            yield self.match(BY_PATH, name, entry, shape)
            return
        for naming in self._namings:
            for spelling in naming.spell(name, tf2_name):
                if spelling in self._view.shapes:
                    yield self.match(naming.rule, name, spelling, shape)
                elif spelling in self._view.aliases:
                    yield self.match(naming.rule + AS_PATH, name, self._view.aliases[spelling], shape)

    def _at_path(self, name: str) -> str | None:
        """The entry at the variable's object path, in a checkpoint of a training run or within a SavedModel."""
        path = self._paths.get(name)
        for spelling in (path, f"_{path}") if path else ():
            if spelling in self._view.aliases:
                return self._view.aliases[spelling]
            if spelling in self._view.shapes:
                return spelling
        return None
