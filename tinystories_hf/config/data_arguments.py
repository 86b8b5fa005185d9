"""The settings of the data: the dataset, the tokenizer, and how stories become rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinystories_hf.config.checks import positive
from tinystories_hf.config.parsing import option
from tinystories_hf.core.errors import UserError

# Escapes that the shell and unquoted YAML strings leave as a backslash and a letter.
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}


@dataclass(frozen=True)
class DataArguments:
    """Dataset and tokenizer, and how stories become rows (packed sequences of equal length)."""

    dataset: str = option(
        "a Hub dataset; a file (.txt, .jsonl, .json, .csv or .parquet; all but .parquet may be"
        " compressed as .gz, .zst, .bz2 or .lz4); a folder of such files; a glob pattern such as"
        " 'data/*.txt'; a folder written by datasets' save_to_disk; or `toy`, the built-in corpus;"
        " several are a mixture by dataset_weights",
        rest="other_datasets",
    )
    tokenizer: str = option(
        "a Hub tokenizer; a local folder; or `train`, to train a byte-level BPE with vocab_size"
        " entries on the training stories",
        belongs_to="model_name_or_path",
    )
    context_length: int = option(
        "tokens per row (packed training sequence)", belongs_to="model_name_or_path"
    )
    other_datasets: list[str] = option(
        "further datasets of a mixture; set by giving several to dataset", [], belongs_to="dataset"
    )
    dataset_weights: list[float] = option(
        "shares of the rows of each dataset in a mixture, such as 0.9 0.1", [], belongs_to="dataset"
    )
    dataset_config: str | None = option(
        "configuration (subset) of the Hub dataset", None, belongs_to="dataset"
    )
    dataset_revision: str | None = option(
        "commit, tag or branch of the Hub dataset", None, belongs_to="dataset"
    )
    train_split: str = option("training split of the Hub dataset", "train", belongs_to="dataset")
    validation_split: str | None = option(
        "validation split of the Hub dataset; null: hold out a validation_share of the stories",
        "validation",
        belongs_to="dataset",
    )
    train_file: str | None = option(
        "training file in the Hub dataset or folder, or a glob pattern such as 'data/train-*'",
        None,
        belongs_to="dataset",
    )
    validation_file: str | None = option(
        "validation file in the Hub dataset or folder, or a glob pattern",
        None,
        belongs_to="dataset",
    )
    text_column: str = option(
        "column or key with the story's text; a.b means field b of column a; unused for .txt files",
        "text",
    )
    story_separator: str = option(
        r"separator between stories in .txt files, such as '\n' (one story per line), '\n\n' or"
        " '</s>'",
        "<|endoftext|>",
    )
    validation_share: float = option(
        "fraction of the stories held out for validation if the dataset has no validation split",
        0.05,
    )
    validation_seed: int = option("seed for choosing the held-out stories", 0)
    toy_stories: int = option("number of stories in the toy corpus", 20_000)
    toy_seed: int = option("seed for generating the toy corpus", 0)
    tokenizer_revision: str | None = option(
        "commit, tag or branch of the Hub tokenizer", None, belongs_to="tokenizer"
    )
    tokenizer_vocab_sha256: str | None = option(
        "expected SHA-256 of the vocabulary, in the format of GPT-2's vocab.json",
        None,
        belongs_to="tokenizer",
    )
    tokenizer_merges_sha256: str | None = option(
        "expected SHA-256 of the BPE merges, in the format of GPT-2's merges.txt",
        None,
        belongs_to="tokenizer",
    )
    token_counts: str | None = option(
        "CSV file with the columns id and count, by which a vocab_size below that of the tokenizer"
        " chooses its entries; null: counted in the training stories",
        None,
        belongs_to="tokenizer",
    )
    train_share: float = option(
        "share of the training stories that is used, evenly spaced; 1: all of them", 1.0
    )
    eos_token: str = option(
        "special token of the tokenizer that ends each story; also the BOS and padding token",
        "<|endoftext|>",
        belongs_to="tokenizer",
    )
    drop_null: bool = option(
        "skip records whose text is null instead of raising an error; they are counted", False
    )
    drop_empty: bool = option("drop stories without any text", False)
    repair_mojibake: bool = option("repair double-encoded quotes and dashes (mojibake)", False)
    drop_duplicates: bool = option("keep only the first of identical stories", False)
    drop_validation_overlap: bool = option(
        "drop validation stories that also occur in the training split", False
    )
    streaming: bool = option(
        "read and tokenize the training stories during training, for a corpus larger than the disk",
        False,
    )
    shuffle_buffer: int = option("rows in the shuffle buffer; streaming only", 10_000)
    prepared_dir: str | None = option(
        "cache directory for prepared rows; null: $HF_HOME/tinystories_hf", None
    )

    def __post_init__(self) -> None:
        self._expand_hub_url()
        self._check_mixture()
        if self.dataset_config is not None and self.train_file is not None:
            raise UserError(
                "dataset_config: train_file already chooses the files; omit one of them"
            )
        positive(self, "toy_stories", "shuffle_buffer")
        if not self.eos_token:
            raise UserError("eos_token must not be empty; give a special token of the tokenizer")
        if self.context_length < 2:
            raise UserError(f"context_length must be at least 2, got {self.context_length}")
        if not 0 < self.train_share <= 1:
            raise UserError(f"train_share must be above 0 and at most 1, got {self.train_share}")
        if not 0 < self.validation_share < 1:
            raise UserError(
                f"validation_share must be between 0 and 1, got {self.validation_share}"
            )
        if not self.separator:
            raise UserError("story_separator must not be empty; give a separator such as '\\n'")

    def _expand_hub_url(self) -> None:
        """Replace `hf://datasets/owner/name@revision/file` by the settings that it stands for."""
        if not self.dataset.startswith("hf://"):
            return
        found = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?", self.dataset)
        if found is None:
            raise UserError(
                f"dataset: {self.dataset} is not the address of a dataset; use owner/name or"
                " hf://datasets/owner/name@revision/file"
            )
        name, revision, file = found.groups()
        for key, value in (("dataset_revision", revision), ("train_file", file)):
            if value is not None and getattr(self, key) not in (None, value):
                raise UserError(f"{key}: {getattr(self, key)}, but dataset says {value}; omit one")
            if value is not None:
                object.__setattr__(self, key, value)
        object.__setattr__(self, "dataset", name)

    def _check_mixture(self) -> None:
        names, weights = [self.dataset, *self.other_datasets], self.dataset_weights
        if len(weights) != (len(names) if self.other_datasets else 0):
            raise UserError(
                f"dataset_weights: {len(weights)} weights for {len(names)} datasets (dataset and"
                " other_datasets); give one for each of several datasets, such as"
                " --dataset a b --dataset_weights 0.9 0.1"
            )
        if any(weight <= 0 for weight in weights):
            raise UserError(f"dataset_weights: must be positive, got {weights}")
        if self.other_datasets and (self.streaming or self.tokenizer == "train"):
            what = "streaming" if self.streaming else "tokenizer `train`"
            raise UserError(f"dataset: a mixture cannot be combined with {what}; omit it")

    @property
    def separator(self) -> str:
        r"""Return `story_separator` with escapes such as `\n` decoded and line ends as `\n`."""
        typed = re.sub(r"\\([nrtf\\])", lambda found: _ESCAPES[found[1]], self.story_separator)
        return typed.replace("\r\n", "\n").replace("\r", "\n")
