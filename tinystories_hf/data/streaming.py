"""Training on a corpus larger than the disk: stories are tokenized and packed during training.

Stories are read in order, cleaned and tokenized as in preparation and cut into the same rows, which
are shuffled through a buffer. Guarantees:

- A pass yields each of its rows exactly once; the next pass begins when the buffer is empty. The
  tokens at the end of a pass that do not fill a row are dropped, as in preparation, and counted.
- The order of a pass depends only on the seed and the number of the pass. One process reads, and
  each step's rows are divided among all processes, so that any number of processes trains on the
  same rows in the same steps.
- A resumed run reads from the first story again and skips the rows it has trained on. It continues
  with the same rows, also in a later pass.

Limitations:

- The order is random only within the buffer: a row is yielded at most `shuffle_buffer` rows before
  its position in the text. A text sorted by topic stays roughly sorted.
- Resuming takes the time to read and tokenize all earlier rows again.
- Validation stories are not looked up in training, and training is not counted in advance.
- A Hub dataset cannot change while it is read, since its commit is pinned. A local file is hashed
  when the run starts; a later change is detected only if a later pass has different counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset

from tinystories_hf.core.errors import HOW_TO_RESUME, RunError, UserError
from tinystories_hf.core.processes import is_main_process
from tinystories_hf.data.cleaning import CleaningCounts, clean
from tinystories_hf.data.packing import row_dtype
from tinystories_hf.data.prepare import STORIES_PER_BATCH
from tinystories_hf.data.splits import Split
from tinystories_hf.data.tokenization.tokenize import WordTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tinystories_hf.config.data_arguments import DataArguments

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
            f" {self.tokens_dropped:,} leftover tokens dropped"
        )


class StreamedRows(IterableDataset[Row]):
    """The rows of a split, an endless sequence of passes; each row has shape `(context_length,)`.

    For the Trainer, the whole sequence is one epoch: it resumes by skipping the first batches, in
    whichever pass they are. If each pass were an epoch, its order would depend on `set_epoch` being
    called with the right number when a run resumes. `passes` holds the counts of each complete
    pass. See `training_rows.TrainingRows` for the other attributes.
    """

    has_epochs = False
    reread_on_resume = True

    def __init__(
        self, split: Split, data: DataArguments, tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        self.split = split
        self.data = data
        self.tokenizer = tokenizer
        self.seed = seed % 2**64  # like the Trainer's, it may be negative
        self.passes: list[Pass] = []
        self.weight_settings = {"streaming": True, "shuffle_buffer": data.shuffle_buffer}

    def describe(self) -> str:
        """Return the length and the source of the rows."""
        return (
            f"{self.data.context_length} tokens each, streamed from {self.data.dataset}, shuffle"
            f" buffer of {self.data.shuffle_buffer:,} rows"
        )

    def __iter__(self) -> Iterator[Row]:
        """Iterate from the first row of the first pass.

        Raises:
            RunError: the stories can no longer be read, or a pass differs from the first.
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
                before = f" but the first pass had {self.passes[0]}" if self.passes else ""
                raise RunError(
                    f"training stories: pass {number + 1} had {seen}{before};"
                    " start a new run on text that does not change"
                )
            self.passes.append(seen)
            print(f"pass {number + 1:<7}{seen}", flush=True)

    def check_one_step(self, global_batch_size: int) -> None:  # noqa: ARG002
        """Read until the first row, so that a text without one is reported before training.

        One row is enough for a step of any size, since passes repeat. Only the main process reads.

        Raises:
            UserError: the stories cannot be read, or have fewer tokens than one row.
        """
        if not is_main_process():
            return
        seen = Pass()
        if not any(len(block) for block in self._blocks(seen)):
            raise UserError(
                f"dataset: the train split of {self.data.dataset} has {seen.tokens} tokens, fewer"
                f" than one row of context_length {self.data.context_length}; add text or lower"
                " context_length"
            )

    def _blocks(self, seen: Pass) -> Iterator[Row]:
        """Read the stories once; yields arrays `(rows, context_length)` and updates `seen`."""
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
    """Yield each row once, in random order from a buffer of `size` rows, and empty it at the end.

    Rows in the buffer are copies: a view would keep the whole block it came from in memory.
    """
    left = iter(rows)
    waiting = [row.copy() for row in islice(left, size)]
    for row in left:
        place = int(generator.integers(len(waiting)))
        yield waiting[place]
        waiting[place] = row.copy()
    for place in generator.permutation(len(waiting)).tolist():
        yield waiting[place]
