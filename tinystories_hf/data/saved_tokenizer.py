"""A run's tokenizer: one class and one set of files, whatever kind of tokenizer it comes from."""

from __future__ import annotations

import json
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
    """Transformers' class of that name, saved under that name.

    Transformers 5 saves it as `TokenizersBackend`, which Transformers 4 and the libraries that read
    its files do not know; both load the name that is written here. `tokenizer.json` holds the rest.
    """


def story_tokenizer(
    backend: Tokenizer, eos_token: str, context_length: int, unk_token: str | None = None
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model that reads plain text with an EOS after each story.

    One token begins, ends and pads. Batches are padded on the left, where a model that generates
    needs it. What a tokenizer.json may add to a text (a template, padding, truncation) is removed:
    no training text has it.
    """
    backend.no_truncation()
    backend.no_padding()
    if backend.num_special_tokens_to_add(is_pair=False):
        backend.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    unknown = {} if unk_token is None else {"unk_token": unk_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=eos_token,
        eos_token=eos_token,
        pad_token=eos_token,
        **unknown,
        model_max_length=context_length,
        padding_side="left",
        # Transformers 4 would add token_type_ids, which GPT-Neo embeds like tokens, and would set
        # the prefix space of the tokenizer.json to False.
        model_input_names=["input_ids", "attention_mask"],
        add_prefix_space=_adds_prefix_space(backend),
        # transformers.js takes a missing value for True and turns "said ," into "said,".
        clean_up_tokenization_spaces=False,
    )


def _adds_prefix_space(backend: Tokenizer) -> bool:
    if backend.pre_tokenizer is None:
        return False
    state: dict[str, Any] = json.loads(backend.pre_tokenizer.__getstate__())
    return bool(state.get("add_prefix_space", False))
