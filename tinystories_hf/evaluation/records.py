"""Raw outputs as they come, one JSON object a line: what was made once is never made again."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from tinystories_hf.core.errors import UserError

Record = dict[str, Any]


class RecordFile:
    """A file that starts with what its records were made with, and grows by whole lines.

    A line that a kill cut off is taken away when the file is opened again.

    Raises:
        UserError: the file is of something else, or damaged before its end.
    """

    def __init__(self, path: Path, made_with: Record) -> None:
        self.path, self.made_with = path, made_with
        self._lock = threading.Lock()
        self.records: list[Record] = []
        if path.exists():
            self._read(made_with)

    def append(self, records: list[Record]) -> None:
        """Add records and have them on disk before anything else is done; from any thread."""
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
        whole = content[: content.rfind(b"\n") + 1]
        try:
            head, *self.records = [json.loads(line) for line in whole.splitlines()] or [{}]
        except ValueError:
            raise UserError(f"{self.path} is damaged; move it away to begin anew") from None
        if head and head.get("made_with") != made_with:
            raise UserError(
                f"{self.path} was made with other settings or another model; move it away, or"
                " choose another --output_dir"
            )
        if not head:
            self._write([{"made_with": made_with}], "w")
        elif len(whole) < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
