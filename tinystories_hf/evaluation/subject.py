"""What is evaluated: a model with its tokenizer, its context, and what tells it from any other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinystories_hf.core.environment import portable
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.run_record import RUN_RECORD, read_record
from tinystories_hf.data.download import resolve_commit
from tinystories_hf.data.tokenizer import vocab_sha256
from tinystories_hf.generation.generate import load_for_generation
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.model.positions import PAPER_CONTEXT, max_positions


@dataclass(frozen=True)
class ModelFacts:
    """What stands in `eval_results.json` about the model itself."""

    name: str
    revision: str | None
    run_id: str | None
    architecture: str
    parameters: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    context_length: int
    tokenizer_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class EvaluatedModel:
    """A model ready to be evaluated."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: ModelFacts

    @property
    def context_length(self) -> int:
        """Return the tokens that the model reads at once."""
        return self.facts.context_length


def load_model_to_evaluate(
    name: str, revision: str | None = None, context_length: int | None = None
) -> EvaluatedModel:
    """Load a model from a folder or the Hub.

    The context is the one asked for, else what its run trained on, else 512 as in the paper.

    Raises:
        UserError: there is no such model, the Hub cannot be reached, its tokenizer is not a fast
            one, it is no causal model, or it has fewer positions than the context.
    """
    if not Path(name).is_dir():
        revision = resolve_commit(name, "model", revision)
    model, tokenizer = load_for_generation(name, revision)
    if not tokenizer.is_fast:
        raise UserError(f"model: {name} has no fast tokenizer; give it a tokenizer.json")
    check_causal(model, name)
    run = run_directory_of(name)
    record = None if run is None else read_record(run)
    positions = max_positions(model)
    trained = None if record is None else int(record.configuration["data"]["context_length"])
    context = context_length or trained or min(PAPER_CONTEXT, positions or PAPER_CONTEXT)
    if positions is not None and context > positions:
        raise UserError(
            f"context_length {context} is more than the {positions} positions of {name}"
        )
    return describe_evaluated_model(
        model,
        tokenizer,
        name=str(portable(name)),
        context_length=context,
        revision=revision,
        run_id=None if record is None else record.run_id,
    )


@torch.inference_mode()
def check_causal(model: PreTrainedModel, name: str) -> None:
    """Raise a `UserError` where a token changes what the model predicts before it.

    AutoModelForCausalLM also loads BERT and its like, whose loss would mean nothing.
    """
    if isinstance(model, GPTNeoForCausalLM):
        return
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=model.device)
    logits = model(ids, use_cache=False).logits[:, :3]
    rounding = 100 * torch.finfo(logits.dtype).eps * logits.abs().max()
    if (logits[0] - logits[1]).abs().max() > rounding:
        raise UserError(
            f"model: {name} reads ahead, so that its loss means nothing; give a causal model"
            " (BERT and its like are one with is_decoder in their config.json)"
        )


def run_directory_of(name: str) -> Path | None:
    """Return the run directory that a model's name stands for, None where it is none of ours."""
    return Path(name) if (Path(name) / RUN_RECORD).is_file() else None


def describe_evaluated_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    context_length: int,
    revision: str | None = None,
    run_id: str | None = None,
) -> EvaluatedModel:
    """Put a loaded model together with its facts; it tells stories up to the context."""
    model.generation_config.max_length = context_length
    config = model.config.get_text_config(decoder=True)
    facts = ModelFacts(
        name=name,
        revision=revision,
        run_id=run_id,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden_size=int(config.hidden_size),
        num_layers=int(config.num_hidden_layers),
        vocab_size=int(config.vocab_size),
        context_length=context_length,
        tokenizer_sha256=vocab_sha256(tokenizer),
        weights_sha256=weights_sha256(model),
    )
    return EvaluatedModel(model, tokenizer, facts)


def weights_sha256(model: PreTrainedModel) -> str:
    """Return the sha256 of all weights by name, the same wherever and however they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity(facts: ModelFacts) -> dict[str, object]:
    """Return what ties raw outputs to the model that made them."""
    return {key: asdict(facts)[key] for key in ("weights_sha256", "context_length")}
