"""Reproduce and study the TinyStories language models on the Hugging Face stack.

Importing the package imports nothing heavy: torch and transformers enter with the module that
needs them. The way of the data is the way of the modules: `corpus` (text) -> `data` (rows) ->
`modeling` and `training` (model, run directory) -> `evaluation` -> `hub`.
"""

__version__ = "0.1.0"
