"""A model in the browser: its ONNX export and the static page.

Use `onnx_export.export_onnx` and `page.build_page`.
"""
