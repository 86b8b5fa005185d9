"""From text to rows of token ids: reading, cleaning, tokenizing, packing, streaming.

Use `prepare.prepare`, and what it returns, `manifest.PreparedData`.
"""
