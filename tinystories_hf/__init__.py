"""Reproduce and study the TinyStories language models on the Hugging Face stack.

The public names below are loaded when they are first used, so that importing the package imports
neither torch nor transformers. Each folder is one stage and imports only the stages before it:
core, config, data, model, generation, evaluation, web, hub, training, benchmark. CI checks it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinystories_hf.config.command_line import parse_arguments
    from tinystories_hf.data.prepare import prepare
    from tinystories_hf.evaluation.evaluate import evaluate
    from tinystories_hf.generation.generate import generate
    from tinystories_hf.model.modeling import GPTNeoForCausalLM
    from tinystories_hf.training.train import train

__version__ = "0.1.0"
__all__ = ["GPTNeoForCausalLM", "evaluate", "generate", "parse_arguments", "prepare", "train"]

_MODULES = {
    "GPTNeoForCausalLM": "model.modeling",
    "evaluate": "evaluation.evaluate",
    "generate": "generation.generate",
    "parse_arguments": "config.command_line",
    "prepare": "data.prepare",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
