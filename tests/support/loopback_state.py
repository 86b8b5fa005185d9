"""What a Hub on loopback holds: accounts, repositories, and the faults it simulates."""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

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

# What a static Space comes with.
STATIC_SPACE = {
    "README.md": b"---\nsdk: static\n---\n",
    "index.html": b"<!doctype html>\n<p>A new Space</p>\n",
    "style.css": b"body { margin: 2em }\n",
}


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
        """Return whether the token may write to a repository."""
        owner = repo.partition("/")[0]
        if self.role == "fineGrained":
            return owner in self.writable or repo in self.writable
        return self.role == "write" and owner in (self.name, *self.organizations)


@dataclass
class StoredRepository:
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


def is_large(name: str, sample: bytes, size: int) -> bool:
    """Return whether the Hub keeps a file outside of git: large ones and what is no text."""
    return size > 10_000_000 or b"\0" in sample or name.endswith(".safetensors")


def oid_of(name: str, content: bytes) -> str:
    """Return what the Hub calls a file's content: sha256 of a large file, git's sha1 of others."""
    if is_large(name, content[:512], len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing_of(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for name, content in files.items():
        inner = name.removeprefix(under)
        if not name.startswith(under):
            continue
        if "/" in inner:
            folders.add(under + inner.partition("/")[0])
        if recursive or "/" not in inner:
            entries.append(entry_of(name, content))
    return entries + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]


def entry_of(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": oid_of(name, content)}
    if is_large(name, content[:512], len(content)):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
