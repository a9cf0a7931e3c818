"""What the last part of a variable's name says, in every framework: which part of which layer it is."""

from __future__ import annotations

import enum
import re


class Role(str, enum.Enum):
    """What a variable is to its layer."""

    KERNEL = "kernel"
    BIAS = "bias"
    GAMMA = "gamma"
    BETA = "beta"
    MEAN = "mean"
    VARIANCE = "variance"


_KERNEL, _NORM = "kernel or gamma", "bias or beta"
_ROLES = {
    **dict.fromkeys(("weights", "kernel", "depthwise_weights", "depthwise_kernel"), Role.KERNEL),
    **dict.fromkeys(("pointwise_weights", "pointwise_kernel"), Role.KERNEL),
    "weight": _KERNEL,  # of a batch norm too in PyTorch
    "bias": _NORM,
    "biases": Role.BIAS,
    **dict.fromkeys(("gamma", "scale"), Role.GAMMA),
    **dict.fromkeys(("beta", "offset"), Role.BETA),
    **dict.fromkeys(("moving_mean", "running_mean"), Role.MEAN),
    **dict.fromkeys(("moving_variance", "running_var", "moving_var"), Role.VARIANCE),
}
_BY_LENGTH = sorted(_ROLES, key=len, reverse=True)
_LAST = re.compile(r"[^./]*$")


def split(name: str) -> tuple[str, str]:
    """Scope and leaf: `features.0.weight` -> `features.0`, `weight`; also of MXNet's `net0_conv0_weight`."""
    last = _LAST.search(name)[0]
    if last not in _ROLES:
        for leaf in _BY_LENGTH:
            if last.endswith(f"_{leaf}"):
                return name[: -len(leaf) - 1], leaf
    return name[: len(name) - len(last)].rstrip("./"), last


def roles(leaves: dict[str, tuple[int, ...]]) -> dict[str, Role]:
    """The role of each leaf of one layer, given their shapes; leaves that are no weights have none."""
    known = {leaf: _ROLES[leaf] for leaf in leaves if leaf in _ROLES}
    is_norm = any(role in (Role.GAMMA, Role.MEAN, Role.VARIANCE) for role in known.values())
    is_norm |= any(role == _KERNEL and len(leaves[leaf]) == 1 for leaf, role in known.items())
    decided = {
        _KERNEL: Role.GAMMA if is_norm else Role.KERNEL,
        _NORM: Role.BETA if is_norm else Role.BIAS,
    }
    return {leaf: role if isinstance(role, Role) else decided[role] for leaf, role in known.items()}
