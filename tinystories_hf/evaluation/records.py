"""JSON Lines files of generated stories and judge replies, from which evaluations resume."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from tinystories_hf.core.errors import UserError

Record = dict[str, Any]


class RecordFile:
    """A JSON Lines file whose first line holds the settings and each other line one record.

    An incomplete last line, left by a killed process, is removed when the file is opened again.

    Raises:
        UserError: the file was written with other settings, or a line before the last is damaged.
    """

    def __init__(self, path: Path, made_with: Record) -> None:
        self.path, self.made_with = path, made_with
        self._lock = threading.Lock()
        self.records: list[Record] = []
        if path.exists():
            self._read(made_with)

    def append(self, records: list[Record]) -> None:
        """Append records and flush them to disk; safe to call from any thread."""
        with self._lock:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._write([{"made_with": self.made_with}], "w")
            self._write(records, "a")
            self.records += records

    def _write(self, records: list[Record], mode: str) -> None:
        with self.path.open(mode, encoding="utf-8") as stream:
            stream.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self, made_with: Record) -> None:
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        try:
            head, *self.records = [json.loads(line) for line in complete.splitlines()] or [{}]
        except ValueError:
            raise UserError(f"{self.path} is damaged; delete or move it to start again") from None
        if head and head.get("made_with") != made_with:
            raise UserError(
                f"{self.path} was written with other settings or another model; delete or move it,"
                " or choose another --output_dir"
            )
        if not head:
            self._write([{"made_with": made_with}], "w")
        elif len(complete) < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(len(complete))
