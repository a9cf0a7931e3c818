"""Pickles that would run something, or take all memory or time: refused, with a name or a reason, within bounds."""

import os
import pickle
import resource
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from od_finetune.checkpoints.readers import torch_file
from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

SLACK = 1 << 20  # of torch_file.SLACK, in most tests: the bombs can then be small, and so can what they may take
NAMES = ["os system", "posix system", "nt system", "subprocess Popen", "builtins eval", "builtins exec"]
NAMES += ["builtins getattr", "builtins __import__", "__builtin__ eval", "importlib import_module", "torch load"]
NAMES += ["torch.hub load", "torch.storage _load_from_bytes", "collections OrderedDict.__init__", "webbrowser open"]
NAMES += ["torch._utils _rebuild_tensor_v2.__globals__", "numpy.testing._private.utils runstring"]
NAMES += ["functools partial", "operator attrgetter", "types FunctionType", "numpy load", "pickle loads"]
NAMES += ["copyreg _reconstructor", "torch FloatTensor"]


def _text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _write(path, root, container, torch_bytes):
    if container == "stream":
        path.write_bytes(torch_bytes.stream(root))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", root)
            archive.writestr("archive/version", b"3\n")
    return path


@pytest.fixture(autouse=True)
def _small_slack(monkeypatch):
    monkeypatch.setattr(torch_file, "SLACK", SLACK)


def _refused(path, error=UserError, match=None, seconds=20, slack=4 * SLACK):
    """Opens the file, which must raise in little time and memory."""
    size = os.path.getsize(path)
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(error, match=match):
            open_source(path)
        assert time.process_time() - begin < seconds
        assert tracemalloc.get_traced_memory()[1] < 2 * size + slack
    finally:
        tracemalloc.stop()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that the pickles try to make; it must not be there afterwards."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("container", ["stream", "archive"])
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_name_and_call_something(tmp_path, canary, torch_bytes, name, container):
    module, function = name.split()
    argument = _text(f"touch {canary}")
    named = b"c%s\n%s\n" % (module.encode(), function.encode())
    pickled = {
        "call": b"\x80\x02" + named + argument + b"\x85R.",
        "stack": b"\x80\x04" + _text(module) + _text(function) + b"\x93" + argument + b"\x85R.",
        "memo": b"\x80\x04" + _text(module) + b"q\1" + _text(function) + b"q\0020h\1h\2\x93" + argument + b"\x85R.",
        "new": b"\x80\x02" + named + argument + b"\x85\x81.",
        "inside": torch_bytes.state({"w": named + argument + b"\x85R"}),
        "type": b"\x80\x02((" + _text("storage") + named + _text("0") + _text("cpu") + b"K\x01tQ.",
    }
    for way, root in pickled.items():
        path = _write(tmp_path / f"{way}.pth", root, container, torch_bytes)
        _refused(path, match=rf"its pickle names '\S*{function[-20:]}', which is neither a tensor nor a container")


def _really_pickled():
    class Attack:
        def __reduce__(self):
            return os.system, ("touch canary",)

    class Nested:
        def __reduce__(self):
            return list, ([Attack()],), {"state": Attack()}

    for protocol in range(6):
        for attack in (Attack(), {"state_dict": {"w": Attack()}}, [Nested()]):
            yield pickle.dumps(attack, protocol)


@pytest.mark.parametrize("container", ["stream", "archive"])
def test_what_pythons_own_pickler_makes_of_an_attack(tmp_path, canary, torch_bytes, container):
    for number, root in enumerate(_really_pickled()):
        _refused(_write(tmp_path / f"{number}.pth", root, container, torch_bytes))


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (b"\x80\x02(S'os'\ni", "no pickle opcode that a checkpoint has"),
        (b"(S'touch canary'\nios\nsystem\n.", "byte 0x69 is no pickle opcode"),
        (b"(cbuiltins\ndict\nS'x'\no.", "byte 0x6f is no pickle opcode"),
        (b"\x80\x02\x82\x01.", "byte 0x82 is no pickle opcode"),
        (b"Pcanary\n.", "byte 0x50 is no pickle opcode"),
        (b"\x80\x05\x97.", "byte 0x97 is no pickle opcode"),
        (b"\x80\x09.", "it is of protocol 9"),
        (b"ctorch\nSize\n}\x86b.", "sets the state of|takes a value"),
        (b"ctorch\nSize\n}b.", "it sets the state of a Name"),
        (b"ccollections\nOrderedDict\nN\x85R.", "of what cannot be in one"),
        (b"ctorch\nSize\n)Rh\x07.", "refers to a value that it did not remember"),
        (b"ctorch\nFloatStorage\n)R.", "it calls torch.FloatStorage"),
        (b"(K\x01K\x02tK\x03R.", "it calls something with what are no arguments"),
        (b"K\x03)R.", "it calls 3"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "arguments that do not fit"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.", "a tensor has no storage"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR.", "it encodes something that is no bytes"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR.", "a numpy array of type 'O8', expected plain numbers"),
        (b"(cnumpy\ndtype\nK\x00tQ.", "it fetches something that is no storage"),
        (b".", "it takes a value where none is"),
        (b"(.", "it takes a value where none is"),
        (b"0.", "it takes a value where none is"),
        (b"e.", "it ends a group that was not begun"),
        (b"]K\x01K\x02s.", "it adds to a list as to a dict"),
        (b"}K\x01a.", "it adds to a dict as to a list"),
        (b"}(K\x01u.", "a dict has a key without a value"),
        (b"}]K\x01s.", "a dict has a list for a key"),
        (b"}K\x01\x85K\x01s.", "a dict has a tuple for a key"),
        (b"}\x8a\x09" + b"\xff" * 8 + b"\x00K\x01s.", "for a key"),
        (b"\x8f(]\x90.", "a set has a member that cannot be one"),
        (b"I" + b"9" * 3000 + b"\n.", "is no whole number of at most 256 digits"),
        (b"F1e5x\n.", "is no number"),
        (b"X\x01\x00\x00\x00\xff.", "it has a string that is no text"),
        (b"V\\ud800\n.", "it has a string that is no text"),
        (b"S'a\\x41'\n.", "is no quoted string"),
    ],
)
def test_opcodes_that_checkpoints_do_not_have(tmp_path, canary, torch_bytes, root, said):
    _refused(_write(tmp_path / "w.pth", root, "stream", torch_bytes), UnreadableError, said)


BOMBS = {
    # Lengths that are not there: nothing may be set aside for them.
    "text": b"\x8d" + struct.pack("<Q", 1 << 62),
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 40),
    "bytearray": b"\x96" + struct.pack("<Q", (1 << 64) - 1),
    "frame": b"\x95" + struct.pack("<Q", 1 << 62),
    "short text": b"X" + struct.pack("<I", 0xFFFFFFFF),
    "number": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\1" * 100,
    "negative": b"\x8b" + struct.pack("<i", -1),
    "long number": b"\x8b" + struct.pack("<i", 100_000) + b"\1" * 100_000 + b".",
    "line": b"c" + b"a" * 1_000_000,
    "memo": b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b"." * 10,
    "memo line": b"Np" + b"9" * 200 + b"\n.",
    # A list is doubled by reference, numbers with the same hash, tuples whose hash takes exponential time.
    "laughs": b"](" + b"K\x01" * 1000 + b"eq\1" + b"0](" + b"h\1" * 1000 + b"eq\2" + b"0](" + b"h\2" * 1000 + b"e.",
    "keys": b"}" + b"".join(b"\x8a\x0a" + (i * ((1 << 61) - 1)).to_bytes(10, "little") + b"Ns" for i in range(9000)),
    "hashes": b")q\0" + b"".join(b"h%c\x85h%c\x85\x86q%c" % (i, i, i + 1) for i in range(100)) + b"}h\x63Ns.",
}
# Values that take far more than their opcode: (opcodes, how often for 32 MiB).
GROWING = {
    "lists": lambda n: b"]" * n,
    "sets": lambda n: b"\x8f" * n,
    "dicts": lambda n: b"}" * n,
    "tuples": lambda n: b")" + b"\x85" * n + b".",
    "nested lists": lambda n: b"(" * n + b"l" * n + b".",
    "nothings": lambda n: b"N" * (6 * n) + b".",
    "memoized": lambda n: b"N" + b"\x94" * n + b".",
    "copies": lambda n: b"](" + b"K\x01" * n + b"eq\1cbuiltins\nset\nq\2h\1\x85R" + b"h\2h\1\x85R" * n + b".",
}


@pytest.mark.parametrize("container", ["stream", "archive"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path, torch_bytes, bomb, container):
    _refused(_write(tmp_path / "w.pth", b"\x80\x02" + BOMBS[bomb], container, torch_bytes))


@pytest.mark.parametrize("container", ["stream", "archive"])
@pytest.mark.parametrize("bomb", GROWING)
def test_values_that_grow(tmp_path, torch_bytes, bomb, container):
    _refused(_write(tmp_path / "w.pth", b"\x80\x02" + GROWING[bomb](25_000), container, torch_bytes))


@pytest.mark.slow
@pytest.mark.parametrize("bomb", GROWING)
def test_values_that_grow_to_the_real_bounds(tmp_path, torch_bytes, monkeypatch, bomb):
    monkeypatch.setattr(torch_file, "SLACK", 32 << 20)
    path = _write(tmp_path / "w.pth", b"\x80\x02" + GROWING[bomb](900_000), "stream", torch_bytes)
    _refused(path, seconds=180, slack=40 << 20)


def test_a_structure_that_holds_itself(tmp_path, torch_bytes):
    """A dict that holds itself, and lists that hold each other a thousand times at every level."""
    tensor = torch_bytes.tensor("0", "FloatStorage", 2, (2,))
    loop = b"\x80\x02}q\1(" + _text("self") + b"h\1" + _text("w") + tensor + b"u."
    path = tmp_path / "loop.pth"
    path.write_bytes(torch_bytes.stream(loop, [("0", 2, bytes(8))]))
    assert open_source(path).names() == {"w": (2,)}
    levels = b"".join(b"](" + b"h%c" % level * 1000 + b"eq%c0" % (level + 1) for level in range(9))
    laughs = b"\x80\x02](K\1eq\0000" + levels + b"}(" + _text("w") + tensor + _text("x") + b"h\x09u."
    path.write_bytes(torch_bytes.stream(laughs, [("0", 2, bytes(8))]))
    assert open_source(path).names() == {"w": (2,)}


def test_names_too_long_and_too_deep(tmp_path, torch_bytes):
    tensor, storages = torch_bytes.tensor("0", "FloatStorage", 2, (2,)), [("0", 2, bytes(8))]
    path = tmp_path / "w.pth"
    deep = b"\x80\x02" + (b"}" + _text("a")) * 20 + tensor + b"s" * 20 + b"."
    for root in (torch_bytes.state({"a" * 600: tensor}), deep):
        path.write_bytes(torch_bytes.stream(root, storages))
        _refused(path, match="names of more than 512 characters or containers nested more than 16 deep")


def _zip_bomb(path, size=32 << 20):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))


def test_archives_that_unpack_to_far_more(tmp_path):
    path = tmp_path / "bomb.pt"
    _zip_bomb(path)
    _refused(path, match="says that it unpacks to 335544.. bytes")


def test_archives_that_lie_about_a_size(tmp_path, fixtures):
    """The directory says that a storage is short, the deflated data go on: no more than was said is unpacked."""
    path = tmp_path / "bomb.pt"
    _zip_bomb(path)
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\1\2")
    data[directory + 24 : directory + 28] = struct.pack("<I", 16)
    path.write_bytes(data)
    _refused(path)


def test_archives_with_a_huge_directory(tmp_path):
    """Members without content, of which zipfile would make ten times their size."""
    path = tmp_path / "many.pt"
    entry = b"PK\1\2" + bytes(42)
    directory = entry * 200_000
    first = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 16, 0) + b"archive/data.pkl"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(first), 0)
    path.write_bytes(first + directory + end)
    _refused(path, UnreadableError, "its directory has 9200000 bytes")


@pytest.mark.slow
def test_the_process_itself_does_not_grow(tmp_path, torch_bytes, monkeypatch):
    """What tracemalloc does not see: the resident size after the largest bombs."""
    monkeypatch.setattr(torch_file, "SLACK", 32 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, grow in GROWING.items():
        path = _write(tmp_path / f"{name}.pth", b"\x80\x02" + grow(900_000), "stream", torch_bytes)
        with pytest.raises(UserError):
            open_source(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (80 << 20) >> 10


def test_a_numpy_array_is_taken_as_it_is(tmp_path):
    """Not every name of numpy's is an attack: what training scripts save is read."""
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": array, "score": np.float64(0.5)}, 2))
    source = open_source(path)
    np.testing.assert_array_equal(source.read("w"), np.arange(6, dtype=np.float32).reshape(2, 3), strict=True)
    assert source.read("score") == 0.5
