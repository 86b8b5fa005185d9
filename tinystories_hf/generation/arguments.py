"""The command line of scripts/generate.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.parsing import build_dataclass, option
from tinystories_hf.core.errors import UserError


@dataclass(frozen=True)
class GenerationArguments:
    """Settings for generating stories; names follow `transformers.GenerationConfig`."""

    max_new_tokens: int | None = option(
        "maximum number of new tokens; null: fill the context", None
    )
    num_return_sequences: int = option("stories per prompt", 1)
    temperature: float = option("sampling temperature; 0: greedy decoding", 1.0)
    top_k: int = option("sample from the k most likely tokens; 0: from all tokens", 0)
    top_p: float = option(
        "sample from the smallest set of most likely tokens with this total probability", 1.0
    )
    num_beams: int = option("number of beams; more than 1: beam search instead of sampling", 1)
    seed: int = option("seed for sampling", 42)
    batch_size: int = option("stories generated at once", 64)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_return_sequences", "num_beams", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.temperature < 0 or self.top_k < 0 or self.seed < 0:
            raise UserError("temperature, top_k and seed must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.num_beams < self.num_return_sequences and self.searches:
            raise UserError(
                f"num_return_sequences {self.num_return_sequences} requires sampling (temperature"
                " above 0, num_beams 1) or at least as many num_beams"
            )

    @property
    def searches(self) -> bool:
        """Return whether decoding is deterministic: greedy or beam search."""
        return self.temperature == 0 or self.num_beams > 1


class GenerationRequest(NamedTuple):
    """What scripts/generate.py is asked for."""

    model: str
    revision: str | None
    prompt: list[str]
    settings: GenerationArguments


def parse_generation_arguments(
    argv: Sequence[str] | None = None, *, description: str = ""
) -> GenerationRequest:
    """Read the command line of scripts/generate.py.

    Raises:
        UserError: an unknown flag, a missing model or prompt, or a value out of range.
    """
    parser = StrictParser(description)
    parser.add_argument("--model", metavar="NAME", help="run directory, folder, or name on the Hub")
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch on the Hub")
    parser.add_argument("--prompt", metavar="TEXT", nargs="+", help="prompts to complete")
    parser.add_dataclass("generation (defaults in brackets)", GenerationArguments)
    flags = parser.parse_layer(argv)
    named = {key: flags.pop(key).value for key in ("model", "revision", "prompt") if key in flags}
    if "model" not in named or "prompt" not in named:
        raise UserError(
            "give --model and --prompt, such as --model runs/xs --prompt 'Once upon a time'"
        )
    settings = build_dataclass(GenerationArguments, flags)
    return GenerationRequest(named["model"], named.get("revision"), named["prompt"], settings)
