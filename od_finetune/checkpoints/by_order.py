"""The same layers in the same order under other names: what PyTorch users do by zipping two state dicts.

Kernels are paired with kernels and batch norms with batch norms, each kind in its own order, because files differ in
whether a block lists its norms after each convolution or all at its end. Pairing ends where either side ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from od_finetune.checkpoints import layouts, leaves
from od_finetune.checkpoints.leaves import Role
from od_finetune.checkpoints.view import View
from od_finetune.errors import UserError

_AROUND = 3  # layers shown before and after the first that does not fit
_AHEAD = 10  # layers that may be too many in a row for the hint to see it

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A kernel with its bias, or a batch norm."""

    scope: str
    members: dict[Role, str]  # -> name
    is_norm: bool

    @property
    def main(self) -> str:
        """The member whose shape tells the layer from others."""
        return self.members.get(Role.KERNEL) or next(iter(self.members.values()))


def pair(
    model: Mapping[str, Shape],
    view: View,
    layout: str,
    field: str,
    is_class_head: Callable[[str], bool],
) -> dict[str, str]:
    """Model variable -> the view's name for the same variable of the same layer.

    Args:
      model: shapes of the variables to restore, in the order of the forward pass.
      view: the source's entries, in order.
      layout: of the source's kernels.
      field: where the config asks for it.
      is_class_head: of a model variable; class outputs may differ in shape.

    Raises:
      UserError: a pair does not fit; shows it among its neighbours, and where the orders meet again.
    """
    found: dict[str, str] = {}
    here, there = _layers(model, model), _layers(view.order, view.shapes)
    for norms in (False, True):
        mine = [layer for layer in here if layer.is_norm is norms]
        theirs = [layer for layer in there if layer.is_norm is norms]
        checker = _Checker(mine, theirs, model, view, layout)
        for index, (layer, other) in enumerate(zip(mine, theirs, strict=False)):
            if not checker.fits(layer, other) and not is_class_head(layer.main):
                raise UserError(f"{field}.by_order: {checker.divergence(index)}")
            found |= {name: other.members[role] for role, name in layer.members.items() if role in other.members}
    return found


def shifted_norms(model: Mapping[str, Shape], view: View) -> list[str]:
    """A notice if batch norms seem to have got those of later layers; else none.

    Norms are counted apart from kernels, so that in a network of one width a norm that the file lacks (folded into its
    convolution, say) shifts all that follow, and no shape tells. But then the last pair lies behind more kernels in
    the file than in the model; where a block, or the whole file, merely lists its norms last, that says nothing.

    Args:
      model: as of `pair`.
      view: as of `pair`.
    """
    here, there = _norms(_layers(model, model)), _norms(_layers(view.order, view.shapes))
    pairs = list(zip(here, there, strict=False))
    listed_last = len({kernels for _, kernels in there}) < 2
    if not pairs or listed_last or pairs[-1][1][1] <= pairs[-1][0][1]:
        return []
    # The shift began after the last pair that lay where the model has it.
    good = [index for index, ((_, mine), (_, theirs)) in enumerate(pairs) if theirs <= mine]
    (layer, mine), (other, theirs) = pairs[good[-1] + 1 if good else 0]
    return [
        f"the checkpoint may lack a batch norm: {layer.scope} is paired with {other.scope}, but follows kernel {mine} "
        f"in the model, kernel {theirs} in the checkpoint, and so on to the last. If so, restore what comes before and "
        "what comes behind in two blocks, by scope and skip"
    ]


def _norms(layers: Iterable[Layer]) -> list[tuple[Layer, int]]:
    """The batch norms, each with the number of kernels before it."""
    found, kernels = [], 0
    for layer in layers:
        if layer.is_norm:
            found.append((layer, kernels))
        else:
            kernels += 1
    return found


class _Checker(NamedTuple):
    mine: Sequence[Layer]
    theirs: Sequence[Layer]
    model: Mapping[str, Shape]
    view: View
    layout: str

    def fits(self, layer: Layer, other: Layer) -> bool:
        """Whether every variable that both have is of one shape."""
        return all(
            self._shape(layer, role, other) == self.model[name]
            for role, name in layer.members.items()
            if role in other.members
        )

    def divergence(self, index: int) -> str:
        kind = "batch norm" if self.mine[index].is_norm else "kernel"
        first, last = max(0, index - _AROUND), index + _AROUND + 1
        lines = []
        for number in range(first, min(last, max(len(self.mine), len(self.theirs)))):
            here = self._entry(self.mine, number, self.model)
            there = self._entry(self.theirs, number, self.view.shapes)
            lines.append(f"{'>' if number == index else ' '} {number + 1:3d}  {here}  <-  {there}")
        listed = "\n  ".join(lines)
        order = "" if self.view.has_order else " The format keeps no order; names were sorted, numbers by value."
        return (
            f"the model's and the checkpoint's order diverge at {kind} {index + 1}, whose shapes differ:\n  {listed}\n"
            f"{self._hint(index)}{order}"
        )

    def _hint(self, index: int) -> str:
        for ahead in range(1, _AHEAD + 1):
            if self._run(index, index + ahead):
                extra = self.theirs[index : index + ahead]
                return (
                    f"They fit again from the checkpoint's {self.theirs[index + ahead].scope} on: if the model has no "
                    f"{', '.join(layer.scope for layer in extra)}, name it in skip."
                )
            if self._run(index + ahead, index):
                extra = self.mine[index : index + ahead]
                return (
                    f"They fit again from the model's {self.mine[index + ahead].scope} on: the checkpoint seems to "
                    f"have no {', '.join(layer.scope for layer in extra)}; leave it out of scope."
                )
        return "Name in skip what the model does not have, and leave out of scope what the checkpoint does not have."

    def _run(self, mine: int, theirs: int, length: int = 3) -> bool:
        """Whether the layers from these positions on fit, up to where either ends, the first at least."""
        pairs = list(zip(self.mine[mine : mine + length], self.theirs[theirs : theirs + length], strict=False))
        return bool(pairs) and all(self.fits(layer, other) for layer, other in pairs)

    def _shape(self, layer: Layer, role: Role, other: Layer) -> Shape:
        name, source = layer.members[role], other.members[role]
        return layouts.convert(name, self.view.shapes[source], self.layout, self.model[name])[0]

    @staticmethod
    def _entry(layers: Sequence[Layer], number: int, shapes: Mapping[str, Shape]) -> str:
        if number >= len(layers):
            return "(end)"
        layer = layers[number]
        return f"{layer.scope} {list(shapes[layer.main])}"


def _layers(order: Iterable[str], shapes: Mapping[str, Shape]) -> list[Layer]:
    """The layers that names make up, in the order of their first variable."""
    scopes: dict[str, dict[str, str]] = {}
    for name in order:
        scope, leaf = leaves.split(name)
        scopes.setdefault(scope, {})[leaf] = name
    layers = []
    for scope, by_leaf in scopes.items():
        roles = leaves.roles({leaf: shapes[name] for leaf, name in by_leaf.items()})
        kernels = [leaf for leaf, role in roles.items() if role is Role.KERNEL]
        rest = {role: by_leaf[leaf] for leaf, role in roles.items() if role is not Role.KERNEL}
        if not kernels and rest and rest.keys() != {Role.BIAS}:
            layers.append(Layer(scope, rest, True))
        for leaf in kernels:  # a separable convolution has two; the bias belongs to the second
            members = {Role.KERNEL: by_leaf[leaf]} | (rest if leaf == kernels[-1] else {})
            layers.append(Layer(scope, members, False))
    return layers
