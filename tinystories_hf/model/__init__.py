"""GPT-Neo with this package's attention and loss, and the stock weights.

Use `modeling.GPTNeoForCausalLM`, `modeling.build_model` and `modeling.load_model`.
"""
