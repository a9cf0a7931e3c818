"""freeze_proof.json: the hash of each frozen variable before and after, so that anyone can check that none moved.

A hash is the SHA-256 of the variable's values as little-endian numbers in C order: `sha256(array.tobytes())` with
numpy, from the checkpoint that the file lies beside. Of a variable of which some class rows are frozen
(`NAME[rows of star, ring]`) it is that of these rows, `array[..., rows]`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from od_finetune import files
from od_finetune.errors import UserError

logger = logging.getLogger(__name__)

FREEZE_PROOF = "freeze_proof.json"


class FrozenChangedError(UserError):
    """A variable that was frozen is not what it was."""


class Record(NamedTuple):
    """One variable, over the steps through which it is frozen."""

    from_step: int
    before: str  # its hash then
    to_step: int | None = None  # up to where it is proven; None while the run goes on
    after: str | None = None

    @property
    def identical(self) -> bool | None:
        """Whether not a bit changed; None if that is not known yet."""
        return None if self.after is None else self.before == self.after


class FreezeProof:
    """Hashes what is frozen when it begins to be, again when it ends, and writes both down.

    A resumed run takes up what the file says: the hashes before stay those of the first start.

    Attributes:
      records: by canonical name; several where a variable was frozen, trained, and frozen again.
    """

    def __init__(self, path: str | Path, variables: Mapping[str, tf.Variable]) -> None:
        self.path = Path(path)
        self.records: dict[str, list[Record]] = {}
        self._variables = dict(variables)

    def begin(self, step: int, frozen: Collection[str]) -> None:
        """At the start of a run, with the values it starts from: hashes what is frozen, or remembers its hash.

        Args:
          step: updates made before; 0 for a fresh run, which forgets what another left in the file.
        """
        self.records = self._read(step) if step and (frozen or self.path.exists()) else {}
        for name, records in self.records.items():
            if name not in frozen and records[-1].to_step is None:  # trained from here on: other settings than before
                records[-1] = self._ended(records[-1], name, step)
        for name in frozen:
            records = self.records.setdefault(name, [])
            if records and _goes_on(records[-1], step):
                records[-1] = records[-1]._replace(to_step=None, after=None)
            else:
                records.append(Record(step, self._hash(name)))
        self._write()

    def release(self, step: int, frozen: Collection[str]) -> None:
        """When a phase begins in which less is frozen: proves up to here what is no longer."""
        for name, records in self.records.items():
            if name not in frozen and records[-1].to_step is None:
                records[-1] = self._ended(records[-1], name, step)
        self._write()

    def finish(self, step: int) -> None:
        """At the end of a run: proves what is frozen still, and says so.

        Raises:
          FrozenChangedError: something changed while it was frozen; the file is written all the same.
        """
        for name, records in self.records.items():
            if records[-1].to_step is None:
                records[-1] = self._ended(records[-1], name, step)
        self._write()
        changed = [name for name, records in self.records.items() if any(r.identical is False for r in records)]
        if changed:
            raise FrozenChangedError(
                f"{len(changed)} variables changed although they were frozen, e.g. {', '.join(changed[:3])}; all of "
                f"them are in {self.path}. Training does not touch frozen variables: either another process wrote to "
                "this model_dir, or a checkpoint in it was replaced, or this is an error of the program that should be "
                "reported. Do not take these variables for those that the run started from."
            )
        if self.records:
            logger.info("%d frozen variables unchanged (sha256); see %s", len(self.records), self.path)

    def _ended(self, record: Record, name: str, step: int) -> Record:
        return record._replace(to_step=step, after=self._hash(name))

    def _hash(self, name: str) -> str:
        values = self._variables[name].numpy()
        return hashlib.sha256(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()

    def _write(self) -> None:
        if not self.records and not self.path.exists():
            return
        rows = [
            {"name": name, **record._asdict(), "identical": record.identical}
            for name, records in self.records.items()
            for record in records
        ]
        identical = None if any(row["identical"] is None for row in rows) else all(row["identical"] for row in rows)
        files.write_json(self.path, {"hash": "sha256", "identical": identical, "variables": rows})

    def _read(self, step: int) -> dict[str, list[Record]]:
        """What the file says about the steps before `step`."""
        try:
            rows: list[dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))["variables"]
            found = [(row["name"], Record(**{field: row[field] for field in Record._fields})) for row in rows]
        except FileNotFoundError:
            logger.warning("%s is gone: what is frozen is proven from step %d on only.", self.path, step)
            return {}
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s can't be read (%s): what is frozen is proven from step %d on.", self.path, error, step)
            return {}
        records: dict[str, list[Record]] = {}
        for name, record in found:
            # Rows of a class predictor are frozen under a name that other settings do not have: what was proven stays.
            known = name in self._variables or record.after is not None
            if known and record.from_step <= step:
                records.setdefault(name, []).append(record)
        return records


def _goes_on(record: Record, step: int) -> bool:
    """Whether a variable that is frozen at `step` was so ever since the record began."""
    return record.to_step is None or record.to_step >= step
