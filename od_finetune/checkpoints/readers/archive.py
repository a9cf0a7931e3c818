"""Archives as the zoos ship them (`.tar.gz`, `.tgz`, `.tar`, `.zip`): the checkpoint inside.

Only what belongs to the checkpoint is unpacked, to a temporary folder that goes with the Source. Nothing of the names
in the archive becomes a path but their last parts, and an archive with a name that leads out of it, a link or a device
is refused whole.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from od_finetune.checkpoints.arrays import ArraySource, derived
from od_finetune.checkpoints.readers import graph_def, keras_file, members, saved_model, tf_checkpoint
from od_finetune.checkpoints.readers.members import Member
from od_finetune.errors import UserError

_CHECKPOINT_FILE = re.compile(r"^(.+)\.(index|data-\d{5}-of-\d{5})$")
_STATE = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_MOST_STATE = 1 << 20


def sniff(path: str) -> bool:
    """Whether `path` is a tar or zip archive with a checkpoint in it, or leads into one (`ssd.tar.gz/ssd/model.ckpt`).

    A damaged archive counts, so that opening it says so; a zip of something else (a PyTorch file) does not.
    """
    archive, _ = _split(path)
    if archive is None:
        return False
    if members.is_tar(archive):
        return True
    names = members.zip_names(archive)
    return names is None or bool(_choices([Member(name, 0, name) for name in names]))


def open_archive(path: str) -> ArraySource:
    """Opens the checkpoint in an archive: a checkpoint before a SavedModel before a frozen graph before a Keras file.

    Args:
      path: the archive, or a path that goes on into it where it holds several checkpoints.

    Raises:
      UnreadableError: the archive, or the checkpoint in it, is damaged.
      UserError: it has no checkpoint, or several and no state file that names one; or it is refused: names that lead
        out of it, links, devices, or far more content than its size can honestly hold.
    """
    archive, inner = _split(path)
    if archive is None:
        raise UserError(f"{path}: no archive")
    listing = members.listing(archive)
    chosen = _chosen(archive, inner, listing)
    folder = tempfile.TemporaryDirectory(prefix="od_finetune_archive_")
    wanted = {member.name: member for member in _files(chosen, listing)}
    members.extract(archive, list(wanted.values()), folder.name)
    here = os.path.join(folder.name, *chosen.name.split("/"))
    shown = f"{archive}/{chosen.name}"
    source = _renamed(lambda: chosen.open(here), here, shown)

    def load(name: str, folder: tempfile.TemporaryDirectory[str] = folder) -> np.ndarray:  # removed with this function
        return _renamed(lambda: source.read(name), here, shown)

    return derived(source, path=shown, kind=f"{source.kind} in an archive", load=load)


class _Choice:
    """Something in an archive that can be opened. `rank`: what is preferred, lowest first."""

    def __init__(self, rank: int, name: str, open_: Callable[[str], object]) -> None:
        self.rank, self.name, self.open = rank, name, open_


def _split(path: str) -> tuple[str | None, str]:
    """The archive, and the path within it."""
    path = path.rstrip("/")
    inner: list[str] = []
    while path and not os.path.lexists(path) and os.path.dirname(path) != path:
        path, last = os.path.split(path)
        inner.insert(0, last)
    is_archive = os.path.isfile(path) and (members.is_tar(path) or members.is_zip(path))
    return (path if is_archive else None), "/".join(inner)


def _choices(listing: Sequence[Member]) -> list[_Choice]:
    """What can be opened, best first; of one kind those nearest to the top first."""
    found: dict[str, _Choice] = {}
    for member in listing:
        name, base = member.name, member.name.rpartition("/")[2]
        folder = name.rpartition("/")[0]
        if match := _CHECKPOINT_FILE.match(name):
            if not match[1].endswith("variables/variables"):
                found.setdefault(match[1], _Choice(0, match[1], tf_checkpoint.open_checkpoint))
        elif base.endswith(".ckpt"):
            found.setdefault(name, _Choice(1, name, tf_checkpoint.open_checkpoint))
        elif base == saved_model.FILE_NAME:
            found.setdefault(folder or ".", _Choice(2, folder or ".", saved_model.open_saved_model))
        elif base.endswith(".pb"):
            rank = 3 if base == graph_def.FILE_NAME else 4
            found.setdefault(name, _Choice(rank, name, graph_def.open_graph))
        elif base.endswith((".h5", ".hdf5", ".keras")):
            found.setdefault(name, _Choice(5, name, keras_file.open_keras))
    return sorted(found.values(), key=lambda choice: (choice.rank, choice.name.count("/"), choice.name))


def _chosen(archive: str, inner: str, listing: Sequence[Member]) -> _Choice:
    choices = _choices(listing)
    if inner:
        stripped = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", inner)
        within = [choice for choice in choices if choice.name in (inner, stripped)]
        choices = within or [choice for choice in choices if choice.name.startswith(f"{inner}/")]
    if not choices:
        shown = ", ".join(member.name for member in listing[:10]) or "nothing"
        where = f"under {inner}" if inner else "in it"
        raise UserError(
            f"{archive}: no checkpoint, SavedModel, frozen graph or Keras file {where}. It has: {shown}"
            f"{' and more' if len(listing) > 10 else ''}."
        )
    best = [choice for choice in choices if choice.rank == choices[0].rank]
    if len(best) == 1:
        return best[0]
    latest = _latest(archive, best, listing)
    if latest is None:
        names = ", ".join(choice.name for choice in best[:10])
        raise UserError(f"{archive}: holds {len(best)} checkpoints: {names}. Name one, e.g. {archive}/{best[-1].name}.")
    return latest


def _latest(archive: str, choices: Sequence[_Choice], listing: Sequence[Member]) -> _Choice | None:
    """The one that a state file `checkpoint` beside them names."""
    states = [member for member in listing if member.name.rpartition("/")[2] == "checkpoint"]
    if len(states) != 1 or states[0].size > _MOST_STATE:
        return None
    match = _STATE.search(members.content(archive, states[0]))
    base = match[1].decode(errors="replace").rpartition("/")[2] if match else ""
    folder = states[0].name.rpartition("/")[0]
    named = f"{folder}/{base}" if folder else base
    return next((choice for choice in choices if choice.name == named), None)


def _files(chosen: _Choice, listing: Sequence[Member]) -> list[Member]:
    """What has to be unpacked for it."""
    if chosen.rank == 0:
        matches = [(member, _CHECKPOINT_FILE.match(member.name)) for member in listing]
        return [member for member, match in matches if match and match[1] == chosen.name]
    if chosen.rank == 2:
        folder = "" if chosen.name == "." else f"{chosen.name}/"
        inner = (f"{folder}{saved_model.FILE_NAME}", f"{folder}variables/variables.")
        return [member for member in listing if member.name == inner[0] or member.name.startswith(inner[1])]
    return [member for member in listing if member.name == chosen.name]


def _renamed(act: Callable[[], object], here: str, shown: str) -> object:
    """Calls the archive by its name in what goes wrong, not the folder it was unpacked to."""
    try:
        return act()
    except UserError as error:
        raise type(error)(str(error).replace(here, shown)) from None


