"""What a model is worth: suites in `suites`, their report and the model card in `report`.

Use `evaluate.evaluate`.
"""
