"""Writes the small files under tests/checkpoints/fixtures with the programs that such files come from.

Each program has an environment of its own; run in it, from the repository's root:

    python tools/make_reader_fixtures.py torch    # torch 2.13.0 (CPU), numpy
    python tools/make_reader_fixtures.py mxnet    # mxnet 1.9.1, numpy 1.23.5, Python 3.8
    python tools/make_reader_fixtures.py tfjs --tensorflowjs FOLDER   # TensorFlow, and tensorflowjs 4.22.0: FOLDER has
        # its package with write_weights.py, read_weights.py, quantization.py and an empty __init__.py

The values are a function of an entry's name and shape, so that the tests know them.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "checkpoints" / "fixtures"


def value(name: str, shape: tuple) -> np.ndarray:
    """Float32 values in [-1, 1) with eight bits, which every float type keeps exactly but bfloat16's rounding."""
    number = int(np.prod(shape, dtype=np.int64))
    spread = (np.arange(number, dtype=np.int64) * 197 + zlib.crc32(name.encode())) % 256
    return (spread / 128 - 1).astype(np.float32).reshape(shape)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------

SHAPES = {
    "features.0.weight": (4, 3, 3, 3),
    "features.0.bias": (4,),
    "features.1.weight": (4,),
    "features.1.bias": (4,),
    "features.1.running_mean": (4,),
    "features.1.running_var": (4,),
    "features.2.weight": (4, 1, 3, 3),
    "classifier.weight": (5, 4),
    "classifier.bias": (5,),
}
COUNTER = "features.1.num_batches_tracked"


def _network():
    import torch
    from torch import nn

    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False))
    network = nn.Module()
    network.features, network.classifier = features, nn.Linear(4, 5)
    network.load_state_dict(
        {name: torch.from_numpy(value(name, shape)) for name, shape in SHAPES.items()} | {COUNTER: torch.tensor(7)}
    )
    return network


def _odd_tensors() -> dict:
    """Types, strides and shared storages that a state_dict may have."""
    import torch

    def tensor(name: str, *shape: int):
        return torch.from_numpy(value(name, shape))

    whole = tensor("whole", 24)
    return {
        "half": tensor("half", 2, 3).half(),
        "bfloat16": tensor("bfloat16", 2, 3).bfloat16(),
        "double": tensor("double", 3).double(),
        "integers": torch.arange(-2, 4, dtype=torch.int32),
        "bytes": torch.arange(4, dtype=torch.uint8),
        "switches": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "temperature": torch.tensor(0.5),
        "transposed": tensor("transposed", 3, 4).t(),
        "channels_last": tensor("channels_last", 2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "shared.whole": whole,
        "shared.part": whole[4:16].view(3, 4),
        "shared.steps": whole[1::5],
        "parameter": torch.nn.Parameter(tensor("parameter", 2, 2)),
    }


def _training(stage: int) -> dict:
    """A training checkpoint as recipes save it: DataParallel's prefix, optimiser with momentum, averages, numbers."""
    import torch

    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in _network().state_dict().items()}
    return {
        "epoch": stage,
        "arch": "tiny",
        "state_dict": state,
        "state_dict_ema": {name: tensor / 2 for name, tensor in state.items()},
        "best_acc1": torch.tensor(0.75),
        "optimizer": optimizer.state_dict(),
        "numpy": {"score": np.float64(0.25), "generator": np.arange(5, dtype=np.uint32)},
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "milestones": {1, 2},
    }


def write_torch() -> None:
    """Both containers of torch.save, and files that must be refused."""
    import torch

    def save(name: str, what: object, **options: object) -> None:
        torch.save(what, FIXTURES / name, **options)

    legacy = {"_use_new_zipfile_serialization": False}
    save("torch_state_dict.pt", _network().state_dict())
    save("torch_state_dict_legacy.pth", _network().state_dict(), **legacy)
    save("torch_odd.pt", _odd_tensors())
    save("torch_odd_legacy.pt", _odd_tensors(), **legacy)
    save("torch_protocol4.pt", _odd_tensors(), pickle_protocol=4)
    save("torch_training.pth.tar", _training(3))
    save("torch_training_legacy.pth.tar", _training(3), **legacy)
    save("torch_whole_model.pt", _network())
    save("torch_namespace.pt", {"state_dict": _network().state_dict(), "args": argparse.Namespace(lr=0.1)})
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), str(FIXTURES / "torch_script.pt"))


# ---- MXNet -----------------------------------------------------------------------------------------------------------


def write_mxnet() -> None:
    """A Gluon block's parameters under both kinds of names, a symbol's checkpoint, types, numpy's shape semantics."""
    import mxnet as mx
    from mxnet.gluon import nn

    network = nn.HybridSequential(prefix="tiny_")
    with network.name_scope():
        network.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Activation("relu"))
        network.add(nn.Conv2D(4, 3, groups=4, in_channels=4, use_bias=False), nn.Flatten(), nn.Dense(5, in_units=16))
    network.initialize()
    network.hybridize()
    network(mx.nd.zeros((1, 3, 6, 6)))
    for name, parameter in network.collect_params().items():
        parameter.set_data(mx.nd.array(value(name, parameter.shape)))
    network.save_parameters(str(FIXTURES / "gluon_structural.params"))
    network.collect_params().save(str(FIXTURES / "gluon_prefixed.params"))
    network.export(str(FIXTURES / "mxnet_symbol"))  # <prefix>-0000.params and <prefix>-symbol.json
    (FIXTURES / "mxnet_symbol-symbol.json").unlink()
    kinds = ("float64", "float16", "uint8", "int32", "int8", "int64")
    arrays = {kind: mx.nd.array(np.arange(6).reshape(2, 3), dtype=kind) for kind in kinds}
    mx.nd.save(str(FIXTURES / "mxnet_types.params"), arrays)
    mx.nd.save(str(FIXTURES / "mxnet_unnamed.params"), [mx.nd.zeros((2,))])
    sparse = mx.nd.sparse.row_sparse_array((np.ones((1, 2), np.float32), [1]), shape=(4, 2))
    mx.nd.save(str(FIXTURES / "mxnet_sparse.params"), {"dense": mx.nd.zeros((2,)), "embedding": sparse})
    mx.npx.set_np()
    numbers = {"scalar": mx.np.array(0.5), "none": mx.np.zeros((0, 3)), "row": mx.np.array(value("row", (3,)))}
    mx.npx.save(str(FIXTURES / "mxnet_numpy.params"), numbers)


# ---- TensorFlow.js ---------------------------------------------------------------------------------------------------

TFJS_SHAPES = {
    "conv1/kernel": (3, 3, 3, 4),
    "conv1/bias": (4,),
    "conv_dw_1/depthwise_kernel": (3, 3, 4, 1),
    "dense/kernel": (4, 5),
    "dense/bias": (5,),
}


def write_tfjs(package: str) -> None:
    """Layers models: plain, in shards, and quantised three ways.

    Args:
      package: folder with tensorflowjs' `write_weights.py` and `quantization.py`; all of tensorflowjs is not needed.
    """
    sys.path.insert(0, package)
    from tensorflowjs import quantization, write_weights

    entries = [{"name": name, "data": value(name, shape)} for name, shape in TFJS_SHAPES.items()]
    entries.append({"name": "steps", "data": np.arange(3, dtype=np.int32)})
    for kind in ("plain", "shards", "uint8", "uint16", "float16"):
        quantized = kind if kind in quantization.QUANTIZATION_OPTION_TO_DTYPES else None
        folder = FIXTURES / f"tfjs_{kind}"
        folder.mkdir(exist_ok=True)
        manifest = write_weights.write_weights(
            [entries],
            str(folder),
            shard_size_bytes=200 if kind == "shards" else 1 << 22,
            write_manifest=False,
            quantization_dtype_map={quantized: [name for name in TFJS_SHAPES]} if quantized else None,
        )
        topology = {"class_name": "Model", "config": {"name": "tiny"}}
        model = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
        (folder / "model.json").write_text(json.dumps(model))


def main() -> None:
    """Writes the fixtures of one program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=["torch", "mxnet", "tfjs"])
    parser.add_argument("--tensorflowjs", default=".", help="folder that has the package tensorflowjs")
    arguments = parser.parse_args()
    FIXTURES.mkdir(parents=True, exist_ok=True)
    if arguments.program == "tfjs":
        write_tfjs(arguments.tensorflowjs)
    else:
        {"torch": write_torch, "mxnet": write_mxnet}[arguments.program]()


if __name__ == "__main__":
    main()
