"""The rows that a run trains on: prepared on disk or streamed, with one interface."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.packing import PackedRows
from tinystories_hf.data.streaming import StreamedRows


class TrainingRows(Protocol):
    """What a run needs to know about its training rows.

    Attributes:
        weight_settings: what determines the rows and their order besides the text and the seed.
        has_epochs: whether the Trainer's count of epochs is a count of passes over the text.
        reread_on_resume: whether a resumed run reads all earlier rows again.
    """

    weight_settings: dict[str, Any]
    has_epochs: bool
    reread_on_resume: bool

    def describe(self) -> str:
        """Return the number or the source of the rows, for the log."""

    def check_one_step(self, global_batch_size: int) -> None:
        """Check that there are enough rows for one step.

        Raises:
            UserError: there are too few rows.
        """


class PreparedRows(PackedRows):
    """The rows of a prepared folder, see `TrainingRows`."""

    has_epochs = True
    reread_on_resume = False

    def __init__(self, prepared: PreparedData) -> None:
        super().__init__(prepared.rows("train"))
        counts = prepared.manifest.split("train")
        self.weight_settings: dict[str, Any] = {"training_rows": counts.rows}
        self._description = (
            f"{counts.rows:,} x {prepared.manifest.context_length} tokens ="
            f" {counts.tokens_out:,} tokens, from {prepared.path}"
        )

    def describe(self) -> str:
        """Return the number of rows and tokens, and the folder."""
        return self._description

    def check_one_step(self, global_batch_size: int) -> None:
        """Check that there are at least `global_batch_size` rows.

        Raises:
            UserError: there are fewer.
        """
        if len(self) < global_batch_size:
            raise UserError(
                f"global_batch_size {global_batch_size} exceeds the {len(self)} training rows"
                " (packed sequences); lower it or use more text"
            )


def training_rows(prepared: PreparedData, data: DataArguments, seed: int) -> TrainingRows:
    """Return the training rows, prepared or streamed; `seed` determines the order of a stream."""
    if prepared.stream is None:
        return PreparedRows(prepared)
    return StreamedRows(prepared.stream, data, prepared.tokenizer, seed)


def collate_rows(rows: list[np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Stack rows into `input_ids` of shape `(batch, context)`; `labels` are the same tensor."""
    input_ids = torch.from_numpy(np.stack(rows).astype(np.int64))
    return {"input_ids": input_ids, "labels": input_ids}
