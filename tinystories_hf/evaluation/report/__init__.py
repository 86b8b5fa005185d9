"""Reports generated from the results: `evaluation.md`, its plots, the model card.

Use `report.write_report` and `card.write_card`.
"""
