"""The settings of the model: its shape, or the pretrained model that training starts from."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any

from tinystories_hf.config.checks import in_unit_interval, positive
from tinystories_hf.config.parsing import option
from tinystories_hf.core.errors import UserError

FLASH_REFUSED = (
    "Transformers' flash_attention_2 for GPT-Neo ignores the window of the local layers, so every"
    " position beyond it is computed incorrectly"
)


def _shape(help: str, default: Any = MISSING) -> Any:  # noqa: A002
    """Declare a setting that the weights of `model_name_or_path` decide where that is given."""
    return option(help, default, belongs_to="model_name_or_path")


@dataclass(frozen=True)
class ModelArguments:
    """Architecture of the GPT-Neo model; names follow `transformers.GPTNeoConfig`.

    With `model_name_or_path` the shape is that of its `config.json` (`pretrained.py`).
    """

    hidden_size: int = _shape("size of the hidden states")
    num_layers: int = _shape("number of transformer layers")
    num_heads: int = _shape("attention heads per layer; must divide hidden_size")
    vocab_size: int = _shape(
        "vocabulary size: that of the tokenizer, or less to keep only its most common tokens"
    )
    max_position_embeddings: int = _shape(
        "number of learned position embeddings; at least context_length"
    )
    intermediate_size: int | None = _shape("MLP size; null: 4 x hidden_size", None)
    attention_types: list[str] = _shape(
        "attention type of each layer, global or local; the pattern repeats", ["global", "local"]
    )
    window_size: int = _shape("attention window of the local layers, in tokens", 256)
    activation_function: str = _shape("activation function of the MLP", "gelu_new")
    attention_dropout: float = _shape("dropout on the attention weights", 0.0)
    embed_dropout: float = _shape("dropout on the embeddings", 0.0)
    resid_dropout: float = _shape("dropout on the output of each attention and MLP sublayer", 0.0)
    layer_norm_epsilon: float = _shape("epsilon of the layer norms", 1e-5)
    initializer_range: float = _shape("standard deviation of the initial weights", 0.02)
    attn_implementation: str = option(
        "sdpa (this package's attention, fast) or eager (Transformers' own, slow); results agree"
        " within rounding",
        "sdpa",
    )
    model_name_or_path: str | None = option(
        "train from the weights of this model instead of random ones: a run directory, one of its"
        " checkpoints, another folder or a Hub name; its shape, positions and tokenizer are used",
        None,
    )
    model_revision: str | None = option(
        "commit, tag or branch of model_name_or_path", None, belongs_to="model_name_or_path"
    )
    resize_embedding: bool = option(
        "resize the embedding of model_name_or_path to another tokenizer; new rows are drawn around"
        " the mean of the old ones",
        False,
        belongs_to="model_name_or_path",
    )

    @property
    def tokenizer_size(self) -> int | None:
        """Return the number of entries of the tokenizer, None if a pretrained model decides."""
        return self.vocab_size if self.model_name_or_path is None else None

    def __post_init__(self) -> None:
        if self.attn_implementation not in ("sdpa", "eager"):
            why = f"; {FLASH_REFUSED}" if "flash" in self.attn_implementation else ""
            raise UserError(
                f"attn_implementation must be sdpa or eager, got {self.attn_implementation}{why}"
            )
        positive(
            self,
            *("hidden_size", "num_layers", "num_heads", "vocab_size", "max_position_embeddings"),
            *("intermediate_size", "window_size", "layer_norm_epsilon", "initializer_range"),
        )
        in_unit_interval(self, "attention_dropout", "embed_dropout", "resid_dropout")
        if self.model_name_or_path is not None:
            return  # its weights exist, and Transformers knows their shape
        if self.model_revision is not None or self.resize_embedding:
            raise UserError("model_revision and resize_embedding need model_name_or_path")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads};"
                " change one of them"
            )
        if not self.attention_types or set(self.attention_types) - {"global", "local"}:
            raise UserError(
                f"attention_types may only contain `global` and `local`, got {self.attention_types}"
            )
        if self.num_layers % len(self.attention_types):
            raise UserError(
                f"num_layers {self.num_layers} is not a multiple of the"
                f" {len(self.attention_types)} attention_types {self.attention_types};"
                " change one of them"
            )
