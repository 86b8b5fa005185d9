r"""Take the README's picture of the page.

    python -m tests.support.page.picture --models small=runs/small xs-150=runs/xs-150 \
        --out docs/results/page.png

The models have to be exported; npm and a Chromium are needed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.support.page.browser import open_browser, reading, served
from tinystories_hf.web.page import build_page

PROMPT = "Once upon a time there was a little girl named Lily. She had a"
WORD = 4


def main() -> None:
    """Build the page, have all models tell one beginning, point at a word."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, help="NAME=DIR, exported")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    flags = parser.parse_args()
    models = dict(text.split("=", 1) for text in flags.models)
    with tempfile.TemporaryDirectory() as work, open_browser() as browser:
        site = Path(work) / "site"
        build_page({name: Path(folder) for name, folder in models.items()}, site)
        size = {"width": 1000, "height": 1130}
        with served(site) as url, reading(browser, url, viewport=size) as reader:
            for box in reader.page.locator("#models input").all():
                box.check()
            reader.slide("#temperature", 0.7)
            reader.slide("#length", 112)
            reader.generate(PROMPT)
            reader.page.locator(".word").nth(WORD).dispatch_event("pointerover")
            reader.page.evaluate("scrollTo(0, 0)")
            reader.page.screenshot(path=flags.out)


if __name__ == "__main__":
    main()
