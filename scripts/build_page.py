"""Build a static page that runs models in the browser, and serve it.

    python scripts/build_page.py --model runs/xs --out site --serve
    python scripts/build_page.py --model runs/xs --models small=runs/small --out site

Export the models with scripts/export_onnx.py first. Any web server can host the folder;
scripts/push_to_hub.py --site publishes it as a Space.
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
