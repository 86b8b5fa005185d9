"""A Hugging Face Hub on loopback: what the real clients ask of one when they read.

Serves repositories held in memory, at one commit each. What it does not know it answers with the
404 and the error code of the real Hub, so that the clients raise what they raise there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<rest>.*))?")
RESOLVE = re.compile(
    r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)"
)


@dataclass
class Repository:
    """The files of a repository at its only commit."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class LoopbackHub:
    """An HTTP server over `repositories`, keyed by ("datasets" or "models", "owner/name")."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> LoopbackHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.answer()

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if match := API.fullmatch(path):
                self.answer_api(match["kind"], match["repo"], match["rest"] or "")
            elif match := RESOLVE.fullmatch(path):
                self.answer_file(
                    match["kind"] or "models", match["repo"], match["rev"], match["path"]
                )
            else:
                self.refuse("EntryNotFound")

        def find(self, kind: str, repo: str, revision: str) -> Repository | None:
            found = hub.repositories.get((kind, repo))
            if found is None:
                self.refuse("RepoNotFound")
            elif revision not in ("main", found.commit):
                self.refuse("RevisionNotFound")
                return None
            return found

        def answer_api(self, kind: str, repo: str, rest: str) -> None:
            action, _, tail = rest.partition("/")
            revision, _, folder = tail.partition("/")
            found = self.find(kind, repo, revision or "main")
            if found is None:
                return
            if action in ("", "revision"):
                names = [{"rfilename": name} for name in found.files]
                self.send({"id": repo, "sha": found.commit, "siblings": names, "private": False})
            elif action == "tree":
                recursive = "recursive=true" in self.path.lower()
                self.send(_listing(found, folder + "/" if folder else "", recursive))
            elif action == "paths-info":
                wanted = json.loads(self.body)["paths"]
                self.send([_entry(n, b) for n, b in found.files.items() if n in wanted])
            else:
                self.refuse("EntryNotFound")

        def answer_file(self, kind: str, repo: str, revision: str, path: str) -> None:
            found = self.find(kind, repo, revision)
            if found is None:
                return
            if path not in found.files:
                self.refuse("EntryNotFound", commit=found.commit)
                return
            content = found.files[path]
            self.send_response(200)
            self.send_header("X-Repo-Commit", found.commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def send(self, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, code: str, commit: str | None = None) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _listing(repository: Repository, under: str, recursive: bool) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for name, content in repository.files.items():
        inner = name.removeprefix(under)
        if not name.startswith(under):
            continue
        if "/" in inner:
            folders.add(under + inner.partition("/")[0])
        if recursive or "/" not in inner:
            entries.append(_entry(name, content))
    return entries + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]


def _entry(name: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": digest}
