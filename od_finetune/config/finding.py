"""One thing that lint has to say."""

from __future__ import annotations

import dataclasses
from typing import Any

ERROR, WARNING, INFO = SEVERITIES = ("error", "warning", "info")


@dataclasses.dataclass(frozen=True)
class Finding:
    """`severity` is "error" (a run refuses it), "warning" (works, rarely meant) or "info"."""

    severity: str
    path: str
    message: str
    hint: str = ""
    line: int | None = None
    unhonoured: bool = False

    def text(self, name: str = "") -> str:
        """`name:line: severity: path: message`, then the hint."""
        place = ":".join(str(part) for part in (name, self.line) if part)
        subject = f"{self.path}: " if self.path else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{place + ': ' if place else ''}{self.severity}: {subject}{self.message}{hint}"

    def as_json(self) -> dict[str, Any]:
        """All fields as a plain dict."""
        return dataclasses.asdict(self)
