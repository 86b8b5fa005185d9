"""Training on a corpus larger than the disk: stories become rows while the run reads them.

Stories are read in their order, cleaned and tokenized as in preparation and cut into the same rows,
which are drawn from a buffer. What holds:

- A pass gives each of its rows exactly once; the next begins when the buffer is empty. The tokens
  at the end of a pass that fill no row are left out, as in preparation, and counted.
- The order of a pass follows from the seed and the pass alone. One process reads, and each step's
  rows are shared out among all: the same rows in the same steps for any number of processes.
- A run that goes on reads from the first story again and leaves out what was trained, so that it
  goes on with the same rows, in a later pass too.

What is not promised:

- The order is random within the buffer alone: a row is given at the earliest `shuffle_buffer` rows
  before its place in the text. A text sorted by kind stays about so.
- Going on takes the time to read and tokenize again all that was trained on.
- Nobody looks whether validation stories stand in training, and nobody counts training beforehand.
- A Hub dataset stays the same while it is read, since its commit is pinned. A local file is hashed
  when the run starts; a change after that is noticed where a later pass has other counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset

from tinystories_hf.core.errors import HOW_TO_RESUME, RunError, UserError
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.packing import row_dtype
from tinystories_hf.data.prepare import STORIES_PER_BATCH
from tinystories_hf.data.splits import Split
from tinystories_hf.data.tokenize import WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tinystories_hf.config.arguments import DataArguments

Row = np.ndarray[Any, Any]


@dataclass
class Pass:
    """The counts of one pass over the stories; tokens = rows x context_length + tokens_dropped."""

    stories: int = 0
    tokens: int = 0
    rows: int = 0
    tokens_dropped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.stories:,} stories, {self.tokens:,} tokens, {self.rows:,} rows;"
            f" {self.tokens_dropped:,} tokens fill no row"
        )


class StreamedRows(IterableDataset[Row]):
    """The rows of a split, pass after pass without end, each (context_length,).

    For the Trainer all of it is one epoch: it goes on by leaving out the first batches, whichever
    pass they are of. Were each pass an epoch, its order would hang on `set_epoch` being called with
    the right number after a resumption. `passes` holds the counts of each whole pass.
    """

    def __init__(
        self, split: Split, data: DataArguments, tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        self.split = split
        self.data = data
        self.tokenizer = tokenizer
        self.seed = seed % 2**64  # it may be negative, as the Trainer's may
        self.passes: list[Pass] = []

    def __iter__(self) -> Iterator[Row]:
        """Begin with the first row of the first pass.

        Raises:
            RunError: the stories cannot be read any further, or a pass differs from the first.
        """
        self.passes = []
        while True:
            number, seen = len(self.passes), Pass()
            generator = np.random.Generator(np.random.PCG64([self.seed, number]))
            rows = (row for block in self._blocks(seen) for row in block)
            try:
                yield from shuffled(rows, self.data.shuffle_buffer, generator)
            except UserError as error:
                raise RunError(
                    f"training stories: {error}; once they can be read, {HOW_TO_RESUME}"
                ) from error
            if not seen.rows or seen != (self.passes or [seen])[0]:
                before = f", the first {self.passes[0]}" if self.passes else ""
                raise RunError(
                    f"training stories: pass {number + 1} had {seen}{before};"
                    " begin a new run on text that stays as it is"
                )
            self.passes.append(seen)
            print(f"pass {number + 1:<7}{seen}", flush=True)

    def require_a_row(self) -> None:
        """Read until there is a row; said before any work where there is none.

        Raises:
            UserError: the stories cannot be read, or are fewer tokens than one row.
        """
        seen = Pass()
        if not any(len(block) for block in self._blocks(seen)):
            raise UserError(
                f"dataset: {self.data.dataset} has {seen.tokens} tokens for train, fewer than one"
                f" row of context_length {self.data.context_length}; give more text or shorter rows"
            )

    def _blocks(self, seen: Pass) -> Iterator[Row]:
        """Read through the stories once; yields (rows, context_length) and keeps count."""
        width, dtype = self.data.context_length, row_dtype(len(self.tokenizer))
        stories = clean(self.split.read(), self.data, CleaningCounts())
        tokenize = WordTokenizer(self.tokenizer)
        rest = np.empty(0, dtype)
        while batch := list(islice(stories, STORIES_PER_BATCH)):
            stream = np.concatenate([rest, tokenize(batch).astype(dtype)])
            rows, rest = np.split(stream, [len(stream) // width * width])
            seen.stories += len(batch)
            seen.tokens += len(stream) - seen.tokens_dropped
            seen.rows += len(rows) // width
            seen.tokens_dropped = len(rest)
            yield rows.reshape(-1, width)


def shuffled(rows: Iterable[Row], size: int, generator: np.random.Generator) -> Iterator[Row]:
    """Yield each row once, the next always drawn from `size` that wait; all are told at the end.

    A row that waits is a copy: a view would keep the whole block that it came in.
    """
    left = iter(rows)
    waiting = [row.copy() for row in islice(left, size)]
    for row in left:
        place = int(generator.integers(len(waiting)))
        yield waiting[place]
        waiting[place] = row.copy()
    for place in generator.permutation(len(waiting)).tolist():
        yield waiting[place]
