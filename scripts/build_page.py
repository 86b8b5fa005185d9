"""Build a static page on which models tell stories in the browser, and look at it.

    python scripts/build_page.py --model runs/xs --out site --serve
    python scripts/build_page.py --model runs/xs --models small=runs/small --out site

The models have to be exported with scripts/export_onnx.py first. Any web server shows the folder;
scripts/push_to_hub.py --site makes it a Space.
"""

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.web.arguments import parse_page_arguments


def main() -> None:
    """Parse, build, serve."""
    request = parse_page_arguments(description=__doc__ or "")
    from tinystories_hf.web import page

    print(f"built {page.build_page(request.models, request.out, request.dtype)}", flush=True)
    if request.serve:
        page.serve(request.out, request.port)


if __name__ == "__main__":
    with report_user_errors():
        main()
