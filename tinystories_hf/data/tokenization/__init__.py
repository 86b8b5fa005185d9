"""Tokenizers: loaded, trained or cut to a smaller vocabulary; saved; and applied to stories.

See `tinystories_hf/data/prepare.py` for the way from text to rows.
"""
