"""A Hugging Face Hub on loopback, for trying the whole round offline and for the tests.

    python -m tests.loopback_hub --root hub --port 8777 --token hf_mine

Speaks the Hub's HTTP API as huggingface_hub, transformers and datasets use it: reading with etags,
ranges and redirects to large files, private repositories by token, creating repositories and
branches, uploading and committing. What is at ROOT/models/OWNER/NAME or ROOT/datasets/OWNER/NAME is
served, and what is pushed is written there; a branch other than main lies beside it as NAME@BRANCH,
and NAME@COMMIT (40 digits) is a repository whose main stands at that commit.
It has no Xet storage, as a mirror may have none.

It can be told to fail: `--fault lfs-upload:2:503` answers the second upload of a large file with
503; `commit:1:drop=100` drops the connection after 100 bytes of the first commit; `commit:1:lost`
commits but drops the connection before it answers; `commit:1:slow=3` waits three seconds. 429 may
say how long to wait: `commit:1:429=2`. KIND is a name in ROUTES.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import socket
import struct
import threading
from collections import Counter
from dataclasses import InitVar, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

KINDS = ("models", "datasets", "spaces")
_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
# What a request is called, its method, its path; answered by the method of that name.
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("create", "POST", r"/api/repos/create"),
    ("branch", "POST", _API + r"/branch/(?P<rev>.+)"),
    ("refs", "GET", _API + r"/refs"),
    ("commits", "GET", _API + r"/commits/(?P<rev>[^/]+)"),
    ("preupload", "POST", _API + r"/preupload/(?P<rev>[^/]+)"),
    ("commit", "POST", _API + r"/commit/(?P<rev>[^/]+)"),
    ("tree", "GET", _API + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?"),
    ("paths-info", "POST", _API + r"/paths-info/(?P<rev>[^/]+)"),
    ("auth-check", "GET", _API + r"/auth-check(?:/write)?"),
    ("info", "GET", _API + r"(?:/revision/(?P<rev>[^/]+))?"),
    (
        "lfs-batch",
        "POST",
        r"/(?:(?:datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    ),
    ("lfs-upload", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("lfs-verify", "POST", r"/lfs/verify"),
    ("lfs-file", "GET", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    (
        "file",
        "GET",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
    ),
]
REQUEST_NAMES = tuple(name for name, _, _ in ROUTES)
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Account:
    """A user, and what the token that names it may do.

    A fine-grained token may write to what `writable` names: owners and repositories.
    """

    name: str = "me"
    role: Literal["read", "write", "fineGrained"] = "write"
    organizations: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()

    def may_write(self, repo: str) -> bool:
        """Tell whether the token may write to a repository."""
        owner = repo.partition("/")[0]
        if self.role == "fineGrained":
            return owner in self.writable or repo in self.writable
        return self.role == "write" and owner in (self.name, *self.organizations)


@dataclass
class Repository:
    """Commits, each a whole set of files, and the branches that point at them."""

    files: InitVar[dict[str, bytes]]
    private: bool = False
    first_commit: InitVar[str | None] = None
    commits: dict[str, dict[str, bytes]] = field(init=False, default_factory=dict)
    branches: dict[str, str] = field(init=False, default_factory=dict)
    parents: dict[str, str | None] = field(init=False, default_factory=dict)

    def __post_init__(self, files: dict[str, bytes], first_commit: str | None) -> None:
        self.add("main", files, first_commit)

    def add(self, branch: str, files: dict[str, bytes], commit: str | None = None) -> str:
        """Commit a whole set of files to a branch; the name follows from the content."""
        digest = hashlib.sha1(f"{len(self.commits)} {branch}".encode())
        for name in sorted(files):
            digest.update(name.encode() + hashlib.sha256(files[name]).digest())
        commit = commit or digest.hexdigest()
        self.commits[commit] = dict(files)
        self.parents[commit] = self.branches.get(branch)
        self.branches[branch] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch, or of a commit's own name."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def history(self, revision: str) -> list[str]:
        """Return a revision's commits, the newest first."""
        found, commit = [], self.find(revision)
        while commit is not None:
            found.append(commit)
            commit = self.parents[commit]
        return found

    @property
    def commit(self) -> str:
        """Return the commit of main."""
        return self.branches["main"]

    def at(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        return self.commits[self.find(revision) or ""]


@dataclass
class Fault:
    """What goes wrong with the `nth` request of a kind from now on."""

    request: str
    nth: int = 1
    status: int | None = None
    retry_after: int | None = None
    drop_after: int | None = None
    lost: bool = False
    slow: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read KIND:NTH:WHAT, WHAT being a status, drop=BYTES, lost or slow=SECONDS."""
        request, nth, what = text.split(":")
        if request not in REQUEST_NAMES:
            raise ValueError(f"{request} is none of {', '.join(REQUEST_NAMES)}")
        word, _, value = what.partition("=")
        if word == "drop":
            return cls(request, int(nth), drop_after=int(value))
        if word == "lost":
            return cls(request, int(nth), lost=True)
        if word == "slow":
            return cls(request, int(nth), slow=float(value))
        return cls(request, int(nth), status=int(word), retry_after=int(value) if value else None)


@dataclass
class LoopbackHub:
    """The server; `repositories` are keyed by (kind, "owner/name"), `accounts` by token."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    root: Path | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.large_files: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.lock = threading.Lock()
        self.server: ThreadingHTTPServer | None = None
        self._counts: Counter[int] = Counter()
        if self.root is not None:
            self._read_root(self.root)

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve on `port`, or on any free one if it is 0."""
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Be gone, until the next start."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
        self.server = None

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    def fault_for(self, request: str) -> Fault | None:
        """Count this request for each fault that waits for its kind, and return the one it hits."""
        with self.lock:
            for fault in [fault for fault in self.faults if fault.request == request]:
                self._counts[id(fault)] += 1
                if self._counts[id(fault)] == fault.nth:
                    self.faults.remove(fault)
                    del self._counts[id(fault)]
                    return fault
        return None

    def write(self, kind: str, repo: str, branch: str) -> None:
        """Write the files of a branch below the root, if there is one."""
        if self.root is None:
            return
        folder = self.root / kind / (repo if branch == "main" else f"{repo}@{branch}")
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in self.repositories[kind, repo].at(branch).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def _read_root(self, root: Path) -> None:
        for folder in sorted(path for kind in KINDS for path in (root / kind).glob("*/*")):
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
            kind, owner = folder.parent.parent.name, folder.parent.name
            name, _, branch = folder.name.partition("@")
            if re.fullmatch("[0-9a-f]{40}", branch):
                self.repositories[kind, f"{owner}/{name}"] = Repository(files, first_commit=branch)
            elif branch:
                self.repositories[kind, f"{owner}/{name}"].add(branch, files)
            else:
                self.repositories[kind, f"{owner}/{name}"] = Repository(files)


def is_large(name: str, sample: bytes, size: int) -> bool:
    """Tell whether the Hub keeps a file outside of git: large ones and what is no text."""
    return size > 10_000_000 or b"\0" in sample or name.endswith(".safetensors")


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        fault: Fault | None = None

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            method = "GET" if self.command == "HEAD" else self.command
            for name, wanted, pattern in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and wanted == method:
                    parts = {"kind": "models"} if "kind" in match.re.groupindex else {}
                    found = {key: value for key, value in match.groupdict().items() if value}
                    self.serve(name, {**parts, **found})
                    return
            self.read_body()
            self.send(404, headers={"X-Error-Code": "EntryNotFound"})

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

        def serve(self, name: str, parts: dict[str, str]) -> None:
            self.fault = hub.fault_for(name)
            if self.fault is not None:
                threading.Event().wait(self.fault.slow)
                if self.fault.drop_after is not None:
                    self.rfile.read(min(self.fault.drop_after, self.content_length()))
                    self.drop()
                    return
            self.body = self.read_body()
            try:
                if self.fault is not None and self.fault.status is not None:
                    wait = self.fault.retry_after
                    headers = {} if wait is None else {"Retry-After": str(wait)}
                    raise _RefusedError(self.fault.status, "", "told to fail", **headers)
                answer = getattr(self, "answer_" + name.replace("-", "_"))
                with hub.lock:
                    content, headers, status = answer(**parts)
            except _RefusedError as refusal:
                headers = {"X-Error-Message": refusal.message, **refusal.headers}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                self.send(refusal.status, {"error": refusal.message}, headers)
                return
            if self.fault is not None and self.fault.lost:
                self.drop()
                return
            self.send(status, content, headers)

        def drop(self) -> None:
            """Reset the connection, as a machine that goes away does."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def content_length(self) -> int:
            return int(self.headers.get("Content-Length", "0"))

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(self.content_length())
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def send(
            self, status: int, content: Any = None, headers: dict[str, str] | None = None
        ) -> None:
            if content is None:
                data, kind = b"", "text/plain"
            elif isinstance(content, bytes):
                data, kind = content, "application/octet-stream"
            else:
                data, kind = json.dumps(content).encode(), "application/json"
            self.send_response(status)
            for key, value in {"Content-Type": kind, **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def account(self) -> Account | None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in hub.accounts:
                raise _RefusedError(401, "", "Invalid credentials in Authorization header")
            return hub.accounts.get(token)

        def may_write(self, repo: str) -> None:
            account = self.account()
            if account is None:
                raise _RefusedError(401, "", "Invalid username or password.")
            if not account.may_write(repo):
                raise _RefusedError(403, "", f"You don't have the rights to write to {repo}")

        def find(self, kind: str, repo: str, rev: str = "main") -> tuple[Repository, str]:
            found, account = hub.repositories.get((kind, repo)), self.account()
            owner = repo.partition("/")[0]
            hidden = found is not None and found.private and account is None
            if found is None or hidden:
                raise _RefusedError(404 if account else 401, "RepoNotFound", "Repository not found")
            if found.private and account and owner not in (account.name, *account.organizations):
                raise _RefusedError(404, "RepoNotFound", "Repository not found")
            commit = found.find(rev)
            if commit is None:
                raise _RefusedError(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            return found, commit

        def answer_whoami(self) -> Any:
            account = self.account()
            if account is None:
                raise _RefusedError(401, "", "Invalid username or password.")
            token: dict[str, Any] = {"displayName": "test", "role": account.role}
            if account.role == "fineGrained":
                scopes = [
                    {"entity": {"name": name}, "permissions": ["repo.content.read", "repo.write"]}
                    for name in account.writable
                ]
                token["fineGrained"] = {"global": [], "scoped": scopes}
            orgs = [{"name": name, "roleInOrg": "write"} for name in account.organizations]
            user = {"type": "user", "name": account.name, "orgs": orgs}
            return {**user, "auth": {"type": "access_token", "accessToken": token}}, {}, 200

        def answer_validate(self) -> Any:
            return {"errors": [], "warnings": []}, {}, 200

        def answer_create(self) -> Any:
            wanted, account = json.loads(self.body), self.account()
            owner = wanted.get("organization") or (account.name if account else "")
            self.may_write(f"{owner}/{wanted['name']}")
            key = (wanted.get("type", "model") + "s", f"{owner}/{wanted['name']}")
            url = f"{hub.url}/{'' if key[0] == 'models' else key[0] + '/'}{key[1]}"
            if key in hub.repositories:
                return {"error": "You already created this repo", "url": url}, {}, 409
            private = wanted.get("private", False) or wanted.get("visibility") == "private"
            hub.repositories[key] = Repository({".gitattributes": GIT_ATTRIBUTES}, private)
            hub.write(*key, "main")
            return {"url": url, "name": key[1]}, {}, 200

        def answer_branch(self, kind: str, repo: str, rev: str) -> Any:
            self.may_write(repo)
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            found, commit = self.find(kind, repo, start)
            if rev in found.branches:
                raise _RefusedError(409, "", f"Reference already exists: {rev}")
            found.branches[rev] = commit
            hub.write(kind, repo, rev)
            return None, {}, 200

        def answer_refs(self, kind: str, repo: str) -> Any:
            found, _ = self.find(kind, repo)
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
                for name, commit in found.branches.items()
            ]
            return {"branches": branches, "converts": [], "tags": []}, {}, 200

        def answer_commits(self, kind: str, repo: str, rev: str) -> Any:
            found, commit = self.find(kind, repo, rev)
            words = {"authors": [{"user": "me"}], "date": "2026-01-01T00:00:00.000Z"}
            text = {"title": "A commit", "message": ""}
            return [{"id": name, **words, **text} for name in found.history(commit)], {}, 200

        def answer_preupload(self, kind: str, repo: str, rev: str) -> Any:
            self.may_write(repo)
            found, commit = self.find(kind, repo, rev)
            files = []
            for wanted in json.loads(self.body)["files"]:
                name, sample = wanted["path"], base64.b64decode(wanted["sample"])
                large = is_large(name, sample, wanted["size"])
                known = found.commits[commit].get(name)
                answer = {"path": name, "uploadMode": "lfs" if large else "regular"}
                oid = None if known is None else _oid(name, known)
                files.append({**answer, "shouldIgnore": False, "oid": oid})
            return {"files": files}, {}, 200

        def answer_lfs_batch(self, repo: str) -> Any:
            self.may_write(repo)
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                oid = wanted["oid"]
                actions = {
                    "upload": {"href": f"{hub.url}/lfs/{oid}"},
                    "verify": {"href": f"{hub.url}/lfs/verify"},
                }
                objects.append(wanted if oid in hub.large_files else {**wanted, "actions": actions})
            return {"transfer": "basic", "objects": objects}, {}, 200

        def answer_lfs_upload(self, oid: str) -> Any:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _RefusedError(400, "", "the content is not that of the oid")
            hub.large_files[oid] = self.body
            hub.uploads.append(oid)
            return None, {"ETag": f'"{oid}"'}, 200

        def answer_lfs_verify(self) -> Any:
            if json.loads(self.body)["oid"] not in hub.large_files:
                raise _RefusedError(404, "", "not uploaded")
            return {}, {}, 200

        def answer_lfs_file(self, oid: str) -> Any:
            content = hub.large_files.get(oid)
            if content is None:
                raise _RefusedError(404, "EntryNotFound")
            return self.ranged(content, {"ETag": f'"{oid}"'})

        def answer_commit(self, kind: str, repo: str, rev: str) -> Any:
            self.may_write(repo)
            found, commit = self.find(kind, repo, rev)
            files = dict(found.commits[commit])
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header" and value.get("parentCommit", commit) != commit:
                    raise _RefusedError(412, "", "A commit has happened since")
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    hub.uploads.append(value["path"])
                elif item["key"] == "lfsFile":
                    if value["oid"] not in hub.large_files:
                        raise _RefusedError(400, "", f"{value['path']} was not uploaded")
                    files[value["path"]] = hub.large_files[value["oid"]]
                elif item["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                    raise _RefusedError(404, "EntryNotFound", "A file with this name doesn't exist")
            new = found.add(rev, files)
            hub.write(kind, repo, rev)
            url = f"{hub.url}/{repo}/commit/{new}"
            return {"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""}, {}, 200

        def answer_auth_check(self, kind: str, repo: str) -> Any:
            self.find(kind, repo)
            if self.path.endswith("/write"):
                self.may_write(repo)
            return {}, {}, 200

        def answer_info(self, kind: str, repo: str, rev: str = "main") -> Any:
            found, commit = self.find(kind, repo, rev)
            names = [{"rfilename": name} for name in found.commits[commit]]
            info = {"id": repo, "sha": commit, "siblings": names, "private": found.private}
            return info, {}, 200

        def answer_tree(self, kind: str, repo: str, rev: str, path: str = "") -> Any:
            found, commit = self.find(kind, repo, rev)
            recursive = "recursive=true" in self.path.lower()
            under = path + "/" if path else ""
            return _listing(found.commits[commit], under, recursive), {}, 200

        def answer_paths_info(self, kind: str, repo: str, rev: str) -> Any:
            found, commit = self.find(kind, repo, rev)
            files, wanted = found.commits[commit], json.loads(self.body)["paths"]
            return [_entry(name, files[name]) for name in files if name in wanted], {}, 200

        def answer_file(self, kind: str, repo: str, rev: str, path: str) -> Any:
            found, commit = self.find(kind, repo, rev)
            headers = {"X-Repo-Commit": commit}
            content = found.commits[commit].get(path)
            if content is None:
                raise _RefusedError(404, "EntryNotFound", "Entry not found", **headers)
            headers["ETag"] = f'"{_oid(path, content)}"'
            if not is_large(path, content[:512], len(content)):
                return self.ranged(content, headers)
            oid = hashlib.sha256(content).hexdigest()
            hub.large_files[oid] = content
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            # Another host, as the real Hub's storage is.
            location = {"Location": f"http://localhost:{hub.port}/lfs/{oid}"}
            return None, {**headers, **linked, **location}, 302

        def ranged(self, content: bytes, headers: dict[str, str]) -> Any:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            headers = {**headers, "Accept-Ranges": "bytes"}
            if not match:
                return content, headers, 200
            start, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return content[start : end + 1], headers, 206

    return Handler


def _oid(name: str, content: bytes) -> str:
    """Return what the Hub calls a file's content: sha256 of a large file, git's sha1 of others."""
    if is_large(name, content[:512], len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listing(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for name, content in files.items():
        inner = name.removeprefix(under)
        if not name.startswith(under):
            continue
        if "/" in inner:
            folders.add(under + inner.partition("/")[0])
        if recursive or "/" not in inner:
            entries.append(_entry(name, content))
    return entries + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _oid(name, content)}
    if is_large(name, content[:512], len(content)):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of repositories")
    parser.add_argument("--port", type=int, default=8777, help="port on 127.0.0.1 [8777]")
    parser.add_argument("--token", default="hf_loopback", help="token that may write [hf_loopback]")
    parser.add_argument("--user", default="me", help="whose token it is [me]")
    parser.add_argument("--fault", action="append", default=[], help="KIND:NTH:WHAT, see above")
    flags = parser.parse_args()
    with LoopbackHub(
        accounts={flags.token: Account(flags.user)},
        faults=[Fault.parse(text) for text in flags.fault],
        root=flags.root,
        port=flags.port,
    ) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={flags.token}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
