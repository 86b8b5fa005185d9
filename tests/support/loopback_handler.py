"""How a Hub on loopback answers: one method for each request that the real clients make."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tests.support.loopback_state import (
    GIT_ATTRIBUTES,
    ROUTES,
    STATIC_SPACE,
    Account,
    Fault,
    StoredRepository,
    entry_of,
    is_large,
    listing_of,
    oid_of,
)

if TYPE_CHECKING:
    from tests.support.loopback_hub import LoopbackHub


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers the requests of a Hub."""

    def _url(kind: str, repo: str) -> str:
        return f"{hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each body waits 40 ms for an acknowledgement
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
            self.send_header("Access-Control-Allow-Origin", "*")  # a page elsewhere may read it
            self.end_headers()
            if self.command != "HEAD":
                hub.bytes_served += len(data)
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

        def find(self, kind: str, repo: str, rev: str = "main") -> tuple[StoredRepository, str]:
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
            url = _url(*key)
            files = {".gitattributes": GIT_ATTRIBUTES}
            if key[0] == "spaces":
                if wanted.get("sdk") not in ("static", "gradio", "docker"):
                    raise _RefusedError(400, "", "a Space needs an sdk")
                files |= STATIC_SPACE if wanted["sdk"] == "static" else {}
            if key in hub.repositories:
                return {"error": "You already created this repo", "url": url}, {}, 409
            private = wanted.get("private", False) or wanted.get("visibility") == "private"
            hub.repositories[key] = StoredRepository(files, private)
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
                oid = None if known is None else oid_of(name, known)
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
            url = f"{_url(kind, repo)}/commit/{new}"
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
            return listing_of(found.commits[commit], under, recursive), {}, 200

        def answer_paths_info(self, kind: str, repo: str, rev: str) -> Any:
            found, commit = self.find(kind, repo, rev)
            files, wanted = found.commits[commit], json.loads(self.body)["paths"]
            return [entry_of(name, files[name]) for name in files if name in wanted], {}, 200

        def answer_file(self, kind: str, repo: str, rev: str, path: str) -> Any:
            found, commit = self.find(kind, repo, rev)
            headers = {"X-Repo-Commit": commit}
            content = found.commits[commit].get(path)
            if content is None:
                raise _RefusedError(404, "EntryNotFound", "Entry not found", **headers)
            headers["ETag"] = f'"{oid_of(path, content)}"'
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
