"""Tokenize and pack a dataset ahead of training, into the cache that training reads.

    python scripts/prepare_data.py
    python scripts/prepare_data.py --dataset stories.txt --tokenizer ./tok
    python scripts/prepare_data.py --train_file TinyStoriesV2-GPT4-train.txt

Takes the settings of scripts/train.py; of the model only vocab_size matters, of training none.
Prints where the rows (packed sequences) are and all token counts. With --streaming only the
validation split is prepared: the training split is packed while a run reads it.
"""

from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.script import report_user_errors


def main() -> None:
    """Parse, prepare, report."""
    arguments = parse_arguments(description=__doc__ or "")
    from tinystories_hf.data.manifest import describe_rows_on_disk
    from tinystories_hf.data.prepare import prepare

    print(describe_rows_on_disk(prepare(arguments.data, arguments.model.tokenizer_size)))


if __name__ == "__main__":
    with report_user_errors():
        main()
