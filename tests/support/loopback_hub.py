"""A Hugging Face Hub on loopback, for trying the whole round offline and for the tests.

    python -m tests.support.loopback_hub --root hub --port 8777 --token hf_mine

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
import re
import shutil
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.loopback_handler import handler_of
from tests.support.loopback_state import KINDS, Account, Fault, StoredRepository


class QuietServer(ThreadingHTTPServer):
    """A server that prints no traceback when a client closes its connection early."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error of a request, unless the client has gone, as one that is killed does."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class LoopbackHub:
    """The server; `repositories` are keyed by (kind, "owner/name"), `accounts` by token."""

    repositories: dict[tuple[str, str], StoredRepository] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    root: Path | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.large_files: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.bytes_served = 0
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
        self.server = QuietServer(("127.0.0.1", self.port), handler_of(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        # A shutdown waits for a poll, which is one in half a second by default.
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

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
                self.repositories[kind, f"{owner}/{name}"] = StoredRepository(
                    files, first_commit=branch
                )
            elif branch:
                self.repositories[kind, f"{owner}/{name}"].add(branch, files)
            else:
                self.repositories[kind, f"{owner}/{name}"] = StoredRepository(files)


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
