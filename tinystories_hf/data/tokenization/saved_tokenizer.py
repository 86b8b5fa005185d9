"""The tokenizer that a run saves: one class and one set of files for every kind of tokenizer."""

from __future__ import annotations

import json
from typing import Any

import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing


class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
    """`transformers.PreTrainedTokenizerFast`, saved under that class name.

    Transformers 5 saves it as `TokenizersBackend`, which Transformers 4 and libraries that read its
    files do not know. Both versions load `PreTrainedTokenizerFast`. Everything else is in
    `tokenizer.json`.
    """


def story_tokenizer(
    backend: Tokenizer, eos_token: str, context_length: int, unk_token: str | None = None
) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model trained on plain text with an EOS after each story.

    `eos_token` is the BOS, EOS and padding token. Batches are padded on the left, as generation
    needs it. A template, padding or truncation of the tokenizer.json is removed, since it is not
    applied to training text.
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
        # Without these two, Transformers 4 would add token_type_ids, which GPT-Neo embeds like
        # tokens, and would set add_prefix_space of the tokenizer.json to False.
        model_input_names=["input_ids", "attention_mask"],
        add_prefix_space=_adds_prefix_space(backend),
        # transformers.js defaults to True and turns "said ," into "said,".
        clean_up_tokenization_spaces=False,
    )


def _adds_prefix_space(backend: Tokenizer) -> bool:
    if backend.pre_tokenizer is None:
        return False
    state: dict[str, Any] = json.loads(backend.pre_tokenizer.__getstate__())
    return bool(state.get("add_prefix_space", False))
