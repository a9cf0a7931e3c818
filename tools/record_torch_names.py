"""Records under which names torchvision and timm keep our backbones, and what one of them makes of an input.

The names are what `od_finetune/models/backbones/*.py: VOCABULARIES` is tested against; the outputs show that weights
restored under them compute the same. Needs torch, torchvision and timm (none of which od_finetune needs):

    python tools/record_torch_names.py tests/checkpoints/fixtures

Writes `<network>.names` (a line per tensor of the state_dict: name and shape) and `torchvision_mobilenet_v2.npz`
(`layer_8`, `layer_19`: features [1, C, h, w] that `weights(names)` make of `image()`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

NETWORKS = (
    "torchvision_mobilenet_v2", "timm_mobilenetv2_100", "timm_mobilenetv1_100", "timm_tf_efficientnet_lite0"
)  # fmt: skip
FEATURES = {"layer_8": 7, "layer_19": 18}  # our feature level: index in torchvision's `features`


def read_names(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name, in the order of the state_dict."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: tuple(map(int, shape.split("x"))) if shape != "-" else () for name, shape in lines}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name that keep activations within bounds, some channels of so little variance that epsilon counts.

    They depend on the position among `shapes` only, so that networks of equal structure get equal weights.
    """
    values = {}
    for index, (name, shape) in enumerate(shapes.items()):
        rng = np.random.default_rng(index)
        if name.endswith("running_var"):
            value = 10 ** rng.uniform(-2, 0.5, shape)
        elif len(shape) > 1:
            value = rng.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        else:
            value = 0.1 * rng.normal(size=shape) + (0.3 if name.endswith("weight") else 0.0)
        values[name] = value.astype(np.float32)
    return values


def image() -> np.ndarray:
    """A batch of one, `[1, 3, 64, 64]`, values -1..1."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)


def _record(folder: Path) -> None:
    import torch

    torch.library.register_fake = lambda *names, **options: lambda function: function  # lets a CPU build be imported
    import timm
    import torchvision

    networks = (
        torchvision.models.mobilenet_v2(weights=None),
        timm.create_model("mobilenetv2_100"),
        timm.create_model("mobilenetv1_100"),
        timm.create_model("tf_efficientnet_lite0"),
    )
    for name, network in zip(NETWORKS, networks, strict=True):
        shapes = {entry: tuple(value.shape) for entry, value in network.state_dict().items() if value.dim()}
        lines = [f"{entry} {'x'.join(map(str, shape))}\n" for entry, shape in shapes.items()]
        (folder / f"{name}.names").write_text("".join(lines))
        state = {entry: torch.from_numpy(value) for entry, value in weights(shapes).items()}
        print(name, network.load_state_dict(state, strict=False).unexpected_keys)
        network.eval()
    outputs, features = {}, torch.from_numpy(image())
    with torch.no_grad():
        for index, block in enumerate(networks[0].features):
            features = block(features)
            outputs |= {level: features.numpy() for level, at in FEATURES.items() if at == index}
        # timm's has the same layers in the same order, so that one recording serves for both.
        difference = (networks[1].forward_features(torch.from_numpy(image())) - features).abs().max()
        print("torchvision and timm differ by", float(difference), "of", float(features.abs().max()))
    np.savez_compressed(folder / f"{NETWORKS[0]}.npz", **outputs)


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
