"""From text to packed rows of token ids: reading, cleaning, tokenizing, packing, streaming.

The entry point is `prepare.prepare`, which returns a `manifest.PreparedData`.
"""
