"""A page, built and served on loopback, in a real headless Chromium that reaches nothing else."""

from __future__ import annotations

import functools
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tinystories_hf.core.errors import UserError
from tinystories_hf.web.libraries import fetch_library, locked_libraries

AXE = "axe-core@4.14.1"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
TOLD_SECONDS = 60


def chromium() -> str:
    """Return the path of a Chromium, or skip; CHROMIUM names one that is elsewhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs a Chromium (Debian: apt install chromium), or its path in CHROMIUM")
    return found


def npm() -> str:
    """Return the path of npm, or skip."""
    found = shutil.which("npm")
    if found is None:
        pytest.skip("needs npm, from which the libraries of the page come")
    return found


def require_libraries() -> None:
    """Skip where the page's libraries are neither cached nor to be had from npm."""
    npm()
    try:
        for library in locked_libraries():
            fetch_library(library)
    except UserError as error:
        pytest.skip(str(error))


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a headless Chromium that resolves no name."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback, as `python -m http.server` does."""
    handler = functools.partial(_Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class Reader:
    """Somebody at the page: what they do, what they see, and what the console said meanwhile."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.console: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def generate(self, prompt: str | None = None, button: str = "#generate") -> None:
        """Ask for a story and wait until it is told, or the page says what is wrong."""
        if prompt is not None:
            self.page.fill("#prompt", prompt)
        self.page.click(button)
        self.page.wait_for_function(
            "!document.querySelector('#stop') || document.querySelector('#stop').disabled",
            timeout=TOLD_SECONDS * 1000,
        )

    def slide(self, slider: str, value: float) -> None:
        """Move a slider as dragging does."""
        self.page.locator(slider).evaluate(
            "(slider, value) => { slider.value = value;"
            " slider.dispatchEvent(new Event('input', {bubbles: true})); }",
            value,
        )

    def stories(self) -> list[str]:
        """Return the stories as they stand, beginnings included."""
        return self.page.locator(".story").all_text_contents()

    def words(self) -> int:
        """Return how many words stand in all stories."""
        return self.page.locator(".word").count()

    def status(self) -> str:
        """Return what the page says it is doing."""
        return self.page.inner_text("#status")

    def problem(self) -> str:
        """Return what the page says is wrong, empty where nothing is."""
        shown = self.page.locator("#problem")
        return shown.inner_text() if shown.is_visible() else ""


@contextmanager
def reading(browser: Browser, url: str, **context: Any) -> Iterator[Reader]:
    """Open the page anew, with nothing cached."""
    opened: BrowserContext = browser.new_context(**context)
    reader = Reader(opened.new_page())
    reader.page.goto(url)
    reader.page.wait_for_selector("#ask:not([inert])")
    yield reader
    opened.close()


def axe_source(folder: Path) -> str:
    """Return axe-core, from its npm package."""
    command = [
        npm(),
        "pack",
        AXE,
        "--ignore-scripts",
        "--silent",
        "--pack-destination",
        str(folder),
    ]
    if run(command, cwd=folder, capture_output=True).returncode:
        pytest.skip(f"npm cannot get {AXE}")
    (archive,) = folder.glob("axe-core-*.tgz")
    with tarfile.open(archive) as package:
        source = package.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()
