"""Export a model folder to ONNX, for ONNX Runtime and browsers; adds onnx/ to the folder.

    python scripts/export_onnx.py --model runs/xs

Needs the packages of `pip install --constraint constraints.txt --editable ".[onnx]"`. Both files
are checked against PyTorch before they are kept, and are published with the folder.
"""

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.web.arguments import parse_export_arguments


def main() -> None:
    """Parse, export, print a summary."""
    folder = parse_export_arguments(description=__doc__ or "")
    from tinystories_hf.web.onnx_export import export_onnx

    print(f"exported {folder / 'onnx'}: {export_onnx(folder)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
