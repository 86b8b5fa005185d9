"""GPT-Neo with this package's attention and loss, and the stock weights.

Use `modeling.GPTNeoForCausalLM`, `modeling.build_model` and `loading.load_model`.
"""
