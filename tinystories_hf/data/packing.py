"""Pack token ids into rows: the stream of all stories, each ending with an EOS, is cut in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import datasets


def row_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type of an id on disk: uint16 if the vocabulary fits, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


class PackedRows:
    """The memory-mapped rows of a split for training; a batch is read by one call.

    Indexing a `datasets.Dataset` creates Python objects for each row; see docs/benchmarks.md.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        column = dataset.with_format("arrow")[:]["input_ids"]
        width = column.type.list_size
        self._blocks = [
            block.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
            for block in column.chunks
        ]
        self._ends = np.cumsum([len(block) for block in self._blocks])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> np.ndarray[Any, Any]:
        """Return the token ids of a row, shape `(context_length,)`."""
        block = int(np.searchsorted(self._ends, row, side="right"))
        ids: np.ndarray[Any, Any] = self._blocks[block][row - self._ends[block]]
        return ids

    def __getitems__(self, rows: list[int]) -> list[np.ndarray[Any, Any]]:
        """Return several rows; a `DataLoader` calls this once per batch."""
        return [self[row] for row in rows]


class RowWriter:
    """Cut a stream of token ids into rows and write them to an Arrow file.

    The bytes of the file do not depend on how the stream is divided into calls of `write`. After
    the context manager exits, `tail` holds the remaining tokens, fewer than one row.
    """

    TOKENS_PER_BLOCK = 1 << 20

    def __init__(self, path: Path, context_length: int, vocab_size: int) -> None:
        self.context_length = context_length
        self.dtype = row_dtype(vocab_size)
        self.rows = self.tokens_in = 0
        self.tail = np.empty(0, self.dtype)
        self._block = max(1, self.TOKENS_PER_BLOCK // context_length) * context_length
        self._waiting: list[np.ndarray[Any, Any]] = []
        self._count = 0
        row = pa.list_(pa.from_numpy_dtype(self.dtype), context_length)
        self._schema = pa.schema([pa.field("input_ids", row)])
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, self._schema)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.tail = self._write_blocks(self.context_length)
        self._stream.close()
        self._file.close()

    def write(self, ids: np.ndarray[Any, Any]) -> None:
        """Append the next tokens of the stream."""
        self.tokens_in += len(ids)
        self._count += len(ids)
        self._waiting.append(ids.astype(self.dtype))
        if self._count >= self._block:
            self._waiting = [self._write_blocks(self._block)]
            self._count = len(self._waiting[0])

    def _write_blocks(self, multiple: int) -> np.ndarray[Any, Any]:
        """Write as many waiting tokens as a multiple of `multiple` allows, and return the rest."""
        stream = np.concatenate([self.tail, *self._waiting])
        whole = len(stream) // multiple * multiple
        for start in range(0, whole, self._block):
            flat = pa.array(stream[start : min(start + self._block, whole)])
            column = pa.FixedSizeListArray.from_arrays(flat, self.context_length)
            self._stream.write_batch(pa.record_batch([column], schema=self._schema))
        self.rows += whole // self.context_length
        return stream[whole:]
