"""The model to evaluate, with its tokenizer, context length and a hash of its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinystories_hf.config.pretrained import PAPER_CONTEXT
from tinystories_hf.core.download import download_files, resolve_commit
from tinystories_hf.core.environment import portable
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.run_record import RUN_RECORD, PretrainedRecord, read_record
from tinystories_hf.data.tokenization.tokenizer import vocab_sha256
from tinystories_hf.generation.generate import load_for_generation
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.model.positions import max_positions

# The model card in a folder or repository.
CARD = "README.md"


@dataclass(frozen=True)
class ModelFacts:
    """The `model` section of `eval_results.json`."""

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
    """A loaded model with its tokenizer and facts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: ModelFacts

    @property
    def context_length(self) -> int:
        """Return the context length in tokens."""
        return self.facts.context_length


def load_model_to_evaluate(
    name: str, revision: str | None = None, context_length: int | None = None
) -> EvaluatedModel:
    """Load a model from a folder or the Hub, in fp32.

    The context length is `context_length`, otherwise that of the training run, otherwise 512 as in
    the paper, or the model's maximum if that is smaller.

    Raises:
        UserError: the model does not exist, the Hub cannot be reached, the tokenizer is not a fast
            tokenizer, the model is not causal, or it has fewer positions than the context length.
    """
    if not Path(name).is_dir():
        revision = resolve_commit(name, "model", revision)
    model, tokenizer = load_for_generation(name, revision, dtype=torch.float32)
    if not tokenizer.is_fast:
        raise UserError(f"model: {name} has no fast tokenizer; add a tokenizer.json")
    check_causal(model, name)
    run = run_directory_of(name)
    record = None if run is None else read_record(run)
    positions = max_positions(model)
    trained = None if record is None else int(record.configuration["data"]["context_length"])
    context = context_length or trained or min(PAPER_CONTEXT, positions or PAPER_CONTEXT)
    if positions is not None and context > positions:
        raise UserError(f"context_length: {name} has {positions} positions, fewer than {context}")
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
    """Raise a `UserError` if a token changes the predictions at earlier positions.

    AutoModelForCausalLM also loads bidirectional models such as BERT, whose loss is meaningless.
    """
    if isinstance(model, GPTNeoForCausalLM):
        return
    ids = torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=model.device)
    logits = model(ids, use_cache=False).logits[:, :3]
    rounding = 100 * torch.finfo(logits.dtype).eps * logits.abs().max()
    if (logits[0] - logits[1]).abs().max() > rounding:
        raise UserError(
            f"model: {name} is not causal: its predictions depend on later tokens. Give a causal"
            " model; BERT and similar models need is_decoder in their config.json"
        )


def run_directory_of(name: str) -> Path | None:
    """Return the path of a run directory of this package, None for any other model."""
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
    """Collect the facts of a loaded model, and limit its generations to the context length."""
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
    """Return the sha256 of all weights by name, independent of device and file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_pretrained(
    model: PreTrainedModel, name: str, revision: str | None
) -> PretrainedRecord:
    """Return the facts of a model that training starts from; the license is that of its card."""
    return PretrainedRecord(
        name=str(portable(name)),
        revision=revision,
        weights_sha256=weights_sha256(model),
        model_type=model.config.model_type,
        license=_license(name, revision),
    )


def _license(name: str, revision: str | None) -> str | None:
    """Return the license in the front matter of a model's README, None if there is none."""
    folder = (
        Path(name) if revision is None else download_files(name, "base model", revision, [CARD])
    )
    if not (folder / CARD).is_file():
        return None
    try:
        found = (metadata_load(folder / CARD) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def identity(facts: ModelFacts) -> dict[str, object]:
    """Return the facts that identify the model in files of generated texts."""
    return {key: asdict(facts)[key] for key in ("weights_sha256", "context_length")}
