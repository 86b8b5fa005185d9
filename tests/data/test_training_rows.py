from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.test_golden_rows import byte_tokenizer
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.training_rows import TrainingRows, training_rows


@pytest.fixture
def rows(tiny_arguments: Callable[..., Arguments], tmp_path: Path) -> Callable[..., TrainingRows]:
    """Return a function that returns the training rows of the toy corpus."""
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")

    def open_rows(*flags: str) -> TrainingRows:
        arguments = tiny_arguments(*tokenizer, "--max_steps", "1", *flags)
        prepared = prepare(arguments.data, arguments.model.vocab_size, quiet=True)
        return training_rows(prepared, arguments.data, 0)

    return open_rows


def test_prepared_rows_answer_what_a_run_asks(rows: Callable[..., TrainingRows]) -> None:
    found = rows()
    count = found.weight_settings["training_rows"]
    assert found.describe().startswith(f"{count:,} x 64 tokens = {64 * count:,} tokens, from /")
    assert (found.has_epochs, found.reread_on_resume) == (True, False)
    found.check_one_step(count)
    with pytest.raises(UserError, match=f"{count + 1} exceeds the {count} training rows"):
        found.check_one_step(count + 1)


def test_streamed_rows_answer_what_a_run_asks(
    rows: Callable[..., TrainingRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rows("--streaming", "--shuffle_buffer", "1234")
    assert found.weight_settings == {"streaming": True, "shuffle_buffer": 1234}
    assert found.describe() == "64 tokens each, streamed from toy, shuffle buffer of 1,234 rows"
    assert (found.has_epochs, found.reread_on_resume) == (False, True)
    found.check_one_step(10**9)
    empty = rows("--streaming", "--context_length", "64")
    monkeypatch.setattr(empty, "_blocks", lambda _: iter(()))
    with pytest.raises(UserError, match="fewer than one row"):
        empty.check_one_step(1)
    monkeypatch.setenv("RANK", "1")
    empty.check_one_step(1)
